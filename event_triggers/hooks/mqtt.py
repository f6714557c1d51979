"""The hook of the connection type ``mqtt``: its form, and the button that tests a connection.

Triggers do not use it: they read the connection themselves, without blocking the triggerer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.sdk import BaseHook

from event_triggers.errors import EventTriggersError, MissingExtraError
from event_triggers.hooks._forms import behaviour, tested, to_broker_connection, widgets
from event_triggers.hooks.mqtt_form import BEHAVIOUR, FIELDS
from event_triggers.sources._mqtt_settings import MqttSettings, make_tls_context, read_settings

__all__ = ["MqttHook"]


class MqttHook(BaseHook):
    """A connection to an MQTT broker.

    :param mqtt_conn_id: the id of an Airflow connection of type ``mqtt``.
    """

    conn_name_attr = "mqtt_conn_id"
    default_conn_name = "mqtt_default"
    conn_type = "mqtt"
    hook_name = "MQTT"

    def __init__(self, mqtt_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mqtt_conn_id = mqtt_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for Airflow before 3.2."""
        return widgets(FIELDS)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What is hidden and shown of the common fields, for Airflow before 3.2."""
        return behaviour(BEHAVIOUR)

    def get_settings(self) -> MqttSettings:
        """The connection, read.

        :raises ConfigurationError: naming the option that is wrong.
        """
        return read_settings(to_broker_connection(self.mqtt_conn_id, self.get_connection(self.mqtt_conn_id)))

    def test_connection(self) -> tuple[bool, str]:
        """Connect and disconnect, leaving nothing behind; tells whether that worked, and what the broker said."""
        try:
            return tested(_connect(self.get_settings()))
        except EventTriggersError as error:
            return False, str(error)


async def _connect(settings: MqttSettings) -> str:
    try:
        from event_triggers.sources import _mqtt_session
    except ImportError as error:
        raise MissingExtraError("An mqtt connection", error.name or "aiomqtt", "mqtt") from error
    context = await asyncio.to_thread(make_tls_context, settings)
    async with _mqtt_session.connect(
        settings,
        context,
        client_id=settings.passing_id(),
        keep_session=False,
        clean=True,
        on_message=lambda *_: None,
    ):
        pass
    over = f"{settings.transport} with TLS" if settings.tls else settings.transport
    return f"Connected to {settings.host}:{settings.port} by MQTT {settings.protocol} over {over}"
