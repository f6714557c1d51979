"""An Airflow connection of type ``nats``, read, and connected: the only importer of nats-py."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from event_triggers.errors import ConfigurationError, MissingExtraError, StreamError
from event_triggers.sources._options import (
    TLS_OPTIONS,
    as_flag,
    as_pem,
    as_text,
    check_tls_options,
    read_options,
    tls_context,
)
from event_triggers.sources.base import BrokerConnection

__all__ = ["OPTIONS", "connect", "failures"]

OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "token": as_text,
    "creds": as_text,
    "creds_text": as_pem,
    "nkey_seed": as_text,
    "domain": as_text,
    "inbox_prefix": as_text,
    "tls": as_flag,
    **dict.fromkeys(TLS_OPTIONS, as_text),
    "ca_pem": as_pem,
    "client_cert_pem": as_pem,
    "private_key_pem": as_pem,
    "insecure": as_flag,
}
"""What the extra of a connection may hold, and how each value is read."""
_TIMEOUT = 8
"""Seconds that connecting may take."""


def failures() -> tuple[type[Exception], ...]:
    """What the client raises when something is wrong with the connection, the server, or what it was asked."""
    from nats.errors import Error

    return (Error, OSError, asyncio.TimeoutError, TimeoutError, ValueError)


@asynccontextmanager
async def connect(connection: BrokerConnection) -> AsyncIterator[tuple[Any, str, str]]:
    """Connect to the server that the connection names: the client, the prefix of JetStream's API, and where that is.

    :raises ConfigurationError: naming the connection and what is wrong in it.
    :raises StreamError: when no server can be reached, or the login is refused.
    """
    hosts, where, options, prefix = await anyio.to_thread.run_sync(_read, connection)
    try:
        import nats
    except ModuleNotFoundError as error:
        raise MissingExtraError("NatsSubject", "nats", "nats") from error
    problems: list[Exception] = []

    async def note(error: Exception) -> None:
        problems.append(error)

    try:
        with anyio.fail_after(_TIMEOUT):
            client = await nats.connect(
                hosts, error_cb=note, allow_reconnect=False, connect_timeout=_TIMEOUT, name="event_triggers", **options
            )
    except ModuleNotFoundError as error:
        raise MissingExtraError("NatsSubject with creds or an nkey", error.name or "nkeys", "nats") from error
    except failures() as error:
        said = str(problems[0] if problems else error) or type(error).__name__
        advice = "; correct the connection's login" if "uthorization" in said else ""
        raise StreamError(f"{where}: cannot connect: {said.strip()}{advice}") from None
    try:
        yield client, prefix, where
    finally:
        with anyio.move_on_after(2, shield=True):
            await client.close()


def _read(connection: BrokerConnection) -> tuple[list[str], str, dict[str, Any], str]:
    """Read the connection. It looks at files."""
    where = f"connection {connection.conn_id!r}"
    if not connection.host or "@" in connection.host or "/" in connection.host:
        raise ConfigurationError(f"{where}: its host must be the name of a NATS server, or several with commas between")
    extra = read_options(where, connection.extra, OPTIONS)
    tls = extra.get("tls", False)
    check_tls_options(where, extra, tls)
    logins = [name for name in ("token", "creds", "creds_text", "nkey_seed") if name in extra]
    if len(logins) + (connection.password is not None or connection.login is not None) > 1:
        raise ConfigurationError(
            f"{where}: it holds several logins (login and password, {', '.join(logins)}); keep one"
        )
    names = [host.strip() for host in connection.host.split(",")]
    hosts = [f"nats://{host}" if ":" in host else f"nats://{host}:{connection.port or 4222}" for host in names]
    where = f"{where} ({','.join(hosts)})"
    options: dict[str, Any] = {"user": connection.login, "password": connection.password, "token": extra.get("token")}
    if connection.password is not None and connection.login is None:
        options = {"token": connection.password}
    if tls:
        options["tls"] = tls_context(where, {name: extra[name] for name in TLS_OPTIONS if name in extra})
    if "inbox_prefix" in extra:
        options["inbox_prefix"] = extra["inbox_prefix"]
    return hosts, where, options | _keys(where, extra), f"$JS.{extra['domain']}.API" if "domain" in extra else "$JS.API"


def _keys(where: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = Path(extra["creds"]).read_text() if "creds" in extra else extra.get("creds_text")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: the file of creds cannot be read: {error}") from None
    if text is None:
        return {"nkeys_seed_str": extra["nkey_seed"]} if "nkey_seed" in extra else {}
    if not re.search(r"BEGIN NATS USER JWT.*BEGIN USER NKEY SEED", text, re.DOTALL):
        raise ConfigurationError(f"{where}: its creds hold no user JWT and seed, as 'nsc generate creds' writes them")
    from nats.aio.client import RawCredentials

    return {"user_credentials": RawCredentials(text)}
