"""Airflow connections, as sources and the API client see them."""

from __future__ import annotations

import json
from typing import Any

from event_triggers.errors import ConfigurationError, ConnectionMissingError, StreamError
from event_triggers.sources.base import BrokerConnection

__all__ = ["airflow_connection"]


async def airflow_connection(conn_id: str) -> BrokerConnection:
    """Look a connection up where Airflow keeps it: environment, secrets backend, database.

    In the triggerer this never blocks the event loop: Airflow's supervisor answers. It is heard
    to the end, even when whoever asked is cancelled.

    :raises ConnectionMissingError: when it is not defined.
    :raises StreamError: when Airflow could not look it up.
    :raises ConfigurationError: when its extra is not a JSON object.
    """
    from event_triggers.compat import ask_supervisor

    return await ask_supervisor(_look_up(conn_id))


async def _look_up(conn_id: str) -> BrokerConnection:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowRuntimeError

    from event_triggers.compat import AirflowNotFoundException

    try:
        connection = await Connection.async_get(conn_id)
    except AirflowNotFoundException as error:
        raise ConnectionMissingError(conn_id) from error
    except AirflowRuntimeError as error:
        # Not the same as "there is none": whoever asked must try again, and not go on without.
        raise StreamError(f"Airflow could not look the connection {conn_id!r} up: {error}") from error
    if connection is None:
        raise ConnectionMissingError(conn_id)
    return BrokerConnection(
        conn_id=conn_id,
        conn_type=connection.conn_type or "",
        host=connection.host or None,
        port=connection.port,
        login=connection.login or None,
        password=connection.password or None,
        schema=connection.schema or None,
        extra=await _extra_of(connection),
    )


async def _extra_of(connection: Any) -> dict[str, Any]:
    if not connection.extra:
        return {}
    if hasattr(connection, "aextra_dejson"):
        # Since Airflow 3.3; it also has every value in the extra masked in logs.
        await connection.aextra_dejson()
    try:
        extra = json.loads(connection.extra)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ConfigurationError(f"the extra of the connection {connection.conn_id!r} is not a JSON object")
    return extra
