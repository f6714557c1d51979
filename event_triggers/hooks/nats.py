"""The hook of the connection type ``nats``: its form, and the button that tests a connection.

Triggers do not use it: they read the connection themselves, without blocking the triggerer.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from event_triggers.hooks._forms import behaviour, tested, to_broker_connection, widgets
from event_triggers.hooks.broker_forms import NATS_BEHAVIOUR, NATS_FIELDS
from event_triggers.sources._nats_client import connect
from event_triggers.sources.base import BrokerConnection

__all__ = ["NatsHook"]


class NatsHook(BaseHook):
    """A connection to a NATS server with JetStream.

    :param nats_conn_id: the id of an Airflow connection of type ``nats``.
    """

    conn_name_attr = "nats_conn_id"
    default_conn_name = "nats_default"
    conn_type = "nats"
    hook_name = "NATS"

    def __init__(self, nats_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nats_conn_id = nats_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for Airflow before 3.2."""
        return widgets(NATS_FIELDS)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What is hidden and shown of the common fields, for Airflow before 3.2."""
        return behaviour(NATS_BEHAVIOUR)

    def test_connection(self) -> tuple[bool, str]:
        """Connect and disconnect, leaving nothing behind; tells whether that worked, and what the broker said."""
        connection = self.get_connection(self.nats_conn_id)
        return tested(_connect(to_broker_connection(self.nats_conn_id, connection)))


async def _connect(connection: BrokerConnection) -> str:
    async with connect(connection) as jetstream:
        await jetstream.ask("INFO")
        return f"Connected, with JetStream: {jetstream.where}"
