"""Where deliveries go: each becomes an event of its hook's asset, in Airflow's database, once.

Flow::

    request -> queue -> (whoever holds the pen) one transaction for all that wait -> each request is told how it ended

    transaction:  what was delivered before?  ->  remember the new ids  ->  asset events  ->  DAGs to schedule

Invariants:

* A delivery is told *stored* only after the transaction that holds both its asset event and its id is committed. So
  what a caller was told is stored survives any crash, and what it was not told it may send again.
* The primary key of the table of ids decides about copies, whatever number of requests, processes and servers have one
  at the same time: the second waits for the first one's transaction, and is a replay if that is committed.
* One transaction at a time per process: many small ones would cost the database, and this process, several times more.

A restart loses nothing: what was in the queue was told to nobody. Ids are forgotten when their time is up.

The table is made when the first delivery finds none; see ``docs/decisions.md`` for why it is no part of Airflow's
migrations.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from event_triggers.server.asset_writer import write_events
from event_triggers.sources._webhook_wire import Received
from event_triggers.text import plain_logger

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["TABLE", "Deliveries", "Delivery", "Ending", "QueueFullError"]

log = plain_logger(__name__)

_MOST_AT_ONCE: Final = 200
_MOST_BYTES_AT_ONCE: Final = 4_000_000
_MOST_WAITING: Final = 2_000
_MOST_BYTES_WAITING: Final = 64_000_000
_TRIES: Final = 3
_PURGE_EVERY: Final = 600.0

_metadata = sa.MetaData()
TABLE: Final = sa.Table(
    "event_triggers_delivery",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True, comment="SHA-256 of the hook's name and the delivery's id"),
    sa.Column("hook", sa.String(100), nullable=False),
    sa.Column("forget_after", sa.BigInteger, nullable=False, index=True, comment="seconds since 1970"),
)


class Ending(Enum):
    """How a delivery ended."""

    STORED = "stored"
    REPLAYED = "replayed"


class QueueFullError(Exception):
    """More is waiting to be stored than this process should hold."""


@dataclass(eq=False)
class Delivery:
    """One verified request.

    :param hook: the name.
    :param received: what came.
    :param remember: for how many seconds its id is known again.
    """

    hook: str
    received: Received
    remember: float
    ending: Ending | Exception | None = field(default=None, init=False)

    @property
    def id(self) -> str:
        """What the table knows it by."""
        return hashlib.sha256(f"{self.hook}\0{self.received.delivery}".encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return len(self.received.body) + 1000


class Deliveries:
    """The deliveries of one process of the API server.

    :param session: gives a session of Airflow's database, which it commits at the end or rolls back.
    :param stored: called after each transaction, in the event loop.
    """

    def __init__(self, session: Callable[[], AbstractContextManager[Session]], stored: Callable[[], None]) -> None:
        self._session = session
        self._stored = stored
        self._waiting: deque[Delivery] = deque()
        self._bytes = 0
        self._pen = asyncio.Lock()
        self._purged = float("-inf")

    async def store(self, delivery: Delivery) -> Ending:
        """Store it, and return when the database has it.

        :raises QueueFullError: when too many wait.
        :raises Exception: what the database says when it cannot.
        """
        if len(self._waiting) >= _MOST_WAITING or self._bytes + delivery.size > _MOST_BYTES_WAITING:
            raise QueueFullError
        self._waiting.append(delivery)
        self._bytes += delivery.size
        try:
            # Whoever holds the pen writes for all that wait, so most find that it is done when their turn comes.
            async with self._pen:
                while delivery.ending is None:
                    await self._write()
        except asyncio.CancelledError:
            self._withdraw(delivery)
            raise
        if isinstance(delivery.ending, Exception):
            raise delivery.ending
        return delivery.ending

    def _withdraw(self, delivery: Delivery) -> None:
        if delivery.ending is None and delivery in self._waiting:
            self._waiting.remove(delivery)
            self._bytes -= delivery.size

    async def _write(self) -> None:
        batch: list[Delivery] = []
        size = 0
        while self._waiting and len(batch) < _MOST_AT_ONCE and (not batch or size < _MOST_BYTES_AT_ONCE):
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        self._bytes -= size
        # The others' requests go on whatever becomes of the one that happens to write.
        try:
            with anyio.CancelScope(shield=True):
                endings = await anyio.to_thread.run_sync(self._store, batch)
        except BaseException:
            # The server is being stopped. Whether they are stored is not known here; who asks again is told.
            for delivery in batch:
                delivery.ending = InterruptedError("the server is being stopped")
            raise
        for delivery, ending in zip(batch, endings, strict=True):
            delivery.ending = ending
        self._stored()

    # ------------------------------------------------------------------ in a thread

    def _store(self, batch: Sequence[Delivery]) -> list[Ending | Exception]:
        try:
            endings: list[Ending | Exception] = list(self._try(batch))
        except IntegrityError:
            # Another process has stored one of them meanwhile; which one, each finds out for itself.
            endings = [self._alone(delivery) for delivery in batch]
        except Exception as error:
            endings = [error] * len(batch)
        self._purge()
        return endings

    def _alone(self, delivery: Delivery) -> Ending | Exception:
        try:
            return self._try([delivery])[0]
        except Exception as error:
            return error

    def _try(self, batch: Sequence[Delivery]) -> Sequence[Ending]:
        for left in reversed(range(_TRIES)):
            try:
                with self._session() as session:
                    return _store_in(session, batch)
            except IntegrityError:
                if left == 0 or len(batch) > 1:
                    raise
            except (OperationalError, ProgrammingError) as error:
                # A deadlock, a connection that the pool did not know to be dead, or no table yet.
                if left == 0:
                    raise
                self._make_table(error)
        raise AssertionError("unreachable")

    def _make_table(self, error: Exception) -> None:
        with self._session() as session:
            if sa.inspect(session.connection()).has_table(TABLE.name):
                return
        log.info("table %s is not there (%s); making it", TABLE.name, type(error).__name__)
        try:
            with self._session() as session:
                _metadata.create_all(session.connection())
        except (OperationalError, ProgrammingError, IntegrityError) as problem:
            # Another process may have been faster; if not, the next try says so.
            log.warning("table %s could not be made here: %s", TABLE.name, problem)

    def _purge(self) -> None:
        if time.monotonic() - self._purged < _PURGE_EVERY:
            return
        self._purged = time.monotonic()
        try:
            with self._session() as session:
                session.execute(sa.delete(TABLE).where(TABLE.c.forget_after < _now()))
        except Exception as error:
            log.log(logging.WARNING, "ids of old deliveries could not be deleted: %s", error)


def _store_in(session: Session, batch: Sequence[Delivery]) -> Sequence[Ending]:
    ids = [delivery.id for delivery in batch]
    known = set(_known(session, ids))
    new: dict[str, Delivery] = {}
    endings = []
    for identity, delivery in zip(ids, batch, strict=True):
        copy = identity in known or identity in new
        endings.append(Ending.REPLAYED if copy else Ending.STORED)
        if not copy:
            new[identity] = delivery
    if new:
        # In one order everywhere, so that two processes with the same ids do not wait for each other.
        rows = [
            {"id": identity, "hook": new[identity].hook, "forget_after": _now() + int(new[identity].remember)}
            for identity in sorted(new)
        ]
        session.execute(sa.insert(TABLE), rows)
        write_events(session, [(delivery.hook, delivery.received) for delivery in new.values()])
    return endings


def _known(session: Session, ids: Sequence[str]) -> Sequence[str]:
    found = session.execute(sa.select(TABLE.c.id, TABLE.c.forget_after).where(TABLE.c.id.in_(ids))).all()
    over = [identity for identity, until in found if until < _now()]
    if over:
        session.execute(sa.delete(TABLE).where(TABLE.c.id.in_(over), TABLE.c.forget_after < _now()))
    return [identity for identity, until in found if identity not in over]


def _now() -> int:
    return int(time.time())
