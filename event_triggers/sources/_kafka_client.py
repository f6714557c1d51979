"""The reach into aiokafka: a consumer without a group, without commits, and without resets of its own.

Flow: :func:`connect` starts the consumer; :meth:`KafkaClient.watch` names the topics; their partitions are assigned by
hand, each from an offset that the caller gives; :meth:`KafkaClient.fetch` hands over what was fetched ahead.

Invariants:

* No topic is ever created by asking for it, and a topic that does not exist is no error here.
* Metadata are asked for at most four times a second: aiokafka asks without a pause while a partition has no leader.
* An offset that the broker no longer has is reported (:class:`OffsetsGone`), never replaced.
* Whatever goes wrong is a :class:`StreamError` that names the cluster; closing takes bounded time.

Nothing is kept at the broker, so a restart begins with what the caller remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition  # type: ignore[import-untyped]
from aiokafka import __version__ as aiokafka_version
from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]
from aiokafka.conn import create_conn  # type: ignore[import-untyped]

from event_triggers.clock import Clock
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources._kafka_config import KafkaSettings
from event_triggers.sources._kafka_headers import read_again
from event_triggers.sources._kafka_metadata import TopicsRequest, TopicState, read_topics
from event_triggers.sources._kafka_reasons import told, why_not
from event_triggers.sources._kafka_security import Tokens, tls_context
from event_triggers.text import plain_logger

__all__ = ["KafkaClient", "OffsetsGone", "Partition", "connect"]

log = plain_logger(__name__)

Partition = tuple[str, int]
"""Topic and number; aiokafka's ``TopicPartition`` is one too."""

_METADATA_PAUSE: Final = 0.25
_CLOSE_SECONDS: Final = 4.0
_FINISH_STARTING: Final = 1.0
"""Seconds that connecting may go on when nobody wants the connection any more."""
_T = TypeVar("_T")


def _is_no_login(record: logging.LogRecord) -> bool:
    """aiokafka shows every request when it logs at level DEBUG; logins hold the password."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


# A named function, so adding it again after a reload changes nothing.
logging.getLogger(create_conn.__module__).addFilter(_is_no_login)


class OffsetsGone(Exception):
    """The broker has no such offsets.

    :param offsets: what was asked for.
    """

    def __init__(self, offsets: Mapping[Partition, int]) -> None:
        super().__init__(offsets)
        self.offsets = offsets


@asynccontextmanager
async def connect(settings: KafkaSettings, isolation: str, clock: Clock) -> AsyncIterator[KafkaClient]:
    """Connect, and close again.

    :raises ConfigurationError: for a file, a callable or a package that is missing or wrong.
    :raises StreamError: when no broker can be reached, or it refuses the login.
    """
    if settings.mechanism == "GSSAPI":
        await anyio.to_thread.run_sync(_need_gssapi, settings)
    context = await anyio.to_thread.run_sync(tls_context, settings)
    tokens = _TokenProvider(Tokens(settings, settings.tokens, clock)) if settings.tokens is not None else None
    client = KafkaClient(settings, isolation, context, tokens)
    try:
        await client.start()
        yield client
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS + 1, shield=True):
            await client.close()


def _need_gssapi(settings: KafkaSettings) -> None:
    try:
        import gssapi  # type: ignore[import-not-found]  # noqa: F401
    except (ImportError, OSError) as error:
        raise ConfigurationError(
            f"Kafka connection {settings.conn_id!r}: sasl.mechanism GSSAPI needs the Python package gssapi and the "
            f"system's Kerberos library ({error}); install them with: apt-get install libkrb5-dev, pip install gssapi"
        ) from error


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.failure: Exception | None = None

    async def token(self) -> str:
        try:
            return await self._tokens.current()
        except (ConfigurationError, StreamError) as error:
            self.failure = error
            # Anything else than aiokafka's own errors would end its background tasks.
            raise kafka_errors.KafkaConnectionError(str(error)) from error

    def extensions(self) -> dict[str, str]:
        return dict(self._tokens.extensions)


class KafkaClient:
    """One consumer. Made by :func:`connect`."""

    def __init__(
        self, settings: KafkaSettings, isolation: str, context: ssl.SSLContext | None, tokens: _TokenProvider | None
    ) -> None:
        self.settings = settings
        self.generation = 0
        """Grows with every answer about the topics."""
        self._topics: frozenset[str] = frozenset()
        self._states: dict[str, TopicState] = {}
        self._next_metadata = 0.0
        self._tokens = tokens
        self._connection = {"ssl_context": context, "sasl_oauth_token_provider": tokens}
        self._consumer = AIOKafkaConsumer(
            **settings.arguments,
            **self._connection,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level=isolation,
        )
        # From here on aiokafka's insides: its client has no public way to ask for metadata.
        self._client = self._consumer._client
        if not hasattr(self._client, "_metadata_update"):
            raise ConfigurationError(f"aiokafka {aiokafka_version} is not known here; install an older one")
        self._client._metadata_update = self._update_metadata

    async def start(self) -> None:
        """Connect to one of the brokers.

        :raises ConfigurationError: when no token can ever be had.
        :raises StreamError: saying why no broker lets us in.
        """
        with self._reported():
            starting = asyncio.create_task(self._consumer.start(), name="event_triggers: start a Kafka consumer")
            try:
                await asyncio.shield(starting)
            except kafka_errors.KafkaConnectionError as error:
                reason = await why_not(self.settings, self._connection)
                raise ((self._tokens and self._tokens.failure) or reason) from error
            except asyncio.CancelledError:
                # aiokafka forgets the connection over which it is just asking when it is cancelled then.
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({starting}, timeout=_FINISH_STARTING)
                    starting.cancel()
                    await asyncio.wait({starting}, timeout=_FINISH_STARTING)
                if starting.done() and not starting.cancelled():
                    starting.exception()  # seen, so that nobody warns of it
                raise

    async def close(self) -> None:
        """Close all connections; takes a few seconds at most."""
        # In tasks of their own: aiokafka's closing can end in a CancelledError that is not ours.
        for what in (self._consumer.stop, self._client.close):
            task = asyncio.create_task(what(), name="event_triggers: close a Kafka consumer")
            await asyncio.wait({task}, timeout=_CLOSE_SECONDS / 2)
            if not task.done():
                log.warning("%s: the connections do not close; they are left to themselves", self.settings.about)
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)
            if task.done() and not task.cancelled() and task.exception() is not None:
                log.debug("%s: closing failed", self.settings.about, exc_info=task.exception())

    # ------------------------------------------------------------------ topics

    async def watch(self, topics: Iterable[str]) -> None:
        """Look for these topics and wait for the answer.

        :raises StreamError: when there is none.
        """
        self._topics = frozenset(topics)
        self._consumer.assign([])
        await self.refresh()

    async def refresh(self) -> None:
        """Ask about the topics again and wait for the answer."""
        before = self.generation
        with self._reported():
            with anyio.fail_after(self.settings.request_timeout + 5):
                await self._client.force_metadata_update()
        if self.generation == before:
            raise StreamError(f"{self.settings.about}: no broker answers what is asked about topics")

    def ask_again(self) -> None:
        """Ask about the topics again, without waiting."""
        self._client.force_metadata_update()

    def partitions(self, topic: str) -> set[Partition]:
        """The topic's partitions, as far as is known; none when it does not exist."""
        numbers = self._consumer.partitions_for_topic(topic) or ()
        return {TopicPartition(topic, number) for number in numbers}

    def has_leader(self, partition: Partition) -> bool:
        """Whether some broker leads it now, as far as is known."""
        return self._client.cluster.leader_for_partition(TopicPartition(*partition)) not in (None, -1)

    def identity(self, topic: str) -> bytes | None:
        """The topic's id, where it exists and the broker gives one."""
        state = self._states.get(topic)
        return state.identity if state is not None and not state.error else None

    def check_topics(self) -> None:
        """All topics may be read, or at least waited for.

        :raises ConfigurationError: when the broker says that a topic can never be called that.
        :raises StreamError: when it may not be read.
        """
        for topic, state in self._states.items():
            error = kafka_errors.for_code(state.error)
            if error is kafka_errors.InvalidTopicError:
                raise ConfigurationError(f"{self.settings.about}: a topic cannot be called {topic!r}")
            if error is kafka_errors.TopicAuthorizationFailedError:
                raise StreamError(self._forbidden(topic))

    def _forbidden(self, topic: str) -> str:
        return f"{self.settings.about}: topic {topic!r} may not be read; grant the operations DESCRIBE and READ on it"

    async def _update_metadata(self, cluster: Any, topics: object) -> bool:
        """Stands in for aiokafka's own; ``topics`` is its idea of which, ``self._topics`` ours."""
        loop = asyncio.get_running_loop()
        # Paced by the machine's time whatever clock the stream goes by: this protects the broker.
        pause = self._next_metadata - loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        self._next_metadata = loop.time() + _METADATA_PAUSE
        nodes = [broker.nodeId for broker in cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes:
            try:
                response = await self._client.send(node, TopicsRequest(self._topics))
            except (kafka_errors.KafkaError, OSError, asyncio.TimeoutError) as error:
                log.debug("%s: broker %s does not answer: %r", self.settings.about, node, error)
                continue
            if not response.brokers:
                continue
            self._states, readable = read_topics(response)
            cluster.update_metadata(readable)
            self.generation += 1
            return True
        cluster.failed_update(None)
        return False

    # ------------------------------------------------------------------ offsets

    async def beginnings(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The oldest offset of each that the broker still has."""
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset behind the newest message of each that may be read at this isolation level."""
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def first_since(self, partitions: Iterable[Partition], milliseconds: int) -> dict[Partition, int | None]:
        """The offset of the first message stamped at or after this; ``None`` where the broker knows of none."""
        asked = {TopicPartition(*one): milliseconds for one in partitions}
        found = await self._offsets(self._consumer.offsets_for_times, asked)
        return {partition: answer.offset if answer is not None else None for partition, answer in found.items()}

    async def _offsets(self, look_up: Callable[[Any], Awaitable[Mapping[Any, _T]]], asked: Any) -> dict[Partition, _T]:
        asked = asked if isinstance(asked, dict) else [TopicPartition(*one) for one in asked]
        if not asked:
            return {}
        with self._reported("look offsets up; is there a partition without a leader?"):
            return dict(await look_up(asked))

    # ------------------------------------------------------------------ messages

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        """Read these partitions from these offsets, and no others. What was fetched ahead is dropped."""
        self._consumer.assign([TopicPartition(*partition) for partition in offsets])
        for partition, offset in offsets.items():
            self.seek(partition, offset)

    def seek(self, partition: Partition, offset: int) -> None:
        """Read this assigned partition from this offset."""
        self._consumer.seek(TopicPartition(*partition), offset)

    async def fetch(self, *, wait: float, limit: int) -> Mapping[TopicPartition, list[ConsumerRecord]]:
        """What has come; nothing when nothing comes within ``wait`` seconds.

        :raises OffsetsGone: when a partition no longer (or not yet) has the offset that is next.
        """
        with self._reported():
            try:
                records = await self._consumer.getmany(timeout_ms=int(wait * 1000), max_records=limit)
            except UnicodeDecodeError:
                records = await read_again(self._consumer, limit)
            return records  # type: ignore[no-any-return]

    async def next_offset(self, partition: Partition) -> int:
        """What will be fetched next from an assigned partition. Does not wait."""
        return int(await self._consumer.position(TopicPartition(*partition)))

    def heard(self, partition: Partition) -> object:
        """Changes whenever a broker has answered a fetch of this assigned partition, with messages or without."""
        return self._consumer.last_poll_timestamp(TopicPartition(*partition))

    # ------------------------------------------------------------------ errors

    @contextlib.contextmanager
    def _reported(self, what: str = "read") -> Iterator[None]:
        about = self.settings.about
        try:
            yield
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OffsetsGone(error.args[0]) from error
        except kafka_errors.TopicAuthorizationFailedError as error:
            raise StreamError(self._forbidden(str(error.args[0] if error.args else ""))) from error
        except kafka_errors.RecordTooLargeError as error:
            raise StreamError(
                f"{about}: a message is larger than what is fetched at once; raise max.partition.fetch.bytes and "
                f"fetch.max.bytes in the connection"
            ) from error
        except kafka_errors.UnsupportedCodecError as error:
            raise StreamError(
                f"{about}: a compressed message needs a package that is missing in the triggerer: {error}; "
                f"install it with: pip install 'airflow-event-triggers[kafka]'"
            ) from error
        except (kafka_errors.KafkaError, OSError, asyncio.TimeoutError) as error:
            raise StreamError(f"{about}: could not {what}: {told(error)}") from error
