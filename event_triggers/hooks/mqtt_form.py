"""The connection form of the type ``mqtt``, as data: Airflow 3.3 reads it without importing a hook.

Fields have no default where the value only makes sense with another one: the form would store it, and a value that has
no effect is refused.
"""

from __future__ import annotations

from typing import Any

from event_triggers.hooks._fields import TLS, form_field

__all__ = ["BEHAVIOUR", "FIELDS"]

FIELDS: dict[str, dict[str, Any]] = {
    "protocol": form_field("MQTT version", "5, unless the broker is too old for it.", enum=["5", "3.1.1"], default="5"),
    "transport": form_field("Transport", "How the broker is reached.", enum=["tcp", "websockets"], default="tcp"),
    **TLS,
    "tls": form_field("TLS", "Encrypt the connection and check the broker's certificate.", "boolean", default=False),
    "alpn": form_field("ALPN protocols", "With commas between them; for brokers that share port 443."),
    "websocket_path": form_field("Websocket path", "With websockets only; /mqtt if empty."),
    "websocket_headers": form_field("Websocket headers", 'With websockets only: {"name": "value"}.', format="password"),
    "keepalive": form_field(
        "Keep-alive (s)", "After so much silence the broker is asked whether it is there.", "integer", default=30
    ),
    "timeout": form_field("Timeout (s)", "For connecting, and for each answer of the broker.", "integer", default=10),
    "session_expiry": form_field(
        "Session expiry (s)",
        "For how long the broker keeps messages for a group whose triggerer is away (MQTT 5).",
        "integer",
        default=604_800,
    ),
    "receive_maximum": form_field(
        "Receive maximum", "How many messages may be unacknowledged at a time (MQTT 5).", "integer", default=200
    ),
    "client_id_prefix": form_field(
        "Client identifier prefix", "What the broker's access rules know us by.", default="aet"
    ),
}
"""The fields of the extra, by name, in the form of a provider's ``conn-fields``."""

BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema"],
    "relabeling": {},
    "placeholders": {"host": "mqtt.example.com", "port": "1883, with TLS 8883"},
}
"""What is hidden and shown of the common fields, in the form of a provider's ``ui-field-behaviour``."""
