"""MQTT 3.1.1 and 5: topic filters, delivered to a group by a session that the broker keeps for it.

A *durable* source (QoS 1 or 2) has one session per group and connection at the broker, under a client identifier that
is made from the group's identity: it outlives crashes of the triggerer, and whichever triggerer takes the group over
goes on with it. Messages are acknowledged once they are recorded. When the group has ended for good, ``forget`` removes
the session.

A source that is not durable (QoS 0, or ``durable=False``) shares one connection with all groups of the triggerer and
keeps nothing at the broker.

Which message is which is the business of :mod:`event_triggers.sources._mqtt_identity`; the client library is reached in
:mod:`event_triggers.sources._mqtt_session` alone.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import anyio
import anyio.to_thread

from event_triggers.errors import ConfigurationError, InvalidEventError, MissingExtraError
from event_triggers.message import Message
from event_triggers.sources._mqtt_identity import LiveTopics, SessionMemory
from event_triggers.sources._mqtt_settings import MqttSettings, make_tls_context, read_settings
from event_triggers.sources._mqtt_stream import MqttStream, Receipt
from event_triggers.sources._mqtt_topics import filter_error, matches
from event_triggers.sources.base import Opening, Source, Stream

__all__ = ["MqttTopic"]

_MOST_REMEMBERED = 2048


@dataclass(frozen=True)
class MqttTopic(Source):
    """The messages of an MQTT topic filter.

    :param topic: a topic, or a filter with ``+`` (one level) and ``#`` (all further levels). Shared subscriptions
        (``$share/<name>/<filter>``) are filters too.
    :param qos: the quality of service to subscribe with: 0, 1 or 2. A message comes at the lower of this and what it
        was published with, so publishers must use 1 or 2 as well for messages that may not be lost.
    :param conn_id: an Airflow connection of type ``mqtt``.
    :param durable: whether the broker keeps a session for the group, and with it what is sent while the triggerer is
        away. By default it does at QoS 1 and 2, and not at QoS 0.
    :param retained: whether a message that the broker has stored for a topic (published with the retain flag, before
        the wait began) counts.
    """

    kind: ClassVar[str] = "mqtt"
    conn_type: ClassVar[str] = "mqtt"
    client: ClassVar[str] = "aiomqtt"
    install: ClassVar[str] = "airflow-event-triggers[mqtt]"
    private: ClassVar[bool] = True

    topic: str
    qos: int = 1
    conn_id: str = "mqtt_default"
    durable: bool | None = None
    retained: bool = True

    @property
    def name(self) -> str:
        return self.topic

    @property
    def is_durable(self) -> bool:
        """Whether the broker keeps a session for the group."""
        return self.qos > 0 if self.durable is None else self.durable

    def key(self, group: str) -> Hashable:
        return ("mqtt", self.conn_id, group) if self.is_durable else ("mqtt", self.conn_id)

    def validate(self) -> None:
        where = f"MqttTopic({self.topic!r})"
        wrong = [
            f"{name} must be {what}, got {value!r}" for name, value, fits, what in self._checks() if not fits(value)
        ]
        if wrong:
            raise InvalidEventError(f"{where}: {wrong[0]}")
        error = None if "{{" in self.topic or "{%" in self.topic else filter_error(self.topic)
        if error is not None:
            raise InvalidEventError(f"{where}: the topic filter {error}")
        if self.durable and not self.qos:
            raise InvalidEventError(f"{where}: a durable session needs qos=1 or qos=2; at QoS 0 nothing is kept")

    def _checks(self) -> Iterable[tuple[str, object, Callable[[object], bool], str]]:
        yield "topic", self.topic, lambda value: isinstance(value, str), "text"
        yield "qos", self.qos, lambda value: type(value) is int and value in (0, 1, 2), "0, 1 or 2"
        yield "conn_id", self.conn_id, lambda value: isinstance(value, str) and value != "", "a connection's id"
        yield "durable", self.durable, lambda value: value is None or isinstance(value, bool), "True, False or None"
        yield "retained", self.retained, lambda value: isinstance(value, bool), "True or False"

    def routes(self, message: Message) -> bool:
        if isinstance(message.receipt, Receipt) and message.receipt.retained and not self.retained:
            return False
        return matches(self.topic, message.stream)

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        settings, context, sessions = await self._prepare(opening)
        durable = self.is_durable
        client_id = settings.session_id(opening.group) if durable else settings.passing_id()
        memory = _memories.session(settings, client_id) if durable else _memories.passing(settings, client_id)
        stream = MqttStream(memory, opening, durable=durable)
        async with sessions.connect(
            settings, context, client_id=client_id, keep_session=durable, clean=not durable, on_message=stream.arrived
        ) as session:
            stream.begin(session)
            try:
                yield stream
            finally:
                stream.close()

    async def _prepare(self, opening: Opening) -> tuple[MqttSettings, ssl.SSLContext | None, Any]:
        error = filter_error(self.topic)
        if error is not None:
            raise ConfigurationError(f"MqttTopic({self.topic!r}): the topic filter {error}")
        settings = read_settings(await opening.connection(self.conn_id))
        # Both look at files: certificates, and the client library the first time.
        sessions = await anyio.to_thread.run_sync(_import_sessions)
        return settings, await anyio.to_thread.run_sync(make_tls_context, settings), sessions

    async def forget(self, opening: Opening) -> None:
        """Remove the group's session from the broker.

        :raises StreamError: when the broker cannot be reached now; the session ends when its expiry is over.
        """
        if not self.is_durable:
            return
        settings, context, sessions = await self._prepare(opening)
        client_id = settings.session_id(opening.group)
        # Beginning the session anew, and for no longer than this connection, removes it.
        async with sessions.connect(
            settings, context, client_id=client_id, keep_session=False, clean=True, on_message=lambda *_: None
        ):
            _memories.drop(settings, client_id)


class _Memories:
    """What this process knows of sessions; of the least recently used ones nothing."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[Hashable, SessionMemory] = OrderedDict()
        self._live: OrderedDict[Hashable, LiveTopics] = OrderedDict()

    def session(self, settings: MqttSettings, client_id: str) -> SessionMemory:
        key = (settings.conn_id, settings.host, settings.port, client_id)
        memory = self._sessions.setdefault(key, SessionMemory(client_id))
        self._sessions.move_to_end(key)
        while len(self._sessions) > _MOST_REMEMBERED:
            self._sessions.popitem(last=False)
        return memory

    def passing(self, settings: MqttSettings, client_id: str) -> SessionMemory:
        """Of a connection without a session only the newest messages are worth knowing to the next one."""
        key = (settings.conn_id, settings.host, settings.port)
        live = self._live.setdefault(key, LiveTopics())
        self._live.move_to_end(key)
        while len(self._live) > _MOST_REMEMBERED:
            self._live.popitem(last=False)
        return SessionMemory(client_id, live)

    def drop(self, settings: MqttSettings, client_id: str) -> None:
        self._sessions.pop((settings.conn_id, settings.host, settings.port, client_id), None)

    def clear(self) -> None:
        """Know nothing, as a process that has just started."""
        self._sessions.clear()
        self._live.clear()


_memories = _Memories()


def _import_sessions() -> Any:
    try:
        return import_module("event_triggers.sources._mqtt_session")
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("aiomqtt", "paho"):
            raise MissingExtraError("MqttTopic", error.name or "aiomqtt", "mqtt") from error
        raise
