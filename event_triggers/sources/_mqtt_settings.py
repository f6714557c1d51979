"""An Airflow connection of type ``mqtt``, read: where the broker is, how to reach it, who we are there.

Every wrong value is an error that names the connection and the option; an unknown option is one too. Nothing here
imports an MQTT client, so the connection form and its test use the same reading.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from event_triggers.errors import ConfigurationError
from event_triggers.sources._options import (
    TLS_OPTIONS,
    as_flag,
    as_text,
    check_tls_options,
    one_of,
    read_options,
    tls_context,
    whole,
)
from event_triggers.sources.base import BrokerConnection

__all__ = ["OPTIONS", "MqttSettings", "make_tls_context", "read_settings"]

_MOST_SECONDS = 0xFFFF_FFFF
_ID_CHARACTERS = 20
_WEBSOCKET_OPTIONS = ("websocket_path", "websocket_headers")


@dataclass(frozen=True)
class MqttSettings:
    """How to reach one broker. Secrets stay out of the ``repr``.

    :param keepalive: after so many silent seconds the broker is asked whether it is still there.
    :param session_expiry: for how many seconds the broker keeps a durable session whose client is away (MQTT 5 only).
    :param receive_maximum: how many unacknowledged messages the broker may have under way to us (MQTT 5 only).
    :param timeout: seconds that connecting, and each answer of the broker, may take.
    """

    conn_id: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    protocol: str = "5"
    transport: str = "tcp"
    websocket_path: str = "/mqtt"
    websocket_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    keepalive: int = 30
    client_id_prefix: str = "aet"
    session_expiry: int = 7 * 24 * 3600
    receive_maximum: int = 200
    timeout: float = 10.0
    tls: bool = False
    tls_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        """The connection and its broker, for messages."""
        return f"connection {self.conn_id!r} ({self.host}:{self.port})"

    @property
    def version_5(self) -> bool:
        """Whether MQTT 5 is spoken."""
        return self.protocol == "5"

    def session_id(self, group: str) -> str:
        """The client identifier of a group's durable session: the same for this group, everywhere and always.

        With the default prefix it has 23 letters and digits, which every broker must take.
        """
        digest = hashlib.blake2b(f"{self.conn_id}\0{group}".encode(), digest_size=13).digest()
        return self.client_id_prefix + base64.b32encode(digest).decode().lower()[:_ID_CHARACTERS]

    def passing_id(self) -> str:
        """A client identifier for one connection that leaves nothing behind."""
        return self.client_id_prefix + secrets.token_hex(_ID_CHARACTERS // 2)


def _protocol(value: Any) -> str:
    text = str(value).strip().lower()
    if text in ("5", "5.0"):
        return "5"
    if text in ("3.1.1", "311", "4"):
        return "3.1.1"
    raise ValueError('must be "5" or "3.1.1"')


def _headers(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise ValueError("must be a JSON object of header names and texts")
    return dict(value)


def _prefix(value: Any) -> str:
    text = as_text(value)
    if len(text) > 200 or any(ord(character) < 32 for character in text):
        raise ValueError("must be at most 200 characters, none of them a control character")
    return text


OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "protocol": _protocol,
    "transport": one_of("tcp", "websockets"),
    "websocket_path": as_text,
    "websocket_headers": _headers,
    "keepalive": whole(5, 65_535),
    "session_expiry": whole(1, _MOST_SECONDS),
    "receive_maximum": whole(1, 65_535),
    "timeout": whole(1, 300),
    "client_id_prefix": _prefix,
    "tls": as_flag,
    **TLS_OPTIONS,
}
"""What the extra of a connection may hold, and how each value is read."""


def read_settings(connection: BrokerConnection) -> MqttSettings:
    """Read an Airflow connection.

    :raises ConfigurationError: naming the connection and the option that is wrong.
    """
    where = f"connection {connection.conn_id!r}"
    if not connection.host:
        raise ConfigurationError(f"{where}: it has no host; enter the name or address of the MQTT broker")
    if "@" in connection.host:
        raise ConfigurationError(
            f"{where}: its host must be the name or address of the MQTT broker alone; a login has fields of its own"
        )
    if connection.schema:
        raise ConfigurationError(
            f"{where}: MQTT has no use for its field Schema, which holds {connection.schema!r}; empty it"
        )
    if connection.password is not None and connection.login is None:
        raise ConfigurationError(f"{where}: it has a password but no login")
    options = read_options(where, connection.extra, OPTIONS)
    tls = options.get("tls", False)
    websockets = options.get("transport") == "websockets"
    check_tls_options(where, options, tls)
    _check_fit(where, options, websockets)
    default_port = (443 if tls else 80) if websockets else (8883 if tls else 1883)
    plain = {name: value for name, value in options.items() if name not in TLS_OPTIONS}
    return MqttSettings(
        conn_id=connection.conn_id,
        host=connection.host,
        port=connection.port or default_port,
        username=connection.login,
        password=connection.password,
        tls_options={name: value for name, value in options.items() if name in TLS_OPTIONS},
        **plain,
    )


def _check_fit(where: str, options: Mapping[str, Any], websockets: bool) -> None:
    """Refuse options that would have no effect: whoever sets them believes they have."""
    for name in _WEBSOCKET_OPTIONS:
        if not websockets and name in options:
            raise ConfigurationError(f'{where}: the option {name!r} needs "transport": "websockets" in its extra')


def make_tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """The TLS context of a connection, or ``None`` without TLS. It reads files: call it in a thread.

    :raises ConfigurationError: when a certificate or key cannot be read, or they do not belong together.
    """
    if not settings.tls:
        return None
    return tls_context(settings.where, settings.tls_options)
