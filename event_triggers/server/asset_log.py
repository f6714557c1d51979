"""Asset events in the order of their ids, read from Airflow's database.

Ids are read through the primary key, whatever assets they are of, since a gap among them may be an event that is not
committed yet (:mod:`event_triggers.sources._asset_gaps`). Only the events that are asked for are read whole.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import sqlalchemy as sa
from airflow.models.asset import AssetEvent, AssetModel
from airflow.utils.session import create_session

from event_triggers.sources._asset_gaps import MOST_GAPS, gaps_between

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bell", "Page", "Place", "first_since", "head", "newest", "read_page"]

_SCANNED: Final = 5_000
_CHUNK: Final = 20
_MOST_CHARACTERS: Final = 4_000_000
_LOOK_EVERY: Final = 0.25
"""Seconds between two looks at what other processes have written, for all who wait here."""

AssetName = tuple[str, str | None]
"""Name and URI; any URI where it is ``None``."""


class Place(NamedTuple):
    """Where a reader is: it has all events before ``next`` but those of ``gaps``."""

    next: int
    gaps: tuple[int, ...] = ()


_BEGIN: Final = Place(1)


@dataclass
class Page:
    """What was read.

    :param events: as the route gives them.
    :param place: where the reader is now.
    :param more: whether there was more than fits.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    place: Place = _BEGIN
    more: bool = False


def newest() -> int:
    """The highest id there is; 0 for none."""
    with create_session(scoped=False) as session:
        return session.scalar(sa.select(sa.func.max(AssetEvent.id))) or 0


def head() -> Page:
    """The place behind the newest event."""
    with create_session(scoped=False) as session:
        highest = session.scalar(sa.select(sa.func.max(AssetEvent.id))) or 0
        begin = max(1, highest - MOST_GAPS)
        rows = _ids(session, begin, MOST_GAPS + 1)
    # The first one shows where to begin: what is missing before it is not known to be missing.
    behind, gaps = gaps_between(rows[0][0] if rows else begin, [row[:2] for row in rows], _now())
    return Page(place=Place(behind, tuple(gaps)))


def first_since(assets: Iterable[AssetName], since: datetime) -> int | None:
    """The lowest id of an event of these assets that is stamped then or later."""
    with create_session(scoped=False) as session:
        ids = _asset_ids(session, assets)
        if not ids:
            return None
        asked = sa.select(sa.func.min(AssetEvent.id)).where(AssetEvent.asset_id.in_(ids), AssetEvent.timestamp >= since)
        found: int | None = session.scalar(asked)
        return found


def read_page(
    assets: Iterable[AssetName], place: Place, limit: int, readable: Callable[[Any], Any] = lambda query: query
) -> Page:
    """Events of these assets from a place on, in the order of their ids, and those that have filled a gap.

    :param readable: narrows a query to the events that the caller may read.
    """
    with create_session(scoped=False) as session:
        ids = set(_asset_ids(session, assets))
        late = _late(session, place.gaps)
        rows = _ids(session, place.next, _SCANNED)
        wanted = [identity for identity, _, asset in (*late, *rows) if asset in ids]
        events, last = _events(session, wanted, limit, readable)
    if last is not None and last < place.next:
        rows = []  # not even all late ones: the rest comes with the next page
    elif last is not None:
        rows = [row for row in rows if row[0] <= last]
    behind, new_gaps = gaps_between(place.next, [row[:2] for row in rows], _now())
    delivered = {identity for identity, _, _ in late if last is None or identity <= last}
    gaps = tuple(gap for gap in place.gaps if gap not in delivered)
    more = last is not None or len(rows) == _SCANNED
    return Page(events, Place(behind, (*gaps, *new_gaps)[-MOST_GAPS:]), more)


Row = tuple[int, datetime, int]


def _ids(session: Any, begin: int, limit: int) -> list[Row]:
    asked = sa.select(AssetEvent.id, AssetEvent.timestamp, AssetEvent.asset_id)
    rows = session.execute(asked.where(AssetEvent.id >= begin).order_by(AssetEvent.id).limit(limit)).all()
    return [(row[0], row[1], row[2]) for row in rows]


def _late(session: Any, gaps: Sequence[int]) -> list[Row]:
    if not gaps:
        return []
    asked = sa.select(AssetEvent.id, AssetEvent.timestamp, AssetEvent.asset_id)
    rows = session.execute(asked.where(AssetEvent.id.in_(gaps)).order_by(AssetEvent.id)).all()
    return [(row[0], row[1], row[2]) for row in rows]


def _asset_ids(session: Any, assets: Iterable[AssetName]) -> list[int]:
    wanted = set(assets)
    names = sorted({name for name, _ in wanted})
    rows = session.execute(sa.select(AssetModel.id, AssetModel.name, AssetModel.uri).where(AssetModel.name.in_(names)))
    return [identity for identity, name, uri in rows if (name, uri) in wanted or (name, None) in wanted]


def _events(
    session: Any, wanted: Sequence[int], limit: int, readable: Callable[[Any], Any]
) -> tuple[list[dict[str, Any]], int | None]:
    """These events, and the last id that was looked at if not all were."""
    events: list[dict[str, Any]] = []
    size = 0
    for at in range(0, len(wanted), _CHUNK):
        chunk = wanted[at : at + _CHUNK]
        asked = sa.select(AssetEvent, AssetModel.name, AssetModel.uri).join(
            AssetModel, AssetModel.id == AssetEvent.asset_id
        )
        rows = session.execute(readable(asked.where(AssetEvent.id.in_(chunk))).order_by(AssetEvent.id)).all()
        for event, name, uri in rows:
            events.append(_plain(event, name, uri))
            size += len(events[-1]["extra"])
        if (len(events) >= limit or size >= _MOST_CHARACTERS) and at + _CHUNK < len(wanted):
            return events, chunk[-1]
    return events, None


def _plain(event: AssetEvent, name: str, uri: str) -> dict[str, Any]:
    return {
        "id": event.id,
        "name": name,
        "uri": uri,
        "timestamp": event.timestamp.isoformat(),
        # As a text: so every number in it, and every key, comes through as it is in the database.
        "extra": json.dumps(event.extra, ensure_ascii=False) if _is_text(event.extra) else json.dumps(event.extra),
        "source_dag_id": event.source_dag_id,
        "source_task_id": event.source_task_id,
        "source_run_id": event.source_run_id,
        "source_map_index": event.source_map_index,
    }


def _is_text(extra: Any) -> bool:
    """Whether everything in it can be written in UTF-8: halves of surrogate pairs cannot."""
    try:
        json.dumps(extra, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _now() -> datetime:
    return datetime.now(timezone.utc)


class Bell:
    """Wakes those who wait for the next event: at once when this process wrote it, soon when another did.

    However many wait, the database is asked once in :data:`_LOOK_EVERY` seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = 0
        self._looked = float("-inf")
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something was written by this process; called in the event loop."""
        self._looked = float("-inf")
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def wait(self, seconds: float) -> None:
        """Return when it rings, or when it is time to look."""
        rung = self._rung
        with anyio.move_on_after(min(seconds, _LOOK_EVERY)):
            await rung.wait()

    def newest(self) -> int:
        """The highest id, as of a moment ago. It blocks."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK_EVERY * 0.9:
                self._newest, self._looked = newest(), time.monotonic()
            return self._newest
