"""The connection form of the type ``webhook``, as data: Airflow 3.3 reads it without importing a hook."""

from __future__ import annotations

from typing import Any

from event_triggers.hooks._fields import form_field

__all__ = ["BEHAVIOUR", "FIELDS"]

FIELDS: dict[str, dict[str, Any]] = {
    "scheme": form_field(
        "Scheme",
        "How callers are verified. 'proxy': by what stands before Airflow. 'open': anybody may call.",
        enum=["hmac", "github", "stripe", "slack", "bearer", "proxy", "open"],
        default="hmac",
    ),
    "previous_secret": form_field(
        "Previous secret", "Good as well, while callers change over to the new one.", format="password"
    ),
    "tolerance": form_field(
        "Tolerance (s)",
        "How wrong the clock of a caller may be, for schemes with a time stamp; 300 if empty.",
        "integer",
    ),
    "rate_limit": form_field("Requests per second", "For each process of the API server; 500 if empty.", "number"),
    "remember": form_field(
        "Remember deliveries (s)", "For how long a copy of a delivery is known again; 7 days if empty.", "integer"
    ),
    "json_only": form_field("JSON only", "Refuse bodies that are not JSON.", "boolean"),
    "proxy_header": form_field("Proxy's header", "With 'proxy': what the proxy sets once it has verified a caller."),
    "proxy_value": form_field("Its value", "With 'proxy': what the header says then; SUCCESS if empty."),
}
"""The fields of the extra, by name, in the form of a provider's ``conn-fields``."""

BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["host", "schema", "login", "port"],
    "relabeling": {"password": "Secret"},
    "placeholders": {"password": "a long random text; empty with 'proxy' and 'open'"},
}
"""What is hidden and shown of the common fields, in the form of a provider's ``ui-field-behaviour``."""
