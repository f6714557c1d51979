"""The connection forms of the types ``amqp`` and ``nats``, as data: Airflow 3.3 reads them without importing a hook.

Fields have no default: the form would store it, and a value that has no effect is refused.
"""

from __future__ import annotations

from typing import Any

from event_triggers.hooks._fields import TLS, form_field

__all__ = ["AMQP_BEHAVIOUR", "AMQP_FIELDS", "NATS_BEHAVIOUR", "NATS_FIELDS"]

AMQP_FIELDS: dict[str, dict[str, Any]] = {
    **TLS,
    "auth": form_field(
        "Authentication", "external takes the name in the client certificate.", enum=["plain", "external"]
    ),
    "heartbeat": form_field("Heartbeat (s)", "10 if empty. After two silent ones the broker gives up.", "integer"),
    "timeout": form_field("Timeout (s)", "For connecting; 10 if empty.", "integer"),
}
"""The fields of an amqp connection's extra, in the form of a provider's ``conn-fields``."""

AMQP_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {"schema": "Virtual host"},
    "placeholders": {"host": "rabbitmq.example.com", "port": "5672, with TLS 5671", "schema": "/"},
}
"""What is hidden and shown of the common fields, in the form of a provider's ``ui-field-behaviour``."""

NATS_FIELDS: dict[str, dict[str, Any]] = {
    "token": form_field("Token", "Instead of login and password.", format="password"),
    "creds": form_field("Credentials (file)", "The file that nsc generates, on the triggerer."),
    "creds_text": form_field("Credentials (text)", "The same as text, instead of a file.", format="password"),
    "domain": form_field("JetStream domain", "If the stream is in another one than the server's."),
    "inbox_prefix": form_field("Inbox prefix", "_INBOX if empty; for users who may not subscribe to that."),
    **TLS,
}
"""The fields of a nats connection's extra."""

NATS_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema"],
    "relabeling": {"host": "Host, or several with commas between"},
    "placeholders": {"host": "nats.example.com", "port": "4222"},
}
"""What is hidden and shown of the common fields."""
