"""The connection forms of the types ``amqp`` and ``nats``, as data: Airflow 3.3 reads them without importing a hook.

Fields have no default: the form would store it, and a value that has no effect is refused.
"""

from __future__ import annotations

from typing import Any

__all__ = ["AMQP_BEHAVIOUR", "AMQP_FIELDS", "NATS_BEHAVIOUR", "NATS_FIELDS"]


def _field(label: str, description: str, type_: str = "string", **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [type_, "null"], **schema}}


_TLS: dict[str, dict[str, Any]] = {
    "tls": _field("TLS", "Encrypt the connection and check the broker's certificate.", "boolean"),
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
}

AMQP_FIELDS: dict[str, dict[str, Any]] = {
    **_TLS,
    "auth": _field("Authentication", "external takes the name in the client certificate.", enum=["plain", "external"]),
    "heartbeat": _field("Heartbeat (s)", "10 if empty. After two silent ones the broker gives up.", "integer"),
    "timeout": _field("Timeout (s)", "For connecting; 10 if empty.", "integer"),
}
"""The fields of an amqp connection's extra, in the form of a provider's ``conn-fields``."""

AMQP_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {"schema": "Virtual host"},
    "placeholders": {"host": "rabbitmq.example.com", "port": "5672, with TLS 5671", "schema": "/"},
}
"""What is hidden and shown of the common fields, in the form of a provider's ``ui-field-behaviour``."""

NATS_FIELDS: dict[str, dict[str, Any]] = {
    "token": _field("Token", "Instead of login and password.", format="password"),
    "creds": _field("Credentials (file)", "The file that nsc generates, on the triggerer."),
    "creds_text": _field("Credentials (text)", "The same as text, instead of a file.", format="password"),
    "domain": _field("JetStream domain", "If the stream is in another one than the server's."),
    "inbox_prefix": _field("Inbox prefix", "_INBOX if empty; for users who may not subscribe to that."),
    **_TLS,
}
"""The fields of a nats connection's extra."""

NATS_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema"],
    "relabeling": {"host": "Host, or several with commas between"},
    "placeholders": {"host": "nats.example.com", "port": "4222"},
}
"""What is hidden and shown of the common fields."""
