"""An Airflow connection of type ``amqp``, read, and connected: the only importer of aio-pika."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread

from event_triggers.errors import ConfigurationError, MissingExtraError, StreamError
from event_triggers.sources._options import TLS_OPTIONS, as_flag, one_of, read_options, read_tls, whole
from event_triggers.sources.base import BrokerConnection

__all__ = ["HEARTBEAT", "OPTIONS", "AmqpClient", "connect"]

HEARTBEAT = 10
"""Seconds; the broker takes a connection for dead after two of them, and delivers what it had again."""
_TIMEOUT = 10.0
_CLOSE_SECONDS = 3.0
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "heartbeat": whole(1, 600),
    "timeout": whole(1, 300),
    "auth": one_of("plain", "external"),
    "tls": as_flag,
    **TLS_OPTIONS,
}
"""What the extra of a connection may hold, and how each value is read."""


class AmqpClient:
    """One connection to a broker.

    :param where: the connection and its broker, for messages.
    """

    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self.where = where

    @contextmanager
    def asking(self, limit: float | None = _TIMEOUT) -> Iterator[None]:
        """The broker is asked something: it answers within this many seconds, or the connection is broken.

        :raises StreamError: in our words.
        """
        try:
            with anyio.fail_after(limit):
                yield
        except Exception as error:
            raise _translated(error, self.where) from error

    async def channel(self, queue: str, prefetch: int) -> tuple[Any, Any]:
        """A channel that has at most so many messages under way to each consumer, and the queue on it.

        :raises StreamError: also when there is no such queue.
        """
        with self.asking():
            channel = await self._client.channel(publisher_confirms=False)
            await channel.set_qos(prefetch)
            return channel, await channel.declare_queue(queue, passive=True)


@asynccontextmanager
async def connect(connection: BrokerConnection, what: str = "") -> AsyncIterator[AmqpClient]:
    """Connect to the broker that the connection names.

    :param what: for what, for messages.
    :raises ConfigurationError: naming the connection and what is wrong in it.
    :raises StreamError: when the broker cannot be reached, or refuses the login.
    """
    url, where, timeout, context = await anyio.to_thread.run_sync(_read, connection)
    try:
        import aio_pika
    except ModuleNotFoundError as error:
        raise MissingExtraError("AmqpQueue", error.name or "aio_pika", "amqp") from error
    try:
        with anyio.fail_after(timeout):
            client = await aio_pika.connect(url, ssl_context=context)
    except Exception as error:
        raise _translated(error, where) from None  # its chain shows the URL
    try:
        yield AmqpClient(client, what + where)
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await client.close()


def _read(connection: BrokerConnection) -> tuple[str, str, int, Any]:
    """Read the connection. It looks at files."""
    where = f"connection {connection.conn_id!r}"
    if not connection.host or set(connection.host) & set("@/:"):
        raise ConfigurationError(f"{where}: its host must be the name or address of the AMQP broker alone")
    extra = read_options(where, connection.extra, OPTIONS)
    tls = extra.get("tls", connection.conn_type == "amqps")
    port, vhost = connection.port or (5671 if tls else 5672), connection.schema or "/"
    where = f"{where} ({connection.host}:{port}, virtual host {vhost!r})"
    context = read_tls(where, extra, tls)
    login = quote(connection.login or "guest", safe="")
    password = quote(connection.password or ("" if connection.login else "guest"), safe="")
    options = f"heartbeat={extra.get('heartbeat', HEARTBEAT)}&auth={extra.get('auth', 'plain')}&name=event_triggers"
    # A path of one slash is the virtual host "/"; every other name is written out.
    path = "" if vhost == "/" else quote(vhost, safe="")
    scheme = "amqps" if tls else "amqp"
    url = f"{scheme}://{login}:{password}@{connection.host}:{port}/{path}?{options}"
    return url, where, extra.get("timeout", 10), context


def _translated(error: BaseException, where: str) -> Exception:
    """What an error of the client means, in our words."""
    if isinstance(error, (StreamError, ConfigurationError)):
        return error
    from aio_pika import exceptions as wrong

    text = " ".join(str(part) for part in error.args if part) or type(error).__name__
    if isinstance(error, (wrong.AuthenticationError, wrong.ProbableAuthenticationError)):
        return StreamError(f"{where}: the login is refused: {text}; correct the connection's login and password")
    if "ACCESS_REFUSED" in text:
        return StreamError(f"{where}: access is denied: {text}; grant the user the permission to read there")
    if "NOT_FOUND" in text:
        return StreamError(f"{where}: there is no such queue (yet): {text}; create it, or correct its name")
    if isinstance(error, (OSError, asyncio.TimeoutError, TimeoutError)):
        return StreamError(f"{where}: the broker cannot be reached: {text}")
    return StreamError(f"{where}: {text}")
