"""One group's part of the ledger in a real Airflow.

Flow of one recording: payload, facts, then the mark with its note (or, while more is wanted, the note alone). The
facts are the point at which a message counts as recorded. Where XComs exist already they are read first, and what
they hold is kept. Where several messages are awaited, what arrives is appended to a series that all triggerers share
(:mod:`event_triggers.airflow_series`) before the XComs are written from it.

Invariants: a marker's XComs are written by one task at a time in this process. Against another triggerer that writes
the same marker at the same time a series agrees. Of a marker that awaits one message there is no lock: when two
triggerers find two messages for it in the same tenth of a second, both are acknowledged, and the later one stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.airflow_series import Series
from event_triggers.clock import Clock
from event_triggers.errors import AirflowApiError
from event_triggers.flag import Flag
from event_triggers.ledger import Arrival, Book, GroupRef, Received, as_text, facts_of, held_by, merged, over_round
from event_triggers.marking import Mark, MarkingLine
from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY
from event_triggers.notes import note_again
from event_triggers.text import shown
from event_triggers.xcoms import MarkerKey, XComs

__all__ = ["ASK_AGAIN", "END_STATES", "FACTS_KEY", "PAYLOAD_KEY", "AirflowBook", "Desk"]

ASK_AGAIN = 30.0
"""Seconds until something that Airflow refused is tried again."""
END_STATES = ("success", "failed", "skipped", "removed")
_KEPT = "candidate_"
MARKER_OPERATOR = "EventMarker"
_PAGE = 100
_TOO_LARGE, _FAILED_OVER = 413, 500
_PAYLOAD_REFUSED = (400, _TOO_LARGE, 422, _FAILED_OVER)
"""How Airflow, or what stands before it, refuses a value for good; 500 when it fails over this request alone."""

T = TypeVar("T")


@dataclass
class Desk:
    """What all books of one triggerer use."""

    api: AirflowApi
    marks: MarkingLine
    xcoms: XComs
    clock: Clock
    _locks: WeakValueDictionary[MarkerKey, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def lock(self, key: MarkerKey) -> asyncio.Lock:
        """Whoever holds it may write the XComs of this marker."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def markers(self, dag_id: str, run_id: str, **filters: Any) -> list[dict[str, Any]]:
        """The marker task instances of a run, page by page; ``~`` stands for all.

        :raises AirflowApiError: when Airflow refuses.
        """
        path = path_of("dags", dag_id, "dagRuns", run_id, "taskInstances")
        rows: list[dict[str, Any]] = []
        while True:
            params = {"operator": MARKER_OPERATOR, "limit": _PAGE, "offset": len(rows), "order_by": "id", **filters}
            answer = await self.api.call("GET", path, params=params)
            page = answer["task_instances"]
            rows += page
            if not page or len(rows) >= answer["total_entries"]:
                return rows


class AirflowBook(Book):
    """The markers of one group."""

    def __init__(
        self, desk: Desk, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> None:
        self._desk = desk
        self._group = group
        self._tell = tell
        self._markers = markers
        self._states: dict[str, str] = {}
        self._rounds: dict[str, str] = {}
        self._begun: dict[str, None] = {}
        """Events whose XComs exist."""
        self._series: dict[str, Series] = {}
        self._news: dict[str, str] = {}
        self._changed = Flag()
        self._said: dict[object, None] = {}
        self._troubles: dict[object, str] = {}

    @property
    def keys(self) -> dict[str, MarkerKey]:
        """Each event's marker. Made when asked for: they are seldom needed, and take as much memory as the rest."""
        group = self._group
        return {
            event: MarkerKey(group.dag_id, group.run_id, task_id, group.map_index)
            for event, task_id in self._markers.items()
        }

    @property
    def trouble(self) -> str | None:
        return next(iter(self._troubles.values()), self._desk.api.trouble)

    # ------------------------------------------------------------------ reading

    async def load(self) -> dict[str, str | None]:
        found = await self._patiently(self._own_markers)
        self._rounds = {event: str(row["id"]) for event, row in found.items()}
        states = {event: found[event]["state"] if event in found else None for event in self.keys}
        self._states = {event: state for event, state in states.items() if state in END_STATES}
        return states

    async def look(self) -> None:
        """Ask for this run's markers alone.

        :raises AirflowApiError: when Airflow refuses.
        """
        found = await self._own_markers()
        self.changed({event: row["state"] for event, row in found.items() if row["state"] in END_STATES})

    def cannot_look(self, error: AirflowApiError) -> None:
        """Looking was refused; the group's log says so, once."""
        self._say(f"marks made by hand are not seen, because {error}", "look", level=logging.WARNING)

    async def _own_markers(self) -> dict[str, dict[str, Any]]:
        rows = await self._desk.markers(self._group.dag_id, self._group.run_id)
        found = {row["task_id"]: row for row in rows if row["map_index"] == self._group.map_index}
        return {event: found[key.task_id] for event, key in self.keys.items() if key.task_id in found}

    def changed(self, states: Mapping[str, str]) -> None:
        """Take in what a look has shown."""
        news = {event: state for event, state in states.items() if self._states.get(event) != state}
        if news:
            self._states.update(news)
            self._news.update(news)
            self._changed.set()

    async def marked(self) -> dict[str, str]:
        while not self._news:
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, {}
        return news

    async def received(self, event: str) -> tuple[Received, ...]:
        round_ = self._rounds.get(event, "")
        series = await self._patiently(
            lambda: Series(self._desk.xcoms, self.keys[event], round_=round_, wanted=0).open()
        )
        if series.exists:
            self._begun[event] = None
        return series.held

    async def sensor_state(self) -> str | None:
        key = MarkerKey(self._group.dag_id, self._group.run_id, self._group.task_id, self._group.map_index)
        try:
            state = (await self._desk.api.call("GET", key.instance))["state"]
        except AirflowApiError as error:
            if error.status != 404:
                raise
            return "removed"
        return None if state is None else str(state)

    # ------------------------------------------------------------------ writing

    async def record(self, arrivals: Sequence[Arrival]) -> Mapping[str, tuple[Received, ...]]:
        held: dict[str, tuple[Received, ...]] = {}
        async with anyio.create_task_group() as group:
            for arrival in arrivals:
                name = f"event_triggers: record {arrival.event}"
                group.start_soon(self._record_one, arrival, held, name=name)
        return held

    async def _record_one(self, arrival: Arrival, held: dict[str, tuple[Received, ...]]) -> None:
        key = self.keys[arrival.event]
        async with self._desk.lock(key):
            now = await self._patiently(lambda: self._store(arrival))
        note = arrival.messages[-1].note if arrival.messages else note_again(now, arrival.wanted)
        if len(now) >= arrival.wanted:
            await self._patiently(lambda: self._mark(Mark(key, note)))
            self._states[arrival.event] = "success"
        elif note:
            await self._patiently(lambda: self._desk.api.call("PATCH", key.instance, json={"note": note}))
        held[arrival.event] = tuple(replace(one, payload=None, note="") for one in now)

    async def _mark(self, mark: Mark) -> None:
        try:
            await self._desk.marks.mark(mark)
        except AirflowApiError as error:
            # What is no longer in the DAG cannot be marked, and nobody looks at it.
            if error.status != 404 or (await self._desk.api.call("GET", mark.key.instance))["state"] != "removed":
                raise

    async def _store(self, arrival: Arrival) -> tuple[Received, ...]:
        """Write both XComs; give what the marker holds then."""
        if arrival.wanted > 1:
            return await self._store_several(arrival)
        event, key, xcoms = arrival.event, self.keys[arrival.event], self._desk.xcoms
        round_ = self._rounds.get(event, "")
        now = merged((), arrival)
        if event in self._begun or not now or not await self._fit(event, now[0], partial(self._create_payload, key)):
            held = held_by(await xcoms.get(key, FACTS_KEY), round_)
            if held or not now:
                return held
            await self._fit(event, now[0], partial(self._replace_payload, key))
        self._begun[event] = None
        facts = facts_of(now, arrival.wanted, round_)
        if not await xcoms.create(key, FACTS_KEY, facts):
            await xcoms.replace(key, FACTS_KEY, facts)
        return now

    async def _create_payload(self, key: MarkerKey, one: Received) -> bool:
        return await self._desk.xcoms.create(key, PAYLOAD_KEY, one.payload)

    async def _replace_payload(self, key: MarkerKey, one: Received) -> bool:
        await self._desk.xcoms.replace(key, PAYLOAD_KEY, one.payload)
        return True

    async def _store_several(self, arrival: Arrival) -> tuple[Received, ...]:
        event = arrival.event
        series = self._series.get(event)
        if series is None:
            round_ = self._rounds.get(event, "")
            series = Series(self._desk.xcoms, self.keys[event], round_=round_, wanted=arrival.wanted)
            self._series[event] = await series.open()
        together = True
        while new := merged(series.held, arrival)[len(series.held) :]:
            try:
                if together and len(new) > 1:
                    await series.append(new)
                else:
                    await self._fit(event, new[0], partial(_append_one, series))
            except AirflowApiError as error:
                if not together or len(new) == 1 or error.status not in _PAYLOAD_REFUSED:
                    raise
                # One by one, since Airflow does not say over which of them: the others stay as they came.
                together = False
        await self._write_lists(event, series)
        return series.held

    async def _write_lists(self, event: str, series: Series) -> None:
        try:
            await series.write_lists()
        except AirflowApiError as error:
            if error.status not in _PAYLOAD_REFUSED:
                raise
            # Each was taken by itself, so all together are too much.
            unlisted = series.unlisted()
            for one in unlisted:
                self._say_refused(event, one, True, error)
            await series.write_lists([_left_out(one, str(error)) for one in unlisted])

    async def _fit(self, event: str, one: Received, write: Callable[[Received], Awaitable[bool]]) -> bool:
        """Write one payload, in the first form that is not refused; gives what ``write`` gives.

        Airflow reserves some keys, its database may refuse a value, a proxy may limit sizes. The event has come all the
        same: what is refused as it came is stored as text, and what is refused as text is left out.
        """
        payload, forms = one.payload, [_in_text, _left_out]
        while True:
            try:
                return await write(replace(one, payload=payload))
            except AirflowApiError as error:
                if error.status not in _PAYLOAD_REFUSED or not forms:
                    raise
                # Text is longer still, so it does not help what is too large.
                form = forms.pop(0) if error.status != _TOO_LARGE else forms.pop()
                if form is _left_out:
                    forms.clear()
                self._say_refused(event, one, form is _left_out, error)
                payload = form(one, str(error))

    def _say_refused(self, event: str, one: Received, left_out: bool, error: AirflowApiError) -> None:
        what = "left out" if left_out else "stored as text, not as it came"
        where = f"{one.source} {shown(one.stream)} {shown(one.position)}"
        loud = left_out or error.status == _FAILED_OVER
        text = f"event {event}: the payload of {where} is {what}, because {error}"
        self._say(text, level=logging.ERROR if loud else logging.WARNING)

    async def end(self, event: str, state: str, note: str) -> None:
        await self._patiently(lambda: self._mark(Mark(self.keys[event], note, state)))
        self._states[event] = state

    async def join(self, task_id: str) -> None:
        key = MarkerKey(self._group.dag_id, self._group.run_id, task_id, self._group.map_index)
        await self._patiently(lambda: self._mark(Mark(key)))

    # ------------------------------------------------------------------ what may count

    async def keep(self, event: str, messages: Sequence[Received]) -> None:
        key, round_ = self.keys[event], self._rounds.get(event, "")
        for one in messages:
            # One XCom each, named by its message: nothing is ever written over.
            name = _KEPT + hashlib.sha256(one.id.encode()).hexdigest()[:32]
            value = {"round": round_, "message": one.facts(), "note": one.note, "payload": one.payload}
            await self._patiently(lambda name=name, value=value: self._desk.xcoms.create(key, name, value))  # type: ignore[misc]

    async def kept(self, event: str) -> list[Received]:
        key = self.keys[event]
        facts = await self._patiently(lambda: self._desk.xcoms.get(key, FACTS_KEY))
        over = over_round(facts, self._rounds.get(event, ""))
        names = await self._patiently(lambda: self._desk.xcoms.names(key))
        found: list[Received] = []
        for name in (name for name in names if name.startswith(_KEPT)):
            value = await self._patiently(lambda name=name: self._desk.xcoms.get(key, name))  # type: ignore[misc]
            if isinstance(value, dict) and value.get("round") != over:
                one = Received.from_facts(value["message"])
                found.append(replace(one, payload=value["payload"], note=value["note"]))
        return sorted(found, key=lambda one: one.received_at)

    # ------------------------------------------------------------------ patience

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until Airflow does not refuse: a right may be granted, a marker may still be expanded."""
        try:
            while True:
                try:
                    return await call()
                except AirflowApiError as error:
                    self._troubles[call] = str(error)
                    # A right that is missing is missing for every marker; the log says it once.
                    about = error.status if error.status in (401, 403) else str(error)
                    self._say(
                        f"{error}. Tried again every {ASK_AGAIN:.0f} s; nothing is acknowledged meanwhile.", about
                    )
                await self._desk.clock.sleep(ASK_AGAIN)
        finally:
            self._troubles.pop(call, None)

    def _say(self, text: str, about: object = None, *, level: int = logging.ERROR) -> None:
        about = text if about is None else about
        if about not in self._said:
            self._said[about] = None
            self._tell(level, text)


async def _append_one(series: Series, one: Received) -> bool:
    await series.append([one])
    return True


def _in_text(one: Received, reason: str) -> dict[str, Any]:
    return as_text(one.payload, reason)


def _left_out(one: Received, reason: str) -> dict[str, Any]:
    return {"refused": reason[:500], "source": one.source, "stream": one.stream, "position": one.position}
