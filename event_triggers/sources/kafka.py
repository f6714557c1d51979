"""Kafka: a log, read by one consumer per cluster and topic, without consumer group and without commits.

How it is read is told in :mod:`event_triggers.sources._kafka_stream`, how a connection is read in
:mod:`event_triggers.sources._kafka_config`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from event_triggers.errors import ConfigurationError, InvalidEventError, MissingExtraError
from event_triggers.message import Message
from event_triggers.sources._kafka_config import ISOLATION_LEVELS, read_settings
from event_triggers.sources.base import Opening, Source, Stream

__all__ = ["KafkaTopic"]

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, init=False)
class KafkaTopic(Source):
    """One or several topics of a Kafka cluster.

    Sources with the same connection, topics and isolation share one consumer per triggerer, whatever their keys.
    A topic need not exist yet; it is never created by waiting for it.

    :param topic: the topic, or a list of topics.
    :param key: only messages with exactly this key count; ``None`` takes every message.
    :param conn_id: an Airflow connection of type ``kafka``, whose extra holds librdkafka's keys.
    :param isolation: ``"read_committed"`` or ``"read_uncommitted"``, for messages that were written in transactions;
        by default the connection's ``isolation.level``, else ``"read_committed"``.
    """

    topic: str | tuple[str, ...]
    message_key: str | None
    conn_id: str
    isolation: str | None

    kind: ClassVar[str] = "kafka"
    conn_type: ClassVar[str] = "kafka"
    client: ClassVar[str] = "aiokafka"
    install: ClassVar[str] = "airflow-event-triggers[kafka]"
    replayable: ClassVar[bool] = True

    def __init__(
        self,
        topic: str | Sequence[str],
        *,
        key: str | None = None,
        conn_id: str = "kafka_default",
        isolation: str | None = None,
    ) -> None:
        # By hand, because ``key`` is a method of every source, so the field needs another name than the argument.
        values = {
            "topic": tuple(topic) if isinstance(topic, list | tuple) else topic,
            "message_key": key,
            "conn_id": conn_id,
            "isolation": isolation,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics, as they were given."""
        return (self.topic,) if isinstance(self.topic, str) else self.topic

    @property
    def name(self) -> str:
        return ",".join(self.topics)

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, tuple(sorted(set(self.topics))), self.isolation)

    def routes(self, message: Message) -> bool:
        return self.message_key is None or message.key == self.message_key.encode()

    def serialize(self) -> dict[str, Any]:
        data = super().serialize()
        data["key"] = data.pop("message_key")
        return data

    def validate(self) -> None:
        topics: Any = self.topic  # DAG authors write anything here
        if not isinstance(topics, str | tuple) or not topics:
            raise InvalidEventError(f"KafkaTopic needs a topic, or a list of topics, not {topics!r}")
        for topic in (topics,) if isinstance(topics, str) else topics:
            if not isinstance(topic, str) or not (_templated(topic) or _TOPIC.fullmatch(topic)) or topic in (".", ".."):
                raise InvalidEventError(
                    f"KafkaTopic: no topic can be called {topic!r}; names are of letters, digits, '.', '_' and '-', "
                    f"up to 249 of them, and patterns are not understood"
                )
        options: dict[str, Any] = {"key": self.message_key, "conn_id": self.conn_id, "isolation": self.isolation}
        for option, value in options.items():
            if not isinstance(value, str) and (value is not None or option == "conn_id"):
                raise InvalidEventError(f"KafkaTopic {self.name!r}: {option} must be a text, not {value!r}")
        if not self.conn_id:
            raise InvalidEventError(f"KafkaTopic {self.name!r}: conn_id must name a connection")
        if self.isolation is not None and not _templated(self.isolation) and self.isolation not in ISOLATION_LEVELS:
            raise InvalidEventError(
                f"KafkaTopic {self.name!r}: isolation must be one of {', '.join(ISOLATION_LEVELS)}, "
                f"not {self.isolation!r}"
            )

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist or is wrong, or the topic's name is impossible.
        :raises MissingExtraError: when aiokafka is not installed.
        :raises StreamError: when no broker can be reached, refuses the login, or the topic may not be read.
        """
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        try:
            # The only importers of aiokafka.
            from event_triggers.sources._kafka_client import connect
            from event_triggers.sources._kafka_stream import KafkaStream
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "aiokafka":
                raise
            raise MissingExtraError("KafkaTopic", "aiokafka", "kafka") from error
        try:
            self.validate()  # again: templates are rendered now
        except InvalidEventError as error:
            raise ConfigurationError(str(error)) from error
        settings = read_settings(await opening.connection(self.conn_id))
        isolation = self.isolation or settings.isolation or "read_committed"
        async with connect(settings, isolation, opening.clock) as client:
            stream = KafkaStream(client, sorted(set(self.topics)), opening.clock, opening.tell)
            await stream.begin(opening.start)
            yield stream


def _templated(text: str) -> bool:
    return "{{" in text or "{%" in text
