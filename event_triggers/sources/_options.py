"""What the extra of an Airflow connection holds, for the connection types that are ours: options, and TLS.

Every wrong value is an error that names the connection and the option; an unknown option is one too.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from event_triggers.errors import ConfigurationError
from event_triggers.text import plain_logger

__all__ = [
    "TLS_OPTIONS",
    "as_flag",
    "as_pem",
    "as_text",
    "check_tls_options",
    "one_of",
    "read_options",
    "read_tls",
    "tls_context",
    "whole",
]

log = plain_logger(__name__)


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def as_pem(value: Any) -> str:
    """Text of a certificate or key, its lines restored if a form or an environment variable has joined them."""
    text = as_text(value).replace("\\n", "\n")
    if "\n" in text.strip():
        return text
    return re.sub(r"(-----BEGIN [^-]+-----)\s*(.*?)\s*(-----END [^-]+-----)\s*", r"\1\n\2\n\3\n", text)


def as_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if isinstance(value, str) and value.strip().lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("must be true or false")


def whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return number

    return read


def one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        text = str(value).strip().lower()
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return read


def as_names(value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("must be a list of protocol names, or text with commas between them")
    return [name.strip() for name in names]


TLS_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "ca_cert": as_text,
    "ca_pem": as_pem,
    "client_cert": as_text,
    "client_cert_pem": as_pem,
    "private_key": as_text,
    "private_key_pem": as_pem,
    "private_key_password": as_text,
    "insecure": as_flag,
    "alpn": as_names,
}
"""What the extra of a connection may say about TLS, and how each value is read."""


def read_options(where: str, extra: Mapping[str, Any], known: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Read an extra.

    :param known: how each option that there is is read; a reader raises ``ValueError``.
    :raises ConfigurationError: naming the connection and the option that is wrong.
    """
    options: dict[str, Any] = {}
    for name, value in extra.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{where}: its extra holds the unknown option {name!r}; {hint}")
        if value is None or value == "":
            continue  # a field of the form that was left empty
        try:
            options[name] = known[name](value)
        except ValueError as error:
            raise ConfigurationError(f"{where}: the option {name!r} of its extra {error}") from None
    return options


def check_tls_options(where: str, options: Mapping[str, Any], tls: bool) -> None:
    """Refuse options that would have no effect: whoever sets them believes they have."""
    for name in TLS_OPTIONS:
        if not tls and options.get(name):
            raise ConfigurationError(f"{where}: the option {name!r} needs tls, which is not switched on in its extra")
    for one, other in (("client_cert", "client_cert_pem"), ("private_key", "private_key_pem"), ("ca_cert", "ca_pem")):
        if one in options and other in options:
            raise ConfigurationError(f"{where}: its extra holds both {one!r} and {other!r}; keep one of them")
    has_key = "private_key" in options or "private_key_pem" in options
    if has_key and not ("client_cert" in options or "client_cert_pem" in options):
        raise ConfigurationError(f"{where}: its extra holds a private key but no client certificate")


def read_tls(where: str, options: Mapping[str, Any], tls: bool) -> ssl.SSLContext | None:
    """Check the TLS options among these, and make the context of them; ``None`` without TLS. It reads files.

    :raises ConfigurationError: naming the connection and the option that is wrong.
    """
    check_tls_options(where, options, tls)
    return tls_context(where, options) if tls else None


class _Socket(ssl.SSLSocket):
    """Closes itself when no agreement is reached, for a client that then forgets it."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def tls_context(where: str, options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS context of a connection. It reads files: call it in a thread.

    :param where: the connection, for messages.
    :param options: those of :data:`TLS_OPTIONS`; others are passed over.
    :raises ConfigurationError: when a certificate or key cannot be read, or they do not belong together.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("ca_cert"), cadata=options.get("ca_pem"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: the CA certificate cannot be used: {error}") from None
    context.sslsocket_class = _Socket
    if options.get("insecure"):
        log.warning(
            "%s: the option 'insecure' switches the check of the broker's certificate off; anyone on the way can read "
            "and forge messages",
            where,
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
                f"{where}: the client certificate or its private key cannot be used: {error}"
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
