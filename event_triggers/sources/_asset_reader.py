"""Two ways to read asset events: by the route of this package's plugin, and by Airflow's public one.

===================  =========================================  ==============================================
what differs         the plugin's route                         the public route
===================  =========================================  ==============================================
an event is seen     at once, or within 0.3 s                   within a second
order                by id                                      by time stamp; put into the order of ids here
extra                as it is                                   values under names like ``password`` are ``***``
a transaction open   for up to an hour is waited for            for up to two minutes is waited for
when idle            a request in 5 s                           a request in a second
===================  =========================================  ==============================================
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from event_triggers.clock import Clock, parse_datetime
from event_triggers.sources._asset_gaps import MAY_COME_FOR, MOST_GAPS, gaps_between
from event_triggers.sources.base import AirflowCall

__all__ = ["AssetName", "AssetReader", "Page", "PluginReader", "PublicReader"]

AssetName = tuple[str, str | None]
"""Name and URI; any URI where it is ``None``."""

_WAIT: Final = 5.0
_LIMIT: Final = 500
_PAGE: Final = 100
_LOOK_EVERY: Final = 0.8
_OVERLAP: Final = timedelta(seconds=10)
"""How far clocks of those who stamp events may differ."""
_WIDE_OVERLAP: Final = timedelta(minutes=3)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Page:
    """What was read.

    :param events: as the plugin's route gives them; ``extra`` is a JSON text.
    :param next: all events before it were read,
    :param gaps: but these.
    """

    next: int
    gaps: tuple[int, ...] = ()
    events: Sequence[Mapping[str, Any]] = field(default=())


class AssetReader(ABC):
    """Reads asset events in the order of their ids."""

    patience: timedelta
    """For how long a missing id may still come."""

    @abstractmethod
    async def head(self) -> Page:
        """The place behind the newest event."""

    @abstractmethod
    async def read(self, assets: Sequence[AssetName], next_id: int, gaps: Sequence[int]) -> Page:
        """Events of these assets from ``next_id`` on, and those of ``gaps`` that are there now.

        Waits for a while where there are none, and may give none.
        """

    @abstractmethod
    async def first_since(self, assets: Sequence[AssetName], since: datetime) -> int | None:
        """An id such that no event of these assets that is stamped then or later has a lower one."""


class PluginReader(AssetReader):
    """Asks the plugin's route."""

    patience = MAY_COME_FOR

    def __init__(self, call: AirflowCall) -> None:
        self._call = call

    async def head(self) -> Page:
        return _page_of(await self._call("POST", "/event-triggers/asset-events/read", json={"assets": []}))

    async def read(self, assets: Sequence[AssetName], next_id: int, gaps: Sequence[int]) -> Page:
        body = {
            "assets": _refs(assets),
            "place": {"next": next_id, "gaps": list(gaps)},
            "limit": _LIMIT,
            "wait": _WAIT,
        }
        return _page_of(await self._call("POST", "/event-triggers/asset-events/read", json=body))

    async def first_since(self, assets: Sequence[AssetName], since: datetime) -> int | None:
        body = {"assets": _refs(assets), "since": since.isoformat()}
        answer = await self._call("POST", "/event-triggers/asset-events/locate", json=body)
        first: int | None = answer["first"]
        return first


def _refs(assets: Iterable[AssetName]) -> list[dict[str, str | None]]:
    return [{"name": name, "uri": uri} for name, uri in assets]


def _page_of(answer: Mapping[str, Any]) -> Page:
    place = answer["place"]
    return Page(int(place["next"]), tuple(place["gaps"]), answer["events"])


class PublicReader(AssetReader):
    """Asks ``GET /api/v2/assets/events``, which knows no order but that of time stamps.

    It reads the events of all assets, so that a missing id shows, from a little before the newest stamp that it knows.
    """

    patience = timedelta(minutes=2)

    def __init__(self, call: AirflowCall, clock: Clock) -> None:
        self._call = call
        self._clock = clock
        self._stamp: datetime | None = None
        """Events with ids from the present place on are hardly stamped before this."""

    async def head(self) -> Page:
        rows = sorted(await self._get(order_by="-timestamp"), key=_id)
        if not rows:
            self._stamp = _EPOCH
            return Page(1)
        self._stamp = max(_stamp(row) for row in rows)
        behind, gaps = gaps_between(_id(rows[0]), [(_id(row), _stamp(row)) for row in rows], self._clock.now())
        return Page(behind, tuple(gaps))

    async def read(self, assets: Sequence[AssetName], next_id: int, gaps: Sequence[int]) -> Page:
        if self._stamp is None:
            self._stamp = await self._begin(next_id)
        wanted, until = set(assets), self._clock.monotonic() + _WAIT
        while True:
            rows, more = await self._since(next_id, gaps)
            late = {_id(row) for row in rows if _id(row) < next_id}
            new = [(_id(row), _stamp(row)) for row in rows if _id(row) >= next_id]
            # Where there is more to read, whatever is missing may be further on.
            next_id, missing = gaps_between(next_id, new, _EPOCH if more else self._clock.now())
            gaps = [gap for gap in (*gaps, *missing) if gap not in late][-MOST_GAPS:]
            events = [_event(row) for row in rows if {(row["name"], row["uri"]), (row["name"], None)} & wanted]
            if events or more or self._clock.monotonic() >= until:
                return Page(next_id, tuple(gaps), events)
            await self._clock.sleep(_LOOK_EVERY)

    async def first_since(self, assets: Sequence[AssetName], since: datetime) -> int | None:
        rows = await self._get(order_by="timestamp", timestamp_gte=since.isoformat())
        return min(map(_id, rows), default=None)

    async def _since(self, next_id: int, gaps: Sequence[int]) -> tuple[list[dict[str, Any]], bool]:
        """The rows that are new, by id, and whether there may be more of them."""
        assert self._stamp is not None  # noqa: S101 - read() has seen to it
        begin = self._stamp - (_WIDE_OVERLAP if gaps else _OVERLAP) if self._stamp > _EPOCH else _EPOCH
        new: dict[int, dict[str, Any]] = {}
        offset, known = 0, set(gaps)
        while len(new) < _LIMIT:
            rows = await self._get(order_by="timestamp", timestamp_gte=begin.isoformat(), offset=offset)
            offset += len(rows)
            new.update((_id(row), row) for row in rows if _id(row) >= next_id or _id(row) in known)
            if not rows:
                break
            if len(rows) < _PAGE and len(rows) < self._page:
                break
        if new:
            self._stamp = max(self._stamp, max(map(_stamp, new.values())))
        return sorted(new.values(), key=_id), len(new) >= _LIMIT

    _page = 0
    """The longest page seen: Airflow may be configured to give shorter ones than are asked for."""

    async def _begin(self, next_id: int) -> datetime:
        """A moment before which no event with this or a higher id is stamped."""
        if next_id <= 1:
            return _EPOCH
        begin, offset = self._clock.now(), 0
        while True:
            rows = await self._get(order_by="-timestamp", offset=offset)
            offset += len(rows)
            stamps = [_stamp(row) for row in rows if _id(row) >= next_id]
            begin = min([begin, *stamps])
            if not stamps:
                return begin

    async def _get(self, **params: Any) -> list[dict[str, Any]]:
        answer = await self._call("GET", "/api/v2/assets/events", params={"limit": _PAGE, **params})
        rows: list[dict[str, Any]] = answer["asset_events"]
        self._page = max(self._page, len(rows))
        return rows


def _id(row: Mapping[str, Any]) -> int:
    return int(row["id"])


def _stamp(row: Mapping[str, Any]) -> datetime:
    return parse_datetime(row["timestamp"])


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "extra": json.dumps(row["extra"], ensure_ascii=False)}
