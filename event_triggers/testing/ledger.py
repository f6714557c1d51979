"""A ledger in memory: what a wait records, without an Airflow.

Flow: as in a real Airflow, one recording goes in steps (payload, facts, mark), and between two of them the recorder
can be cancelled, or be made to wait by :meth:`MemoryLedger.pause`. All books of one ledger share what is kept, so a
second wait of a group finds what the first has recorded.

Invariants: facts are stored after their payload, and a marker is ``success`` only after its facts. A book hears of
every state that its markers come into, of those made through itself too, as the looks at a real Airflow may report
them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from event_triggers.ledger import Arrival, Book, GroupRef, Ledger, Received, facts_of, held_by, merged, over_round

__all__ = ["LedgerEntry", "MemoryLedger"]

_END_STATES = ("success", "failed", "skipped", "removed")


class LedgerEntry(NamedTuple):
    """One thing that happened to a marker.

    :param kind: ``"recorded"`` (its facts were stored), ``"marked"`` or ``"by hand"``.
    :param what: the ids of the messages that it holds then, or the state.
    """

    kind: str
    group: GroupRef
    event: str
    what: Any


@dataclass(eq=False)
class _Marker:
    state: str | None = None
    round: int = 1
    note: str | None = None
    payload: Any = None
    facts: dict[str, Any] | None = None
    kept: dict[str, tuple[int, Received]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryLedger(Ledger):
    """Keeps states, notes, payloads and facts of markers in memory.

    Everything is read and changed by ``(group, event)``.
    """

    def __init__(self) -> None:
        self.history: list[LedgerEntry] = []
        """What happened, in order."""
        self.sensor_states: dict[GroupRef, str | None] = {}
        """What :meth:`Book.sensor_state` says; a sensor that is not in it is ``"deferred"``."""
        self._markers: defaultdict[tuple[GroupRef, str], _Marker] = defaultdict(_Marker)
        self._books: dict[_MemoryBook, None] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._reason: str | None = None
        self._waiting = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def open(
        self, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> AsyncIterator[Book]:
        await self.step()
        book = _MemoryBook(self, group, markers)
        self._books[book] = None
        try:
            yield book
        finally:
            del self._books[book]

    @property
    def trouble(self) -> str | None:
        return self._reason

    # ------------------------------------------------------------------ for tests

    def pause(self, reason: str = "the ledger is paused") -> None:
        """Let every call wait, as if Airflow were away, until :meth:`resume`.

        :param reason: what :attr:`Book.trouble` says meanwhile.
        """
        self._reason = reason
        self._open.clear()

    def resume(self) -> None:
        """Let those that wait go on."""
        self._reason = None
        self._open.set()

    async def wait_for_waiting(self, count: int = 1) -> None:
        """Return once at least ``count`` calls wait for :meth:`resume`. Bound it yourself."""
        while self._waiting < count:
            await self._next_change()

    async def wait_for_recorded(self, count: int = 1) -> None:
        """Return once at least ``count`` recordings have been stored. Bound it yourself."""
        while sum(entry.kind == "recorded" for entry in self.history) < count:
            await self._next_change()

    async def wait_for_books(self, count: int = 1) -> None:
        """Return once at least ``count`` books are open. Bound it yourself."""
        while len(self._books) < count:
            await self._next_change()

    def mark_by_hand(self, group: GroupRef, event: str, state: str) -> None:
        """A person puts a marker into ``success``, ``failed`` or ``skipped``."""
        self._set_state("by hand", group, event, state)

    def clear(self, group: GroupRef, event: str) -> None:
        """A person clears a marker: its state is ``None`` again, its XComs and note stay."""
        marker = self.marker(group, event)
        marker.state = None
        marker.round += 1

    def state(self, group: GroupRef, event: str) -> str | None:
        """The state of a marker."""
        return self.marker(group, event).state

    def note(self, group: GroupRef, event: str) -> str | None:
        """The note of a marker."""
        return self.marker(group, event).note

    def payload(self, group: GroupRef, event: str) -> Any:
        """The payload XCom of a marker."""
        return self.marker(group, event).payload

    def facts(self, group: GroupRef, event: str) -> dict[str, Any] | None:
        """The facts XCom of a marker."""
        return self.marker(group, event).facts

    def ids(self, group: GroupRef, event: str) -> list[str]:
        """The ids of the messages that a marker holds."""
        return [message["id"] for message in (self.facts(group, event) or {}).get("messages", ())]

    # ------------------------------------------------------------------ for books

    async def step(self) -> None:
        """A call to Airflow: waits while it is paused, and lets others run."""
        self._waiting += 1
        self._tell_watchers()
        try:
            await asyncio.sleep(0)
            await self._open.wait()
        finally:
            self._waiting -= 1

    def marker(self, group: GroupRef, event: str) -> _Marker:
        """What is kept of one marker."""
        return self._markers[group, event]

    def recorded(self, group: GroupRef, event: str, facts: dict[str, Any]) -> None:
        """These facts are stored."""
        self.marker(group, event).facts = facts
        self.history.append(LedgerEntry("recorded", group, event, tuple(one["id"] for one in facts["messages"])))
        self._tell_watchers()

    def marked(self, group: GroupRef, event: str, state: str = "success") -> None:
        """A marker (or the group's join, by its task id) comes into this state; one that is in it stays so."""
        if self.state(group, event) != state:
            self._set_state("marked", group, event, state)

    def _set_state(self, kind: str, group: GroupRef, event: str, state: str) -> None:
        self.marker(group, event).state = state
        self.history.append(LedgerEntry(kind, group, event, state))
        for book in self._books:
            if book.group == group:
                book.changed(event, state)
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        self._changed.set()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class _MemoryBook(Book):
    def __init__(self, ledger: MemoryLedger, group: GroupRef, markers: Mapping[str, str]) -> None:
        self._ledger = ledger
        self.group = group
        self._events = list(markers)
        self._news: dict[str, str] = {}
        self._changed = asyncio.Event()

    @property
    def trouble(self) -> str | None:
        return self._ledger.trouble

    def changed(self, event: str, state: str) -> None:
        """A marker has come into this state."""
        if event in self._events and state in _END_STATES:
            self._news[event] = state
            self._changed.set()

    async def load(self) -> dict[str, str | None]:
        await self._ledger.step()
        return {event: self._ledger.state(self.group, event) for event in self._events}

    async def received(self, event: str) -> tuple[Received, ...]:
        await self._ledger.step()
        return self._held(event)

    def _held(self, event: str) -> tuple[Received, ...]:
        marker = self._ledger.marker(self.group, event)
        return held_by(marker.facts, str(marker.round))

    async def record(self, arrivals: Sequence[Arrival]) -> Mapping[str, tuple[Received, ...]]:
        held = {}
        for arrival in arrivals:
            now = await self._store(arrival)
            marker = self._ledger.marker(self.group, arrival.event)
            await self._ledger.step()
            if arrival.messages:
                marker.note = arrival.messages[-1].note
            if len(now) >= arrival.wanted:
                self._ledger.marked(self.group, arrival.event)
            held[arrival.event] = tuple(replace(one, payload=None, note="") for one in now)
        return held

    async def _store(self, arrival: Arrival) -> tuple[Received, ...]:
        marker = self._ledger.marker(self.group, arrival.event)
        async with marker.lock:
            await self._ledger.step()
            held = self._held(arrival.event)
            now = merged(held, arrival)
            if len(now) > len(held):
                new = [one.payload for one in now[len(held) :]]
                before = marker.payload[: len(held)] if held and isinstance(marker.payload, list) else []
                marker.payload = [*before, *new] if arrival.wanted > 1 else new[-1]
                await self._ledger.step()
                self._ledger.recorded(self.group, arrival.event, facts_of(now, arrival.wanted, str(marker.round)))
        return now

    async def end(self, event: str, state: str, note: str) -> None:
        await self._ledger.step()
        self._ledger.marker(self.group, event).note = note
        self._ledger.marked(self.group, event, state)

    async def join(self, task_id: str) -> None:
        await self._ledger.step()
        self._ledger.marked(self.group, task_id)

    async def keep(self, event: str, messages: Sequence[Received]) -> None:
        await self._ledger.step()
        marker = self._ledger.marker(self.group, event)
        for one in messages:
            marker.kept.setdefault(one.id, (marker.round, one))

    async def kept(self, event: str) -> list[Received]:
        await self._ledger.step()
        marker = self._ledger.marker(self.group, event)
        over = over_round(marker.facts, str(marker.round))
        return [one for round_, one in marker.kept.values() if str(round_) != over]

    async def marked(self) -> dict[str, str]:
        while not self._news:
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, {}
        return news

    async def sensor_state(self) -> str | None:
        await self._ledger.step()
        return self._ledger.sensor_states.get(self.group, "deferred")
