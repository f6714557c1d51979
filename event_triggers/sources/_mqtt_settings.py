"""An Airflow connection of type ``mqtt``, read: where the broker is, how to reach it, who we are there.

Every wrong value is an error that names the connection and the option; an unknown option is one too. Nothing here
imports an MQTT client, so the connection form and its test use the same reading.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from event_triggers.errors import ConfigurationError
from event_triggers.sources.base import BrokerConnection
from event_triggers.text import plain_logger

__all__ = ["OPTIONS", "MqttSettings", "make_tls_context", "read_settings"]

log = plain_logger(__name__)

_MOST_SECONDS = 0xFFFF_FFFF
_ID_CHARACTERS = 20
_TLS_OPTIONS = (
    "ca_cert",
    "ca_pem",
    "client_cert",
    "client_cert_pem",
    "private_key",
    "private_key_pem",
    "private_key_password",
    "insecure",
    "alpn",
)
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


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _pem(value: Any) -> str:
    """Text of a certificate or key, its lines restored if a form or an environment variable has joined them."""
    text = _text(value).replace("\\n", "\n")
    if "\n" in text.strip():
        return text
    return re.sub(r"(-----BEGIN [^-]+-----)\s*(.*?)\s*(-----END [^-]+-----)\s*", r"\1\n\2\n\3\n", text)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if isinstance(value, str) and value.strip().lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return number

    return read


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        text = str(value).strip().lower()
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return read


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


def _names(value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("must be a list of protocol names, or text with commas between them")
    return [name.strip() for name in names]


def _prefix(value: Any) -> str:
    text = _text(value)
    if len(text) > 200 or any(ord(character) < 32 for character in text):
        raise ValueError("must be at most 200 characters, none of them a control character")
    return text


OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "protocol": _protocol,
    "transport": _one_of("tcp", "websockets"),
    "websocket_path": _text,
    "websocket_headers": _headers,
    "keepalive": _whole(5, 65_535),
    "session_expiry": _whole(1, _MOST_SECONDS),
    "receive_maximum": _whole(1, 65_535),
    "timeout": _whole(1, 300),
    "client_id_prefix": _prefix,
    "tls": _flag,
    "insecure": _flag,
    "ca_cert": _text,
    "ca_pem": _pem,
    "client_cert": _text,
    "client_cert_pem": _pem,
    "private_key": _text,
    "private_key_pem": _pem,
    "private_key_password": _text,
    "alpn": _names,
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
    options = _read_options(where, connection.extra)
    tls = options.get("tls", False)
    websockets = options.get("transport") == "websockets"
    _check_fit(where, options, tls, websockets)
    default_port = (443 if tls else 80) if websockets else (8883 if tls else 1883)
    plain = {name: value for name, value in options.items() if name not in _TLS_OPTIONS}
    return MqttSettings(
        conn_id=connection.conn_id,
        host=connection.host,
        port=connection.port or default_port,
        username=connection.login,
        password=connection.password,
        tls_options={name: value for name, value in options.items() if name in _TLS_OPTIONS},
        **plain,
    )


def _read_options(where: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in extra.items():
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(OPTIONS)}"
            raise ConfigurationError(f"{where}: its extra holds the unknown option {name!r}; {hint}")
        if value is None or value == "":
            continue  # a field of the form that was left empty
        try:
            options[name] = OPTIONS[name](value)
        except ValueError as error:
            raise ConfigurationError(f"{where}: the option {name!r} of its extra {error}") from None
    return options


def _check_fit(where: str, options: Mapping[str, Any], tls: bool, websockets: bool) -> None:
    """Refuse options that would have no effect: whoever sets them believes they have."""
    for name in _TLS_OPTIONS:
        if not tls and options.get(name):
            raise ConfigurationError(f"{where}: the option {name!r} needs tls, which is not switched on in its extra")
    for name in _WEBSOCKET_OPTIONS:
        if not websockets and name in options:
            raise ConfigurationError(f'{where}: the option {name!r} needs "transport": "websockets" in its extra')
    for one, other in (("client_cert", "client_cert_pem"), ("private_key", "private_key_pem"), ("ca_cert", "ca_pem")):
        if one in options and other in options:
            raise ConfigurationError(f"{where}: its extra holds both {one!r} and {other!r}; keep one of them")
    has_key = "private_key" in options or "private_key_pem" in options
    if has_key and not ("client_cert" in options or "client_cert_pem" in options):
        raise ConfigurationError(f"{where}: its extra holds a private key but no client certificate")


class _Socket(ssl.SSLSocket):
    """Closes itself when no agreement is reached, for a client that then forgets it."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def make_tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """The TLS context of a connection, or ``None`` without TLS. It reads files: call it in a thread.

    :raises ConfigurationError: when a certificate or key cannot be read, or they do not belong together.
    """
    if not settings.tls:
        return None
    options = settings.tls_options
    try:
        context = ssl.create_default_context(cafile=options.get("ca_cert"), cadata=options.get("ca_pem"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{settings.where}: the CA certificate cannot be used: {error}") from None
    context.sslsocket_class = _Socket
    if options.get("insecure"):
        log.warning(
            "%s: the option 'insecure' switches the check of the broker's certificate off; anyone on the way can read "
            "and forge messages",
            settings.where,
        )
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get("alpn"):
        context.set_alpn_protocols(options["alpn"])
    if "client_cert" in options or "client_cert_pem" in options:
        try:
            _load_client_certificate(context, options)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{settings.where}: the client certificate or its private key cannot be used: {error}"
            ) from None
    return context


def _load_client_certificate(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    # A password that is missing must be an error, not a question on the terminal.
    password = options.get("private_key_password", "")
    certificate, key = options.get("client_cert"), options.get("private_key")
    written: list[str] = []
    try:
        if "client_cert_pem" in options:
            certificate = _write(written, options["client_cert_pem"])
        if "private_key_pem" in options:
            key = _write(written, options["private_key_pem"])
        context.load_cert_chain(str(certificate), key, password)
    finally:
        for path in written:
            os.unlink(path)


def _write(written: list[str], pem: str) -> str:
    """Put text into a file that only we can read: the TLS library takes certificates from files alone."""
    handle, path = tempfile.mkstemp(suffix=".pem")
    written.append(path)
    with os.fdopen(handle, "w", encoding="ascii", errors="replace") as file:
        file.write(pem)
    return path
