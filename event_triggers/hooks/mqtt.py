"""The hook of the connection type ``mqtt``: its form, and the button that tests a connection.

Triggers do not use it: they read the connection themselves, without blocking the triggerer.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow.sdk import BaseHook

from event_triggers.errors import EventTriggersError, MissingExtraError
from event_triggers.hooks.mqtt_form import BEHAVIOUR, FIELDS
from event_triggers.sources._mqtt_settings import MqttSettings, make_tls_context, read_settings
from event_triggers.sources.base import BrokerConnection

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
        """The form's fields for Airflow before 3.2; later versions read them from the provider's description."""
        from wtforms import BooleanField, IntegerField, PasswordField, StringField  # type: ignore[import-untyped]
        from wtforms.validators import Optional, any_of  # type: ignore[import-untyped]

        widgets: dict[str, Any] = {}
        for name, field in FIELDS.items():
            schema = field["schema"]
            kind = {"boolean": BooleanField, "integer": IntegerField}.get(schema["type"][0], StringField)
            if schema.get("format") == "password":
                kind = PasswordField
            validators = [any_of(schema["enum"])] if "enum" in schema else []
            widgets[name] = kind(
                field["label"],
                validators=[*validators, Optional()],
                description=field["description"],
                default=schema.get("default"),
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What is hidden and shown of the common fields, for Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in BEHAVIOUR.items()}

    def get_settings(self) -> MqttSettings:
        """The connection, read.

        :raises ConfigurationError: naming the option that is wrong.
        """
        connection = self.get_connection(self.mqtt_conn_id)
        return read_settings(
            BrokerConnection(
                conn_id=self.mqtt_conn_id,
                conn_type=connection.conn_type or "",
                host=connection.host or None,
                port=connection.port,
                login=connection.login or None,
                password=connection.password or None,
                schema=connection.schema or None,
                extra=connection.extra_dejson if connection.extra else {},
            )
        )

    def test_connection(self) -> tuple[bool, str]:
        """Connect and disconnect, leaving nothing behind; tells whether that worked, and what the broker said."""
        try:
            settings = self.get_settings()
            # In a thread of its own: whoever calls may have an event loop running.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, _connect(settings)).result()
        except EventTriggersError as error:
            return False, str(error)
        over = f"{settings.transport} with TLS" if settings.tls else settings.transport
        return True, f"Connected to {settings.host}:{settings.port} by MQTT {settings.protocol} over {over}"


async def _connect(settings: MqttSettings) -> None:
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
