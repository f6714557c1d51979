"""What Airflow reads at its entry point: this provider's name, its connection types, its options in airflow.cfg."""

from __future__ import annotations

from typing import Any

from event_triggers import __version__
from event_triggers.hooks import webhook_form
from event_triggers.hooks.broker_forms import AMQP_BEHAVIOUR, AMQP_FIELDS, NATS_BEHAVIOUR, NATS_FIELDS
from event_triggers.hooks.mqtt_form import BEHAVIOUR, FIELDS

__all__ = ["get_provider_info"]


def get_provider_info() -> dict[str, Any]:
    """The description that Airflow's provider manager asks for."""
    return {
        "package-name": "airflow-event-triggers",
        "name": "Event Triggers",
        "description": "One deferrable sensor waits for many messages; one marker task shows each of them.",
        "versions": [__version__],
        "connection-types": [
            {
                "connection-type": "mqtt",
                "hook-name": "MQTT",
                "hook-class-name": "event_triggers.hooks.mqtt.MqttHook",
                "conn-fields": FIELDS,
                "ui-field-behaviour": BEHAVIOUR,
            },
            {
                "connection-type": "webhook",
                "hook-name": "Webhook",
                "hook-class-name": "event_triggers.hooks.webhook.WebhookHook",
                "conn-fields": webhook_form.FIELDS,
                "ui-field-behaviour": webhook_form.BEHAVIOUR,
            },
            {
                "connection-type": "amqp",
                "hook-name": "AMQP (RabbitMQ)",
                "hook-class-name": "event_triggers.hooks.amqp.AmqpHook",
                "conn-fields": AMQP_FIELDS,
                "ui-field-behaviour": AMQP_BEHAVIOUR,
            },
            {
                "connection-type": "nats",
                "hook-name": "NATS",
                "hook-class-name": "event_triggers.hooks.nats.NatsHook",
                "conn-fields": NATS_FIELDS,
                "ui-field-behaviour": NATS_BEHAVIOUR,
            },
        ],
        "config": {"event_triggers": {"description": "Options of event_triggers.", "options": _options()}},
    }


def _options() -> dict[str, dict[str, Any]]:
    return {
        "api_conn_id": _option(
            "The connection by which triggers reach Airflow's own REST API to mark tasks: its address, and as whom.\n"
            "Where there is no such connection, the address of Airflow's configuration is used without credentials.",
            default="airflow_api_default",
            example="airflow_api_marker",
        ),
        "payload_limit": _option(
            "A message whose payload is longer than this, in bytes as JSON, is kept as a reference to its place at\n"
            "the broker instead of whole, as its marker's XCom.",
            type_="integer",
            default="49152",
            example="65536",
        ),
    }


def _option(description: str, *, default: str, example: str, type_: str = "string") -> dict[str, Any]:
    return {
        "description": description,
        "type": type_,
        "default": default,
        "example": example,
        "version_added": "0.1.0",
    }
