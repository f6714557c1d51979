"""What one mark changes at a marker, worked out from what the database holds: no database, no request in here.

Invariants, the same as those of the public way (:mod:`event_triggers.airflow_book`), so that both may write one marker:

* What is recorded is added to what the marker holds, and taken from nothing. A message that it holds counts once.
* Of a marker that awaits several, what is added is appended to its series (:mod:`event_triggers.airflow_series`) as
  well, and what others have appended there is taken in.
* A state that somebody has decided on is left as it is: ``success``, ``failed``, ``skipped``, and ``removed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from event_triggers.ledger import Arrival, Received, facts_of, held_by, merged
from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY, Answer, Mark, SentMessage, series_key
from event_triggers.notes import NOTE_LIMIT, note_again

__all__ = ["DECIDED", "Change", "Marker", "settle"]

DECIDED = frozenset({"success", "failed", "skipped", "removed"})


@dataclass(slots=True)
class Marker:
    """What the database holds of a task instance; ``xcoms`` by key, as far as they matter."""

    id: str
    state: str | None
    xcoms: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """What is to be written: XComs, a note and a state where they are not ``None``; and what is answered."""

    answer: Answer
    xcoms: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    state: str | None = None


def settle(mark: Mark, marker: Marker) -> Change:
    """What ``mark`` changes at ``marker``."""
    if mark.messages is None:
        free = marker.state not in DECIDED or (mark.anyway and marker.state not in ("removed", mark.state))
        return _change(marker, mark.state if free else None, mark.note if free else None)
    listed = held_by(marker.xcoms.get(FACTS_KEY), marker.id)
    held = _with_series(listed, marker, mark.wanted) if mark.wanted > 1 else listed
    arrival = Arrival("", tuple(_received(one) for one in mark.messages), mark.wanted)
    now = merged(held, arrival)
    new = now[len(held) :]
    complete = len(now) >= mark.wanted
    free = marker.state not in DECIDED
    note = new[-1].note if new else note_again(now, mark.wanted) if complete else None
    change = _change(marker, "success" if complete and free else None, note if free else None)
    if len(now) > len(listed):
        change.xcoms = _xcoms(mark, marker, listed, held, now)
    _answer_held(change.answer, mark, now)
    return change


def _change(marker: Marker, state: str | None, note: str | None) -> Change:
    state = None if state == marker.state else state
    answer = Answer(state=state or marker.state)
    return Change(answer, note=(note or "")[:NOTE_LIMIT] or None, state=state)


def _received(sent: SentMessage) -> Received:
    return replace(Received.from_facts(sent.facts), payload=sent.payload, note=sent.note)


def _with_series(listed: Sequence[Received], marker: Marker, wanted: int) -> tuple[Received, ...]:
    held = tuple(listed)
    while len(held) < wanted and (more := marker.xcoms.get(series_key(marker.id, len(held)))):
        held += tuple(Received.from_facts(one) for one in more["messages"])
    return held


def _xcoms(
    mark: Mark, marker: Marker, listed: Sequence[Received], held: Sequence[Received], now: Sequence[Received]
) -> dict[str, Any]:
    facts = facts_of(now, mark.wanted, marker.id)
    if mark.wanted == 1:
        return {PAYLOAD_KEY: now[0].payload, FACTS_KEY: facts}
    xcoms: dict[str, Any] = {}
    new = now[len(held) :]
    if new:
        appended = {"messages": [one.stored() for one in new], "payloads": [one.payload for one in new]}
        xcoms[series_key(marker.id, len(held))] = appended
    xcoms[PAYLOAD_KEY] = _payloads(marker, listed, now, new)
    xcoms[FACTS_KEY] = facts
    return xcoms


def _payloads(
    marker: Marker, listed: Sequence[Received], now: Sequence[Received], new: Sequence[Received]
) -> list[Any]:
    """The payloads of all; more than is listed may be there, of a recording that was cut off, or less."""
    there = marker.xcoms.get(PAYLOAD_KEY)
    payloads = there[: len(listed)] if isinstance(there, list) else []
    by_id = {one.id: one.payload for one in new}
    for key, value in marker.xcoms.items():
        if key.startswith(f"{FACTS_KEY}_{marker.id}_"):
            by_id.update({m["id"]: p for m, p in zip(value["messages"], value["payloads"], strict=True)})
    return payloads + [by_id.get(one.id) for one in now[len(payloads) :]]


def _answer_held(answer: Answer, mark: Mark, now: Sequence[Received]) -> None:
    sent = {one.facts.get("id"): number for number, one in enumerate(mark.messages or ())}
    if 0 < mark.known <= len(now) and now[mark.known - 1].id == mark.last:
        answer.first = mark.known
    answer.held = [sent[one.id] if one.id in sent else one.stored() for one in now[answer.first :]]
