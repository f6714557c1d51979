"""Look at each message as it comes: ``on_event`` is called on a worker with what arrived since its last call.

Without ``on_event`` a wait needs no worker; with it, one start of a worker for each arrival or batch of arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from event_triggers import ArrivedMessage, Event, EventGroup, KafkaTopic


def show(messages: Sequence[ArrivedMessage]) -> None:
    """Print what has arrived; the sensor waits for the rest afterwards."""
    for message in messages:
        print(f"{message.event}: {message.payload} from {message.facts['stream']} {message.facts['position']}")


with DAG("on_event", schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["example"]):
    inputs = EventGroup(
        "inputs",
        events={
            "first": Event(KafkaTopic("steps"), match={"step": [1]}),
            "second": Event(KafkaTopic("steps"), match={"step": [2]}),
        },
        timeout=timedelta(minutes=10),
        on_event=show,
    )

    @task
    def go_on() -> None:
        """Runs when both messages are there and have been shown."""

    inputs >> go_on()
