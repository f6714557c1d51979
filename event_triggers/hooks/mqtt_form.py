"""The connection form of the type ``mqtt``, as data: Airflow 3.3 reads it without importing a hook.

Fields have no default where the value only makes sense with another one: the form would store it, and a value that has
no effect is refused.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BEHAVIOUR", "FIELDS"]


def _field(label: str, description: str, type_: str = "string", **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [type_, "null"], **schema}}


FIELDS: dict[str, dict[str, Any]] = {
    "protocol": _field("MQTT version", "5, unless the broker is too old for it.", enum=["5", "3.1.1"], default="5"),
    "transport": _field("Transport", "How the broker is reached.", enum=["tcp", "websockets"], default="tcp"),
    "tls": _field("TLS", "Encrypt the connection and check the broker's certificate.", "boolean", default=False),
    "ca_cert": _field(
        "CA certificate (file)", "PEM file on the triggerer; without one the system's authorities are trusted."
    ),
    "ca_pem": _field("CA certificate (text)", "The same as text, instead of a file.", format="multiline"),
    "client_cert": _field("Client certificate (file)", "PEM file on the triggerer, for brokers that ask for one."),
    "private_key": _field("Private key (file)", "PEM file with the certificate's key, if the certificate's has none."),
    "client_cert_pem": _field("Client certificate (text)", "The same as text, instead of a file.", format="multiline"),
    "private_key_pem": _field("Private key (text)", "The same as text, instead of a file.", format="multiline"),
    "private_key_password": _field("Private key password", "If the private key is encrypted.", format="password"),
    "insecure": _field(
        "Do not check the certificate", "For a test with a self-made certificate, and for nothing else.", "boolean"
    ),
    "alpn": _field("ALPN protocols", "With commas between them; for brokers that share port 443."),
    "websocket_path": _field("Websocket path", "With websockets only; /mqtt if empty."),
    "websocket_headers": _field("Websocket headers", 'With websockets only: {"name": "value"}.', format="password"),
    "keepalive": _field(
        "Keep-alive (s)", "After so much silence the broker is asked whether it is there.", "integer", default=30
    ),
    "timeout": _field("Timeout (s)", "For connecting, and for each answer of the broker.", "integer", default=10),
    "session_expiry": _field(
        "Session expiry (s)",
        "For how long the broker keeps messages for a group whose triggerer is away (MQTT 5).",
        "integer",
        default=604_800,
    ),
    "receive_maximum": _field(
        "Receive maximum", "How many messages may be unacknowledged at a time (MQTT 5).", "integer", default=200
    ),
    "client_id_prefix": _field("Client identifier prefix", "What the broker's access rules know us by.", default="aet"),
}
"""The fields of the extra, by name, in the form of a provider's ``conn-fields``."""

BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema"],
    "relabeling": {},
    "placeholders": {"host": "mqtt.example.com", "port": "1883, with TLS 8883"},
}
"""What is hidden and shown of the common fields, in the form of a provider's ``ui-field-behaviour``."""
