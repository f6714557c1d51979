"""Which hooks there are: looked up in Airflow's connections, and known for a few seconds.

Whoever calls hooks that do not exist costs a look-up each; there are only so many of those per second, for all.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import anyio.to_thread

from event_triggers.errors import ConfigurationError
from event_triggers.hook_settings import HookSettings, read_hook_settings
from event_triggers.server.rate import Rates
from event_triggers.sources._webhook_wire import CONN_PREFIX, NAME
from event_triggers.text import plain_logger

__all__ = ["BusyError", "HookBook", "Looked", "look_up"]

log = plain_logger(__name__)

_KNOWN_FOR: Final = 10.0
_MOST_KNOWN: Final = 1_000
_LOOKS_PER_SECOND: Final = 50.0


class BusyError(Exception):
    """Too many different hooks are asked for. :attr:`retry_after` says when to come again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Looked(NamedTuple):
    """A connection, as far as a hook needs it."""

    password: str | None
    extra: str | None


class _Known(NamedTuple):
    """What is known of a name."""

    at: float
    settings: HookSettings | ConfigurationError | None


class HookBook:
    """The hooks, as one process of the API server knows them.

    :param look: looks a connection up by its id, in a thread; ``None`` when there is none.
    """

    def __init__(self, look: Callable[[str], Looked | None]) -> None:
        self._look = look
        self._known: dict[str, _Known] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._rates = Rates()

    async def find(self, name: str) -> HookSettings | None:
        """The hook; ``None`` when there is none.

        :raises ConfigurationError: when its connection is wrong.
        :raises BusyError: when too many are asked for.
        :raises Exception: when Airflow could not look it up.
        """
        if not NAME.fullmatch(name):
            return None
        known = self._fresh(name)
        if known is None:
            # Those that ask for the same hook meanwhile wait for the one that looks.
            turn = self._turns.setdefault(name, asyncio.Lock())
            try:
                async with turn:
                    known = self._fresh(name) or await self._look_anew(name)
            finally:
                self._turns.pop(name, None)
        settings = known.settings
        if isinstance(settings, ConfigurationError):
            raise settings
        return settings

    def _fresh(self, name: str) -> _Known | None:
        known = self._known.get(name)
        return known if known is not None and time.monotonic() - known.at <= _KNOWN_FOR else None

    async def _look_anew(self, name: str) -> _Known:
        now = time.monotonic()
        old = self._known.pop(name, None)
        if old is not None:
            # Good enough for the others while this request looks.
            self._known[name] = _Known(now, old.settings)
        wait = self._rates.take("", _LOOKS_PER_SECOND, now)
        if wait is not None:
            raise BusyError(wait)
        known = self._known[name] = _Known(now, await anyio.to_thread.run_sync(self._read, name))
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known

    def _read(self, name: str) -> HookSettings | ConfigurationError | None:
        conn_id = CONN_PREFIX + name
        found = self._look(conn_id)
        if found is None:
            return None
        try:
            settings = read_hook_settings(conn_id, found.password, _extra_of(conn_id, found.extra))
        except ConfigurationError as error:
            log.error("hook %s is refused: %s", name, error)
            return error
        return settings


def _extra_of(conn_id: str, text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text) if text else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ConfigurationError(f"the extra of the connection {conn_id!r} is not a JSON object")
    return extra


def look_up(conn_id: str) -> Looked | None:
    """The connection, where Airflow keeps it: environment, secrets backend, database. It blocks.

    :raises SQLAlchemyError: when the database is away.
    """
    import sqlalchemy as sa
    from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined]
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    try:
        connection = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        # Airflow says the same when its database is away.
        with create_session(scoped=False) as session:
            session.execute(sa.select(1))
        return None
    return Looked(connection.get_password(), connection.get_extra())
