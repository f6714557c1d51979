"""What is sent in one scenario, and in which order: all of it follows from the seed.

Every message has an id of its own in its payload. Half of them are awaited by exactly one event of one run; nobody
wants the other half: they name an event that does not exist, or a run that does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

__all__ = ["DAG_ID", "EVENTS", "QUEUE_PREFIX", "TOPIC", "Sending", "make_plan", "run_id_of"]

DAG_ID = "chaos"
TOPIC = "chaos"
QUEUE_PREFIX = "chaos-"
EVENTS = {
    "k_one": 1,
    "k_two": 1,
    "k_three": 1,
    "k_many": 5,
    "s_one": 1,
    "s_two": 1,
    "s_many": 3,
    "m_one": 1,
    "m_two": 1,
    "m_many": 5,
}
"""How many messages each event of a group wants; the first letter names the broker (Kafka, SQS, MQTT)."""

_BROKERS = {"k": "kafka", "s": "sqs", "m": "mqtt"}


@dataclass(frozen=True)
class Sending:
    """One message to send.

    :param run: the number of the run that it goes to, or almost goes to.
    :param event: the event that awaits it; ``None`` when nobody does.
    :param body: the JSON document to send.
    """

    broker: str
    run: int
    run_id: str
    event: str | None
    body: dict[str, Any]

    @property
    def id(self) -> str:
        """Its own name, in its payload."""
        return str(self.body["id"])


def run_id_of(prefix: str, number: int) -> str:
    """The run's id; the part before the dash names its scenario."""
    return f"{prefix}-{number:04}"


def make_plan(seed: int, prefix: str, runs: int, *, window: int) -> list[Sending]:
    """Everything to send, in order.

    :param runs: how many runs; each awaits 20 messages, and as many are sent in vain.
    :param window: from how many runs the next message is taken at random; when one has all, the next comes in.
    """
    rng = random.Random(f"{seed} {prefix}")
    waiting = list(range(runs))
    open_runs: list[tuple[int, list[str]]] = []
    order: list[Sending] = []
    while waiting or open_runs:
        while waiting and len(open_runs) < window:
            events = [event for event, count in EVENTS.items() for _ in range(count)]
            rng.shuffle(events)
            open_runs.append((waiting.pop(0), events))
        number, events = rng.choice(open_runs)
        pair = [_awaited(rng, prefix, number, events.pop()), _unwanted(rng, prefix, number)]
        rng.shuffle(pair)
        order += pair
        open_runs = [(one, rest) for one, rest in open_runs if rest]
    return order


def _awaited(rng: random.Random, prefix: str, number: int, event: str) -> Sending:
    run_id = run_id_of(prefix, number)
    return Sending(_BROKERS[event[0]], number, run_id, event, _body(rng, run_id, event))


def _unwanted(rng: random.Random, prefix: str, number: int) -> Sending:
    run_id = run_id_of(prefix, number)
    event = rng.choice([event for event, count in EVENTS.items() for _ in range(count)])
    near_misses = [(run_id, event[:-1]), (run_id, f"{event}_"), (f"{run_id}0", event), (run_id.upper(), event)]
    return Sending(_BROKERS[event[0]], number, run_id, None, _body(rng, *rng.choice(near_misses)))


def _body(rng: random.Random, run_id: str, event: str) -> dict[str, Any]:
    return {"id": f"{rng.getrandbits(64):016x}", "run": run_id, "event": event, "amount": rng.randrange(10**6)}
