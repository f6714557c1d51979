"""Why no Kafka broker lets us in, in words that say what to look at."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import anyio
from aiokafka import errors as kafka_errors  # type: ignore[import-untyped]
from aiokafka.conn import create_conn  # type: ignore[import-untyped]

from event_triggers.errors import StreamError
from event_triggers.sources._kafka_config import KafkaSettings
from event_triggers.sources._kafka_metadata import TopicsRequest

__all__ = ["told", "why_not"]


async def why_not(settings: KafkaSettings, connection: Mapping[str, Any]) -> StreamError:
    """Connect to each server once more, alone, to learn the reason that aiokafka only writes into its log.

    :param connection: what aiokafka's connections are made with, beside the settings.
    """
    reasons: dict[str, str] = {}
    arguments = {**connection, **_of_connections(settings.arguments)}

    async def ask(server: str) -> None:
        host, _, port = server.rpartition(":")
        try:
            connection = await create_conn(host.strip("[]"), int(port), **arguments)
            try:
                # A broker that expects a login or a certificate may only now say so.
                await connection.send(TopicsRequest(()))
            finally:
                connection.close()
        except (kafka_errors.KafkaError, OSError, asyncio.TimeoutError) as error:
            reasons[server] = _reason(error, settings)
        else:
            reasons[server] = "it answers now"

    async with anyio.create_task_group() as group:
        for server in settings.servers:
            group.start_soon(ask, server, name=f"event_triggers: ask {server} why")
    said = "; ".join(f"{server}: {reasons[server]}" for server in settings.servers)
    return StreamError(f"{settings.about}: no connection; {said}")


def told(error: BaseException) -> str:
    """An error's name and its text, as far as it has one."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}" if text else name


def _of_connections(arguments: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("client_id", "request_timeout_ms", "security_protocol")
    return {name: value for name, value in arguments.items() if name in wanted or name.startswith("sasl_")}


def _reason(error: BaseException, settings: KafkaSettings) -> str:
    check_protocol = f"check security.protocol ({settings.protocol})"
    if isinstance(error, kafka_errors.KafkaConnectionError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    if isinstance(error, kafka_errors.SaslAuthenticationFailed | kafka_errors.AuthenticationFailedError):
        return f"the login was refused ({error}); check sasl.username, sasl.password and sasl.mechanism"
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError | kafka_errors.IllegalSaslStateError):
        return f"{settings.mechanism} is not among its logins; check sasl.mechanism and security.protocol"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); check ssl.ca.location and the host's name"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error}); {check_protocol} and the client certificate"
    if isinstance(error, socket.gaierror):
        return f"the host name is not known ({error.strerror}); check bootstrap.servers"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused); check bootstrap.servers, and whether the broker runs"
    if isinstance(error, asyncio.TimeoutError):
        waited = f"no answer within {settings.request_timeout:g} s"
        return f"{waited}; check bootstrap.servers and firewalls, and {check_protocol}"
    return f"{told(error)}; if the broker closes at once, {check_protocol}"
