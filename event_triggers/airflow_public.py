"""Writing markers through Airflow's public REST API, which works wherever a token does.

Flow of one recording: payload, facts, then the mark with its note (or, while more is wanted, the note alone). The
facts are the point at which a message counts as recorded. Where XComs exist already they are read first, and what
they hold is kept. Where several messages are awaited, what arrives is appended to a series that all triggerers share
(:mod:`event_triggers.airflow_series`) before the XComs are written from it.

Invariants: a marker's XComs are written by one task at a time in this process. Against another triggerer that writes
the same marker at the same time a series agrees. Of a marker that awaits one message there is no lock: when two
triggerers find two messages for it in the same tenth of a second, both are acknowledged, and the later one stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from event_triggers.airflow_desk import Desk
from event_triggers.airflow_series import Series
from event_triggers.errors import AirflowApiError
from event_triggers.fitting import PAYLOAD_REFUSED, Fitting, left_out, say_refused
from event_triggers.ledger import Arrival, Received, facts_of, held_by, merged
from event_triggers.marking import Mark
from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY
from event_triggers.notes import note_again
from event_triggers.patience import Patience
from event_triggers.xcoms import MarkerKey

__all__ = ["PublicWriter"]


class PublicWriter:
    """Writes the markers of one group.

    :param rounds: of each event, the round of its marker; the book keeps it up to date.
    """

    __slots__ = ("_begun", "_desk", "_patience", "_rounds", "_series")

    def __init__(self, desk: Desk, rounds: Mapping[str, str], patience: Patience) -> None:
        self._desk = desk
        self._rounds = rounds
        self._patience = patience
        self._begun: dict[str, None] = {}
        """Events whose XComs exist."""
        self._series: dict[str, Series] = {}

    def begun(self, event: str) -> None:
        """The XComs of this marker exist: somebody else has written them."""
        self._begun[event] = None
        self._series.pop(event, None)

    async def record(self, key: MarkerKey, arrival: Arrival) -> tuple[Received, ...]:
        """Store what has arrived and mark what is complete; gives what the marker holds then."""
        async with self._desk.lock(key):
            now = await self._patience.call(lambda: self._store(key, arrival))
        note = arrival.messages[-1].note if arrival.messages else note_again(now, arrival.wanted)
        if len(now) >= arrival.wanted:
            await self.mark(Mark(key, note))
        elif note:
            await self._patience.call(lambda: self._desk.api.call("PATCH", key.instance, json={"note": note}))
        return now

    async def mark(self, mark: Mark) -> None:
        """Bring a task instance into a state, however long it takes."""
        await self._patience.call(lambda: self._mark(mark))

    async def _mark(self, mark: Mark) -> None:
        try:
            await self._desk.marks.mark(mark)
        except AirflowApiError as error:
            # What is no longer in the DAG cannot be marked, and nobody looks at it.
            if error.status != 404 or (await self._desk.api.call("GET", mark.key.instance))["state"] != "removed":
                raise

    async def _store(self, key: MarkerKey, arrival: Arrival) -> tuple[Received, ...]:
        """Write both XComs; give what the marker holds then."""
        if arrival.wanted > 1:
            return await self._store_several(key, arrival)
        event, xcoms = arrival.event, self._desk.xcoms
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

    async def _store_several(self, key: MarkerKey, arrival: Arrival) -> tuple[Received, ...]:
        event = arrival.event
        series = self._series.get(event)
        if series is None:
            round_ = self._rounds.get(event, "")
            series = Series(self._desk.xcoms, key, round_=round_, wanted=arrival.wanted)
            self._series[event] = await series.open()
        together = True
        while new := merged(series.held, arrival)[len(series.held) :]:
            try:
                if together and len(new) > 1:
                    await series.append(new)
                else:
                    await self._fit(event, new[0], partial(_append_one, series))
            except AirflowApiError as error:
                if not together or len(new) == 1 or error.status not in PAYLOAD_REFUSED:
                    raise
                # One by one, since Airflow does not say over which of them: the others stay as they came.
                together = False
        await self._write_lists(event, series)
        return series.held

    async def _write_lists(self, event: str, series: Series) -> None:
        try:
            await series.write_lists()
        except AirflowApiError as error:
            if error.status not in PAYLOAD_REFUSED:
                raise
            # Each was taken by itself, so all together are too much.
            unlisted = series.unlisted()
            for one in unlisted:
                say_refused(self._patience, event, one, error, left_out=True)
            await series.write_lists([left_out(one, str(error)) for one in unlisted])

    async def _fit(self, event: str, one: Received, write: Callable[[Received], Awaitable[bool]]) -> bool:
        """Write one payload, in the first form that is not refused; gives what ``write`` gives."""
        fitting = Fitting(event, one, self._patience)
        while True:
            try:
                return await write(one)
            except AirflowApiError as error:
                one = fitting.next(error)


async def _append_one(series: Series, one: Received) -> bool:
    await series.append([one])
    return True
