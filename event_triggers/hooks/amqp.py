"""The hook of the connection type ``amqp``: its form, and the button that tests a connection.

Triggers do not use it: they read the connection themselves, without blocking the triggerer.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from event_triggers.hooks._forms import behaviour, tested, to_broker_connection, widgets
from event_triggers.hooks.broker_forms import AMQP_BEHAVIOUR, AMQP_FIELDS
from event_triggers.sources._amqp_client import connect
from event_triggers.sources.base import BrokerConnection

__all__ = ["AmqpHook"]


class AmqpHook(BaseHook):
    """A connection to an AMQP 0.9.1 broker such as RabbitMQ.

    :param amqp_conn_id: the id of an Airflow connection of type ``amqp``.
    """

    conn_name_attr = "amqp_conn_id"
    default_conn_name = "amqp_default"
    conn_type = "amqp"
    hook_name = "AMQP (RabbitMQ)"

    def __init__(self, amqp_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.amqp_conn_id = amqp_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for Airflow before 3.2."""
        return widgets(AMQP_FIELDS)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What is hidden and shown of the common fields, for Airflow before 3.2."""
        return behaviour(AMQP_BEHAVIOUR)

    def test_connection(self) -> tuple[bool, str]:
        """Connect and disconnect, leaving nothing behind; tells whether that worked, and what the broker said."""
        connection = self.get_connection(self.amqp_conn_id)
        return tested(_connect(to_broker_connection(self.amqp_conn_id, connection)))


async def _connect(connection: BrokerConnection) -> str:
    async with connect(connection) as client:
        return f"Connected: {client.where}"
