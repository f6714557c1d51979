"""One deferrable sensor for many awaited messages, one marker task for each of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from event_triggers.condition import at_least
    from event_triggers.errors import EventTriggersError, InvalidEventError
    from event_triggers.event import Event
    from event_triggers.group import EventGroup
    from event_triggers.marker import EventJoin, EventMarker
    from event_triggers.message import Message
    from event_triggers.sensor import ArrivedMessage, EventGroupSensor
    from event_triggers.sources.amqp import AmqpQueue
    from event_triggers.sources.assets import AssetEvents
    from event_triggers.sources.base import Source, Stream
    from event_triggers.sources.from_trigger import FromTrigger
    from event_triggers.sources.kafka import KafkaTopic
    from event_triggers.sources.mqtt import MqttTopic
    from event_triggers.sources.nats import NatsSubject
    from event_triggers.sources.redis import RedisStream
    from event_triggers.sources.sqs import SqsQueue
    from event_triggers.sources.webhook import Webhook
    from event_triggers.stream_trigger import StreamTrigger
    from event_triggers.trigger import EventGroupTrigger

__version__ = "0.1.0"

__all__ = [
    "AmqpQueue",
    "ArrivedMessage",
    "AssetEvents",
    "Event",
    "EventGroup",
    "EventGroupSensor",
    "EventGroupTrigger",
    "EventJoin",
    "EventMarker",
    "EventTriggersError",
    "FromTrigger",
    "InvalidEventError",
    "KafkaTopic",
    "Message",
    "MqttTopic",
    "NatsSubject",
    "RedisStream",
    "Source",
    "SqsQueue",
    "Stream",
    "StreamTrigger",
    "Webhook",
    "at_least",
]

_HOMES = {
    "AmqpQueue": "sources.amqp",
    "ArrivedMessage": "sensor",
    "AssetEvents": "sources.assets",
    "Event": "event",
    "EventGroup": "group",
    "EventGroupSensor": "sensor",
    "EventGroupTrigger": "trigger",
    "EventJoin": "marker",
    "EventMarker": "marker",
    "EventTriggersError": "errors",
    "FromTrigger": "sources.from_trigger",
    "InvalidEventError": "errors",
    "KafkaTopic": "sources.kafka",
    "Message": "message",
    "MqttTopic": "sources.mqtt",
    "NatsSubject": "sources.nats",
    "RedisStream": "sources.redis",
    "Source": "sources.base",
    "SqsQueue": "sources.sqs",
    "Stream": "sources.base",
    "Webhook": "sources.webhook",
    "StreamTrigger": "stream_trigger",
    "at_least": "condition",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that looking at this package (as Airflow does for its provider entry point) imports next to nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
