"""The live stream of asset events: one for all hooks and assets that a triggerer waits for.

Flow::

    place -> read (waits for the next event) -> events of the watched assets -> yielded (the place moves)
                ^                                        |
                '-- again, when what is watched changes  '-- an id is missing: looked for until it comes or is too old

Positions: the partition ``events`` holds the events in the order of their ids. An id that was missing when it was
passed is a partition of its own, named by it, whose only offset is that id. So a position says exactly what was
delivered, though an event may become visible long after others with higher ids. Such a partition is gone once its
event was delivered: whoever reads the past then finds the event in its place.

Invariants:

* The place is the same whatever is watched: it passes events of all assets. So an answer that was asked for before
  another asset was watched is thrown away, and asked for again.
* A missing id is looked for with every reading until :attr:`AssetReader.patience` is over.

Nothing is kept; after a restart the hub opens the stream at a position or a moment that it knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import anyio

from event_triggers.clock import Clock, parse_datetime
from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources._asset_reader import AssetName, AssetReader, Page
from event_triggers.sources._webhook_wire import ASSET_PREFIX, from_extra
from event_triggers.sources.base import LogStream, Position, Source

__all__ = ["AssetStream", "message_of"]

EVENTS: Final = "events"
_ANSWER_WITHIN: Final = 45.0
"""Seconds after which a question is given up, and the groups are told, ..."""
_BEGIN_WITHIN: Final = 10.0
"""... and after which the first one is."""


class _Watched(Protocol):
    @property
    def asset_name(self) -> AssetName: ...


class AssetStream(LogStream):
    """Reads from its own place. Call :meth:`begin` before anything else."""

    def __init__(self, reader: AssetReader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._next = 1
        self._gaps: dict[int, float] = {}
        """The ids that are missing, and when each was noticed."""
        self._watched: dict[Source, AssetName] = {}
        self._version = 0
        self._polling: anyio.CancelScope | None = None

    async def begin(self, start: Position | None) -> None:
        """Find where to begin."""
        if start is None:
            self._move(await self._ask_head())
            return
        self._next = max(1, int(start.get(EVENTS, 1)))
        gaps = {int(name): offset for name, offset in start.items() if name != EVENTS}
        now = self._clock.monotonic()
        self._gaps = {gap: now for gap, offset in gaps.items() if offset <= gap < self._next}

    def position(self) -> Position:
        return {EVENTS: self._next, **{str(gap): gap for gap in self._gaps}}

    async def locate(self, since: datetime) -> Position:
        with _within(_ANSWER_WITHIN):
            first = await self._reader.first_since(self._assets(), since)
        located = self._next if first is None else min(first, self._next)
        # A missing id is delivered by whoever looks for it, wherever the past begins.
        return {**self.position(), EVENTS: located}

    async def watch(self, source: Source) -> None:
        known = set(self._watched.values())
        self._watched[source] = _asset_of(source)
        if self._watched[source] not in known:
            self._changed()

    async def unwatch(self, source: Source) -> None:
        self._watched.pop(source, None)

    def _changed(self) -> None:
        self._version += 1
        if self._polling is not None:
            self._polling.cancel()

    def _assets(self) -> list[AssetName]:
        return list(dict.fromkeys(self._watched.values()))

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            page = await self._poll()
            if page is None:
                continue
            late = set(self._gaps)
            moved = self._move(page)
            messages = [message_of(event, late=int(event["id"]) in late) for event in page.events]
            if messages or moved:
                yield messages

    async def _poll(self) -> Page | None:
        """What comes next; ``None`` when something else is watched by now."""
        version, page = self._version, None
        self._expire()
        with anyio.CancelScope() as self._polling, _within(_ANSWER_WITHIN):
            page = await self._reader.read(self._assets(), self._next, sorted(self._gaps))
        self._polling = None
        return page if version == self._version else None

    async def _ask_head(self) -> Page:
        with _within(_BEGIN_WITHIN):
            return await self._reader.head()

    def _move(self, page: Page) -> bool:
        now = self._clock.monotonic()
        before = (self._next, set(self._gaps))
        self._next = page.next
        self._gaps = {gap: self._gaps.get(gap, now) for gap in page.gaps}
        return before != (self._next, set(self._gaps))

    def _expire(self) -> None:
        oldest = self._clock.monotonic() - self._reader.patience / timedelta(seconds=1)
        self._gaps = {gap: noticed for gap, noticed in self._gaps.items() if noticed >= oldest}


def _asset_of(source: Any) -> AssetName:
    watched: _Watched = source
    return watched.asset_name


class _Within(AbstractContextManager[None]):
    """A limit whose end is a :class:`StreamError`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._scope = anyio.fail_after(self._seconds)
        self._scope.__enter__()

    def __exit__(self, *exc_info: Any) -> bool | None:
        try:
            return self._scope.__exit__(*exc_info)
        except TimeoutError as error:
            raise StreamError(f"Airflow's API has not answered for {self._seconds:g} s") from error


def _within(seconds: float) -> AbstractContextManager[None]:
    return _Within(seconds)


def message_of(event: Mapping[str, Any], *, late: bool) -> Message:
    """An asset event as a message; one of a hook's asset as the request that made it.

    :param late: whether its id was missing when it was passed.
    """
    identity, name, extra = int(event["id"]), str(event["name"]), str(event["extra"])
    received = None
    if name.startswith(ASSET_PREFIX):
        received = from_extra(Message("", "", "", "", extra.encode()).document)
    place = {
        "stream": name,
        "position": str(identity),
        "timestamp": parse_datetime(event["timestamp"]),
        "partition": str(identity) if late else EVENTS,
        "offset": identity,
        "receipt": event["uri"],
    }
    if received is not None:
        return Message(
            source="webhook",
            id=f"webhook:{identity}",
            body=received.body,
            key=received.delivery.encode(),
            headers=received.headers,
            **place,
        )
    dag_id = event["source_dag_id"]
    origin = (("dag_id", dag_id), ("task_id", event["source_task_id"]), ("run_id", event["source_run_id"]))
    headers = [(header, str(value).encode()) for header, value in origin if value is not None]
    if dag_id is not None:
        headers.append(("map_index", str(event["source_map_index"]).encode()))
    return Message(
        source="asset",
        id=f"asset:{identity}",
        body=extra.encode(),
        key=None if dag_id is None else str(dag_id).encode(),
        headers=tuple(headers),
        **place,
    )
