"""An Airflow connection of type ``amqp``, read, and connected: the only importer of aio-pika."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread

from event_triggers.errors import ConfigurationError, MissingExtraError, StreamError
from event_triggers.sources._options import (
    TLS_OPTIONS,
    as_flag,
    as_pem,
    as_text,
    check_tls_options,
    one_of,
    read_options,
    tls_context,
    whole,
)
from event_triggers.sources.base import BrokerConnection

__all__ = ["HEARTBEAT", "OPTIONS", "connect", "translated"]

HEARTBEAT = 10
"""Seconds; the broker takes a connection for dead after two of them, and delivers what it had again."""
_CLOSE_SECONDS = 3.0
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "heartbeat": whole(1, 600),
    "timeout": whole(1, 300),
    "auth": one_of("plain", "external"),
    "tls": as_flag,
    **dict.fromkeys(TLS_OPTIONS, as_text),
    "ca_pem": as_pem,
    "client_cert_pem": as_pem,
    "private_key_pem": as_pem,
    "insecure": as_flag,
}
"""What the extra of a connection may hold, and how each value is read."""


@asynccontextmanager
async def connect(connection: BrokerConnection) -> AsyncIterator[tuple[Any, str]]:
    """Connect to the broker that the connection names: the client's connection, and where that is.

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
        raise translated(error, where) from None
    try:
        yield client, where
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
    check_tls_options(where, extra, tls)
    port = connection.port or (5671 if tls else 5672)
    vhost = connection.schema or "/"
    where = f"{where} ({connection.host}:{port}, virtual host {vhost!r})"
    login = quote(connection.login or "guest", safe="")
    password = quote(connection.password or ("" if connection.login else "guest"), safe="")
    context = tls_context(where, {name: extra[name] for name in TLS_OPTIONS if name in extra}) if tls else None
    options = f"heartbeat={extra.get('heartbeat', HEARTBEAT)}&auth={extra.get('auth', 'plain')}&name=event_triggers"
    # A path of one slash is the virtual host "/"; every other name is written out.
    path = "" if vhost == "/" else quote(vhost, safe="")
    scheme = "amqps" if tls else "amqp"
    url = f"{scheme}://{login}:{password}@{connection.host}:{port}/{path}?{options}"
    return url, where, extra.get("timeout", 10), context


def translated(error: BaseException, where: str) -> Exception:
    """What an error of the client means, in our words."""
    if isinstance(error, (StreamError, ConfigurationError)):
        return error
    from aio_pika import exceptions as wrong

    text = " ".join(str(part) for part in error.args if part) or type(error).__name__
    if isinstance(error, (wrong.AuthenticationError, wrong.ProbableAuthenticationError)):
        return StreamError(f"{where}: the login is refused: {text}; correct the connection's login and password")
    if "ACCESS_REFUSED" in text:
        return StreamError(f"{where}: access is denied: {text}; grant the user read (and, to bind, write) there")
    if isinstance(error, (OSError, asyncio.TimeoutError, TimeoutError)):
        return StreamError(f"{where}: the broker cannot be reached: {text}")
    return StreamError(f"{where}: {text}")
