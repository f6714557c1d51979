"""One group's part of the ledger in a real Airflow: what its markers hold, and what becomes of it.

Reading is done here, writing by :mod:`event_triggers.airflow_routed` and :mod:`event_triggers.airflow_public`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio

from event_triggers.airflow_desk import END_STATES, Desk
from event_triggers.airflow_public import PublicWriter
from event_triggers.airflow_routed import RoutedWriter
from event_triggers.airflow_series import Series
from event_triggers.errors import AirflowApiError
from event_triggers.flag import Flag
from event_triggers.ledger import Arrival, Book, GroupRef, Received, over_round
from event_triggers.marking import Mark
from event_triggers.marking_route import RouteRefused
from event_triggers.marks import FACTS_KEY, GroupMarkers
from event_triggers.patience import ASK_AGAIN, Patience
from event_triggers.xcoms import MarkerKey

__all__ = ["ASK_AGAIN", "AirflowBook"]

_KEPT = "candidate_"
_DECIDED = ("failed", "skipped", "removed")


class AirflowBook(Book):
    """The markers of one group."""

    def __init__(
        self, desk: Desk, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> None:
        self._desk = desk
        self._group = group
        self._markers = markers
        self._states: dict[str, str] = {}
        self._rounds: dict[str, str] = {}
        self._news: dict[str, str] = {}
        self._changed = Flag()
        self._patience = Patience(desk.clock, tell)
        self._public = PublicWriter(desk, self._rounds, self._patience)
        self._writer = RoutedWriter(desk, self._public, self._patience, self.changed)

    @property
    def keys(self) -> dict[str, MarkerKey]:
        """Each event's marker. Made when asked for: they are seldom needed, and take as much memory as the rest."""
        return {event: self._of_group(task_id) for event, task_id in self._markers.items()}

    def _key(self, event: str) -> MarkerKey:
        return self._of_group(self._markers[event])

    def _of_group(self, task_id: str) -> MarkerKey:
        return MarkerKey(self._group.dag_id, self._group.run_id, task_id, self._group.map_index)

    @property
    def trouble(self) -> str | None:
        return self._patience.trouble or self._desk.api.trouble

    # ------------------------------------------------------------------ reading

    async def load(self) -> dict[str, str | None]:
        found = await self._patience.call(self._own_markers)
        self._rounds.clear()
        self._rounds.update({event: str(row["id"]) for event, row in found.items()})
        states = {event: found[event]["state"] if event in found else None for event in self._markers}
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
        self._patience.say(f"marks made by hand are not seen, because {error}", "look", level=logging.WARNING)

    async def _own_markers(self) -> dict[str, dict[str, Any]]:
        found = await self._over_the_route()
        if found is None:
            rows = await self._desk.markers(self._group.dag_id, self._group.run_id)
            found = {row["task_id"]: row for row in rows if row["map_index"] == self._group.map_index}
        return {event: found[task_id] for event, task_id in self._markers.items() if task_id in found}

    async def _over_the_route(self) -> dict[str, dict[str, Any]] | None:
        """The markers by their task ids; ``None`` where the public API must be asked."""
        group = self._group
        asked = GroupMarkers(group.dag_id, group.run_id, list(self._markers.values()), group.map_index)
        try:
            found = await self._desk.reader.read(asked)
        except RouteRefused:
            return None
        return {one.task_id: {"id": one.id, "state": one.state} for one in found}

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
        key, round_ = self._key(event), self._rounds.get(event, "")
        series = await self._patience.call(lambda: Series(self._desk.xcoms, key, round_=round_, wanted=0).open())
        if series.exists:
            self._public.begun(event)
        self._writer.holds(event, series.held)
        return series.held

    async def sensor_state(self) -> str | None:
        key = self._of_group(self._group.task_id)
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
        now = await self._writer.record(self._key(arrival.event), arrival)
        if len(now) >= arrival.wanted and self._states.get(arrival.event) not in _DECIDED:
            self._states[arrival.event] = "success"
        held[arrival.event] = tuple(replace(one, payload=None, note="") for one in now)

    async def end(self, event: str, state: str, note: str) -> None:
        self._states[event] = state
        await self._writer.mark(event, Mark(self._key(event), note, state))

    async def join(self, task_id: str) -> None:
        await self._writer.mark(None, Mark(self._of_group(task_id)), anyway=True)

    # ------------------------------------------------------------------ what may count

    async def keep(self, event: str, messages: Sequence[Received]) -> None:
        key, round_ = self._key(event), self._rounds.get(event, "")
        for one in messages:
            # One XCom each, named by its message: nothing is ever written over.
            name = _KEPT + hashlib.sha256(one.id.encode()).hexdigest()[:32]
            value = {"round": round_, "message": one.facts(), "note": one.note, "payload": one.payload}
            await self._patience.call(lambda name=name, value=value: self._desk.xcoms.create(key, name, value))  # type: ignore[misc]

    async def kept(self, event: str) -> list[Received]:
        key = self._key(event)
        facts = await self._patience.call(lambda: self._desk.xcoms.get(key, FACTS_KEY))
        over = over_round(facts, self._rounds.get(event, ""))
        names = await self._patience.call(lambda: self._desk.xcoms.names(key))
        found: list[Received] = []
        for name in (name for name in names if name.startswith(_KEPT)):
            value = await self._patience.call(lambda name=name: self._desk.xcoms.get(key, name))  # type: ignore[misc]
            if isinstance(value, dict) and value.get("round") != over:
                one = Received.from_facts(value["message"])
                found.append(replace(one, payload=value["payload"], note=value["note"]))
        return sorted(found, key=lambda one: one.received_at)
