"""What the DAGs of the benchmark and those who send to them have in common. The DAG files import it."""

from __future__ import annotations

__all__ = [
    "AWAIT_CONNECTIONS",
    "CROWD",
    "DAGS",
    "EVENTS",
    "GROUPS",
    "IDLE",
    "ONE",
    "PEERS",
    "QUEUE",
    "TOPICS",
    "await_connection",
    "body_of",
    "matches",
]

EVENTS = [f"event_{number:02}" for number in range(20)]
"""The events of a group; the markers are ``inputs.<event>``."""

TOPICS = [f"bench-{number}" for number in range(5)]
"""The events of every group are spread over these Kafka topics."""

QUEUE = "bench"
GROUPS = {"kafka": "bench_kafka", "sqs": "bench_sqs", "mqtt": "bench_mqtt"}
"""The DAGs with a group of 20 events, by their broker."""

CROWD = "bench_crowd"
"""The same as the Kafka DAG, for those who only wait."""

IDLE = "bench_idle"
"""As many tasks, and Airflow's own trigger instead of a group."""

ONE = "bench_one"
"""A group of one event."""

PEERS = {
    "await_default": "bench_await_default",
    "await_best": "bench_await_best",
    "sqs_default": "bench_sqs_default",
    "sqs_best": "bench_sqs_best",
    "reschedule": "bench_reschedule",
}
"""The DAGs of one of Airflow's own sensors each."""

AWAIT_CONNECTIONS = 16

DAGS = [*GROUPS.values(), CROWD, IDLE, ONE, *PEERS.values()]


def await_connection(number: int) -> str:
    """The id of an Airflow connection with a Kafka consumer group of its own."""
    return f"bench_await_{number}"


def body_of(run_id: str, event: str) -> dict[str, object]:
    """A message as these DAGs want it: what decides, and as much again that does not."""
    return {
        "run": run_id,
        "event": event,
        "table": "orders",
        "rows": 12345,
        "status": "COMPLETE",
        "source": {"system": "erp", "region": "eu-west-1"},
    }


def matches(message: object, *, run_id: str) -> object:
    """The function that AwaitMessageSensor is given: the event's name when the message is for this run."""
    import json

    value = message.value()  # type: ignore[attr-defined]
    read = json.loads(value) if value else {}
    return read.get("event") if read.get("run") == run_id else None
