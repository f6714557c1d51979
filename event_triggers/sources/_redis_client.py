"""The Redis client: the only importer of redis-py, and the reading of an Airflow connection of type ``redis``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio.to_thread
from redis import exceptions as wrong
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import RedisSSLContext
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources._options import as_flag
from event_triggers.sources.base import BrokerConnection
from event_triggers.text import plain_logger

__all__ = ["RedisClient", "StreamInfo", "connect"]

log = plain_logger(__name__)

_TIMEOUT = 8.0
"""Seconds that connecting may take; and an answer, beyond the time that a blocking read waits."""
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class StreamInfo(NamedTuple):
    """What the server says of a stream: the ids of its first and last entry, and how many there are and were.

    :param added: how many were ever added; ``None`` before Redis 7.
    """

    first: bytes
    last: bytes
    length: int
    added: int | None


class RedisClient:
    """One stream on one server or cluster."""

    def __init__(self, client: Any, stream: str, where: str, wait: float) -> None:
        self._client = client
        self._stream = stream
        self._where = where
        self._wait = int(wait * 1000)
        self._limit = wait + _TIMEOUT

    async def info(self) -> StreamInfo | None:
        """What there is of the stream; ``None`` when it does not exist."""
        try:
            info = await self._ask(self._client.xinfo_stream(self._stream))
        except StreamError as error:
            if "no such key" in str(error):
                return None
            raise
        first = info["first-entry"]
        return StreamInfo(
            first[0] if first else b"", info["last-generated-id"], info["length"], info.get("entries-added")
        )

    async def first(self, identity: str) -> bytes | None:
        """The id of the first entry from this one on."""
        entries = await self._ask(self._client.xrange(self._stream, identity, "+", count=1))
        return entries[0][0] if entries else None

    async def read(self, behind: str, count: int) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
        """Entries behind this one; waits for a while until there are any."""
        answer = await self._ask(self._client.xread({self._stream: behind}, count=count, block=self._wait))
        return answer[0][1] if answer else []

    async def _ask(self, work: Awaitable[Any]) -> Any:
        # Not by the client's ``socket_timeout``: before Python 3.12, ``asyncio.wait_for``, which it uses, loses a
        # cancellation that comes just when it is done.
        try:
            with anyio.fail_after(self._limit):
                return await work
        except (wrong.RedisError, OSError, asyncio.TimeoutError) as error:
            raise StreamError(f"{self._where}: {_advice(error)}") from error


def _advice(error: Exception) -> str:
    text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    if isinstance(error, wrong.NoPermissionError):
        return f"access is denied: {text}; allow the user XREAD, XRANGE and XINFO STREAM on the stream's key"
    if isinstance(error, wrong.AuthenticationError):
        return f"the login is refused: {text}; correct the connection's login and password"
    if text.startswith("WRONGTYPE"):
        return f"the key holds something other than a stream: {text}"
    if isinstance(error, (wrong.ConnectionError, wrong.TimeoutError, OSError, asyncio.TimeoutError)):
        return f"Redis cannot be reached: {text}"
    return text


@asynccontextmanager
async def connect(connection: BrokerConnection, stream: str, wait: float) -> AsyncIterator[RedisClient]:
    """A client of the server or cluster that the connection names, connected when it is first asked something.

    :param wait: seconds that a blocking read lasts.
    :raises ConfigurationError: naming the connection and what is wrong in it.
    """
    try:
        options = _options(connection)
        nodes = _nodes(connection.extra.get("startup_nodes"))
        in_cluster, database = as_flag(connection.extra.get("cluster") or False), int(connection.extra.get("db") or 0)
        if options.get("ssl"):
            await anyio.to_thread.run_sync(_check_files, options)
    except (ValueError, TypeError, OSError, wrong.RedisError) as error:
        raise ConfigurationError(f"connection {connection.conn_id!r}: {error}") from error
    where = f"Redis stream {stream!r} (connection {connection.conn_id!r}, {connection.host}:{connection.port or 6379})"
    if options.get("ssl") and options.get("ssl_cert_reqs") == "none":
        log.warning("%s: the server's certificate is not checked; anyone on the way can read and forge messages", where)
    made = RedisCluster(startup_nodes=nodes, **options) if in_cluster else Redis(db=database, **options)
    client: Any = made
    try:
        yield RedisClient(client, stream, where, wait)
    finally:
        with anyio.move_on_after(2, shield=True):
            await client.aclose()


def _options(connection: BrokerConnection) -> dict[str, Any]:
    """What the Redis provider's hook reads, in the same way."""
    extra = connection.extra
    if not connection.host or set(connection.host) & set("@/"):
        raise ValueError("its host must be the name or address of the Redis server alone")
    password = None if str(connection.password).lower() in ("none", "false", "") else connection.password
    if as_flag(extra.get("cluster") or False) and extra.get("db") not in (None, "", 0, "0"):
        raise ValueError("a cluster has database 0 only; empty db in its extra")
    options: dict[str, Any] = {
        "host": connection.host,
        "port": connection.port or 6379,
        "username": connection.login,
        "password": password,
        "socket_connect_timeout": _TIMEOUT,
        "socket_timeout": None,
        "protocol": 2,
        # A failure is the hub's to see, and to wait after.
        "retry": Retry(NoBackoff(), 0),
    }
    if as_flag(extra.get("ssl") or False):
        options["ssl"] = True
        options |= {name: extra[name] for name in _TLS if extra.get(name) not in (None, "")}
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = as_flag(options["ssl_check_hostname"])
    return options


def _nodes(text: Any) -> list[ClusterNode]:
    if text and not isinstance(text, str):
        raise ValueError("startup_nodes in its extra must be text: host:port, with commas between several")
    nodes = []
    for entry in (text or "").split(","):
        host, _, port = entry.strip().partition(":")
        if host:
            nodes.append(ClusterNode(host, int(port or 6379)))
    return nodes


def _check_files(options: Mapping[str, Any]) -> None:
    """Read the certificates once, in a thread: what is wrong with them is no broken connection."""
    RedisSSLContext(
        keyfile=options.get("ssl_keyfile"),
        certfile=options.get("ssl_certfile"),
        cert_reqs=options.get("ssl_cert_reqs", "required"),
        ca_certs=options.get("ssl_ca_certs"),
        check_hostname=options.get("ssl_check_hostname", True),
    ).get()
