"""What the hooks of our connection types have in common: the form of older Airflow, and a bounded test."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from event_triggers.errors import EventTriggersError
from event_triggers.sources.base import BrokerConnection

__all__ = ["behaviour", "tested", "to_broker_connection", "widgets"]


def widgets(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The form's fields for Airflow before 3.2; later versions read them from the provider's description."""
    from wtforms import BooleanField, FloatField, IntegerField, PasswordField, StringField  # type: ignore[import-untyped]
    from wtforms.validators import Optional, any_of  # type: ignore[import-untyped]

    kinds = {"boolean": BooleanField, "integer": IntegerField, "number": FloatField}
    made: dict[str, Any] = {}
    for name, field in fields.items():
        schema = field["schema"]
        kind = PasswordField if schema.get("format") == "password" else kinds.get(schema["type"][0], StringField)
        made[name] = kind(
            field["label"],
            validators=[*([any_of(schema["enum"])] if "enum" in schema else []), Optional()],
            description=field["description"],
            default=schema.get("default"),
        )
    return made


def behaviour(described: Mapping[str, Any]) -> dict[str, Any]:
    """What is hidden and shown of the common fields, for Airflow before 3.2."""
    return {name.replace("-", "_"): value for name, value in described.items()}


def to_broker_connection(conn_id: str, connection: Any) -> BrokerConnection:
    """An Airflow connection, as sources see it."""
    return BrokerConnection(
        conn_id=conn_id,
        conn_type=connection.conn_type or "",
        host=connection.host or None,
        port=connection.port,
        login=connection.login or None,
        password=connection.password or None,
        schema=connection.schema or None,
        extra=connection.extra_dejson if connection.extra else {},
    )


def tested(attempt: Coroutine[Any, Any, str]) -> tuple[bool, str]:
    """Run a test of a connection: whether it worked, and what was said."""
    try:
        # In a thread of its own: whoever calls may have an event loop running.
        with ThreadPoolExecutor(1) as thread:
            return True, thread.submit(asyncio.run, attempt).result()
    except EventTriggersError as error:
        return False, str(error)
