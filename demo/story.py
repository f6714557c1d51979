"""The messages that the demo sends, in order, and what is to become of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

__all__ = ["EVENTS", "MQTT_FILTER", "QUEUE", "TOPIC", "Step", "closed_books", "payloads", "unmatched_in_queue", "write"]

TOPIC = "etl-finish"
QUEUE = "stock-events"
MQTT_FILTER = "plant/+/shift-end"

EVENTS = ("orders", "stock", "shifts")
"""The events of the group, in the order in which they are to be complete."""


@dataclass(frozen=True)
class Step:
    """One message.

    :param broker: ``kafka``, ``sqs`` or ``mqtt``.
    :param where: the topic or queue.
    :param event: the event that it counts for; ``None`` when it must not count.
    :param about: why it counts or not, for people.
    :param completes: whether the event's marker is to turn by it.
    """

    broker: str
    where: str
    body: bytes
    event: str | None
    about: str
    completes: bool = False

    @property
    def payload(self) -> Any:
        """What is to arrive in the DAG."""
        return json.loads(self.body)


def write(day: date) -> list[Step]:
    """The story for the run of this day."""
    today, yesterday = day.isoformat(), (day - timedelta(days=1)).isoformat()
    return [
        Step("kafka", TOPIC, _json(table="customers", date=today, rows=17), None, "another table"),
        Step("kafka", TOPIC, _json(table="orders", date=yesterday, rows=990), None, "another date"),
        Step("kafka", TOPIC, b"{broken", None, "not JSON"),
        Step("kafka", TOPIC, _json(table="orders", date=today, rows=1042), "orders", "completes orders", True),
        Step("sqs", QUEUE, _json(detail={"status": "STARTED", "site": 4}), None, "another status"),
        Step("sqs", QUEUE, _json(detail={"status": "COMPLETE", "site": 4}), "stock", "completes stock", True),
        Step("mqtt", "plant/hall-1/shift-end", _json(shift="early", produced=310), "shifts", "1 of 3"),
        Step("mqtt", "plant/hall-1/shift-start", _json(shift="late"), None, "another topic"),
        Step("mqtt", "plant/hall-2/shift-end", _json(shift="late", produced=295), "shifts", "2 of 3"),
        Step("mqtt", "plant/hall-1/shift-end", _json(shift="night", produced=120), "shifts", "completes shifts", True),
    ]


def payloads(story: Sequence[Step]) -> dict[str, Any]:
    """The XCom that each marker is to have."""
    found: dict[str, list[Any]] = {name: [step.payload for step in story if step.event == name] for name in EVENTS}
    return {name: several if name == "shifts" else several[0] for name, several in found.items()}


def unmatched_in_queue(story: Sequence[Step]) -> list[bytes]:
    """What is to be left in the SQS queue."""
    return [step.body for step in story if step.broker == "sqs" and step.event is None]


def closed_books(day: date, story: Sequence[Step]) -> dict[str, Any]:
    """What the task behind the group is to return."""
    came = payloads(story)
    produced = sum(shift["produced"] for shift in came["shifts"])
    return {"date": day.isoformat(), "rows": came["orders"]["rows"], "produced": produced}


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
