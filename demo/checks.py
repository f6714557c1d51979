"""What must be true at the end, one by one, each with what was there instead."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

from demo.brokers import Brokers
from demo.story import EVENTS, Step, closed_books, payloads, unmatched_in_queue
from demo.watch import CLOSE, DAG_ID, SENSOR, Watch, marker

__all__ = ["Check", "Sent", "all_checks"]

_QUEUE_SHOWS_WITHIN = 20.0
_PLACES = {"orders": "kafka etl-finish ", "stock": "sqs stock-events ", "shifts": "mqtt plant/hall-1/shift-end "}


class Sent(NamedTuple):
    """A message that was sent, and when (seconds since the epoch)."""

    step: Step
    at: float


class Check(NamedTuple):
    """One promise, and whether it was kept."""

    promise: str
    kept: bool
    seen: str


def all_checks(watch: Watch, brokers: Brokers, day: date, sent: Sequence[Sent]) -> Iterator[Check]:
    """Look at everything that was promised."""
    story = [one.step for one in sent]
    yield from _states(watch)
    yield from _order(watch, sent)
    yield from _workers(watch)
    yield from _recorded(watch, story)
    yield from _unmatched(watch, brokers, story)
    yield _equal("the task behind the group worked on the payloads", watch.xcom(CLOSE), closed_books(day, story))


def _facts(xcom: Any) -> list[dict[str, Any]]:
    """What a marker holds, without the receipt by which a queue could be told of it once more."""
    messages = (xcom or {}).get("messages") or []
    return [{name: value for name, value in one.items() if name != "receipt"} for one in messages]


def _equal(promise: str, seen: Any, wanted: Any) -> Check:
    return Check(promise, seen == wanted, "" if seen == wanted else f"{seen!r}, not {wanted!r}")


def _states(watch: Watch) -> Iterator[Check]:
    wanted = dict.fromkeys((SENSOR, *map(marker, EVENTS), CLOSE), "success")
    yield _equal("every task of the run is success", watch.states(), wanted)


def _order(watch: Watch, sent: Sequence[Sent]) -> Iterator[Check]:
    tasks = {marker(event) for event in EVENTS}
    changes = [one for one in watch.airflow.history.changes(DAG_ID, watch.run_id) if one.task_id in tasks]
    wanted = [(marker(event), "success") for event in EVENTS]
    seen = [(change.task_id, change.state) for change in changes]
    yield _equal("the markers turned one at a time, in the order of the messages, each once", seen, wanted)
    bounds = [one.at for one in sent] + [float("inf")]
    early = []
    for place, (step, at) in enumerate(sent):
        turned = watch.turned(marker(step.event)) if step.event and step.completes else None
        if turned is not None and not at <= turned <= bounds[place + 1]:
            early.append(f"{step.event} turned {turned - at:+.3f} s from its message")
    yield Check("each marker turned behind its message and before the next one was sent", not early, "; ".join(early))
    deferred, ended = watch.turned(SENSOR, "deferred"), watch.turned(SENSOR)
    inside = bool(deferred and ended and all(deferred < change.at < ended for change in changes))
    yield Check("they turned while the sensor was deferred", inside, f"{watch.changes(SENSOR)}, {changes}")
    started = watch.turned(CLOSE, "running")
    behind = bool(started and changes and started > changes[-1].at)
    yield Check("the task behind the group started when all were there", behind, f"{watch.changes(CLOSE)}, {changes}")


def _workers(watch: Watch) -> Iterator[Check]:
    starts = dict(watch.airflow.history.worker_starts(DAG_ID, watch.run_id))
    promise = "no worker was started for the sensor and its markers, one for the task behind"
    yield _equal(promise, starts, {CLOSE: 1})


def _recorded(watch: Watch, story: Sequence[Step]) -> Iterator[Check]:
    wanted = payloads(story)
    yield _equal("each marker's XCom is its message's payload", {e: watch.xcom(marker(e)) for e in EVENTS}, wanted)
    for event in EVENTS:
        note = watch.note(marker(event))
        last = [step for step in story if step.event == event][-1]
        fits = note.startswith(_PLACES[event]) and last.body.decode() in note
        yield Check(f"the note of {event} says where its message came from and shows it", fits, repr(note))
    facts = {event: _facts(watch.xcom(marker(event), "event")) for event in EVENTS}
    result = watch.xcom(SENSOR) or {}
    listed = {event: found if isinstance(found, list) else [found] for event, found in result.items()}
    yield _equal("the sensor's XCom says of each event what arrived", listed, facts)
    fields = {"source", "stream", "position", "id", "timestamp", "received_at"}
    whole = all(fields == set(one) for found in listed.values() for one in found if isinstance(one, dict))
    yield Check("with source, stream, position, id and times", whole and set(listed) == set(EVENTS), repr(listed))


def _unmatched(watch: Watch, brokers: Brokers, story: Sequence[Step]) -> Iterator[Check]:
    wanted = unmatched_in_queue(story)
    promise = "the queue keeps the message that nobody wanted, and no other"
    left = _until(lambda: brokers.left_in_queue(), lambda found: found == wanted)
    kept = brokers.kept_in_queue()
    yield Check(promise, left == wanted and kept == len(wanted), f"{left!r}, {kept} in all")
    unreadable = next(step for step in story if not _is_json(step.body))
    lines = [line for line in watch.log(SENSOR).splitlines() if unreadable.where in line and "@" in line]
    promise = "the sensor's log names the message that is not JSON"
    named = any("JSON" in line for line in lines)
    yield Check(promise, named, "\n".join(lines))


def _until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """What ``look`` gives when it is good, or at last."""
    deadline = time.monotonic() + _QUEUE_SHOWS_WITHIN
    while True:
        found = look()
        if good(found) or time.monotonic() > deadline:
            return found


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
