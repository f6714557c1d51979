"""The contract between a broker and the hub.

A :class:`Source` is a declaration: immutable, comparable, JSON-serialisable, without a connection. Its
:meth:`Source.open` gives a :class:`Stream`, the live connection. Sources whose :meth:`Source.key` is equal share one
stream per triggerer.

Rules of a stream, which the conformance suite holds every source to:

* Iterating yields batches of messages forever, or raises. It never ends by itself and never yields an empty batch twice
  without waiting in between. The next batch is only asked for when there is room, so *not asking* is the back-pressure:
  a stream must stay healthy (heartbeats, keep-alive) while nobody asks.
* It raises :class:`~event_triggers.errors.ConfigurationError` for what waiting cannot mend; anything else is taken as a
  broken connection and the hub opens the stream again, with growing pauses.
* A *queue* message is gone once it is acknowledged, so that happens in :meth:`Stream.settle` and nowhere else.
* A *log* stream never settles. It reports :meth:`LogStream.position` and can be opened again from any of them.
* Cancellation passes through: leaving the context of :meth:`Source.open` closes the connection in bounded time.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import ConfigurationError, ConnectionMissingError, InvalidEventError
from event_triggers.message import Message
from event_triggers.text import plain_logger

__all__ = [
    "AirflowCall",
    "BrokerConnection",
    "LogStream",
    "Opening",
    "Outcome",
    "Position",
    "Settlement",
    "Source",
    "Stream",
    "load_source",
]

log = plain_logger(__name__)


class Outcome(str, Enum):
    """How a message of a queue ended, seen over all groups of this triggerer."""

    ACCEPTED = "accepted"
    """Every group that wanted it has recorded it: acknowledge."""
    RELEASED = "released"
    """Nobody here wanted it."""
    ABANDONED = "abandoned"
    """A group wanted it and left before it could record it: it must come again, to whoever waits next."""
    REJECTED = "rejected"
    """It cannot be read at all: what the broker's own way for poison messages is."""


class Settlement(NamedTuple):
    """One message and how it ended."""

    message: Message
    outcome: Outcome


Position = Mapping[str, Any]
"""The next offset to deliver, by partition."""


@dataclass(frozen=True)
class BrokerConnection:
    """An Airflow connection, as sources see it. Secrets stay out of its ``repr``."""

    conn_id: str
    conn_type: str = ""
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    schema: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class AirflowCall(Protocol):
    """Asks Airflow's API."""

    async def __call__(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """Send one request, as whom the triggerer is, and give the document that is answered.

        Waits, for as long as it takes, while Airflow is away or overloaded.

        :raises AirflowApiError: when Airflow refuses.
        """


def _no_airflow() -> AbstractAsyncContextManager[AirflowCall]:
    raise ConfigurationError("there is no Airflow here whose API could be asked")


async def _no_connections(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


def _tell_the_log(level: int, text: str, *args: object) -> None:
    log.log(level, text, *args)


def _nothing_recorded() -> Collection[str]:
    return ()


@dataclass(frozen=True)
class Opening:
    """What a source is given when its stream is opened.

    :param group: a stable identity of the group that asks, the same after a restart and on another triggerer. Only a
        source that keeps something per group at the broker (a durable session) looks at it, and its
        :meth:`Source.key` says so.
    :param start: for logs: ``None`` begins behind the newest message; a position begins exactly there.
    :param connection: looks an Airflow connection up by its id.
    :param clock: the time to go by.
    :param tell: writes into the task logs of the groups that listen: ``tell(logging.ERROR, "%s: ...", label)``. For
        what concerns them: messages that are lost or may be, a service that is worse than it should be. Not for what
        :meth:`Source.open` or the stream raises, which the hub tells them. Call it in the event loop, at any time; by
        default it writes into the process's own log.
    :param recorded: gives the ids of the messages that groups have recorded, as far as they are known.
        For a source that has to tell by itself whether a message is one that was delivered before.
    :param session_lost: for a source that keeps a session per group: call it when the broker has lost the one that this
        process had. Another process may have ended the group, and removed it; what is made anew would then be left.
    :param airflow: opens a client of Airflow's API, for a source that is a part of Airflow.
    :param killed: for :meth:`Source.forget`: a person has ended the wait, before it was over.
    """

    group: str = ""
    start: Position | None = None
    connection: Callable[[str], Awaitable[BrokerConnection]] = _no_connections
    clock: Clock = field(default_factory=SystemClock)
    tell: Callable[..., None] = _tell_the_log
    recorded: Callable[[], Collection[str]] = _nothing_recorded
    session_lost: Callable[[], None] = lambda: None
    airflow: Callable[[], AbstractAsyncContextManager[AirflowCall]] = _no_airflow
    killed: bool = False


class Stream(ABC):
    """A live connection that hands over messages."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        """Yield batches of messages forever, or raise."""

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str] | None:
        """Tell the broker how messages ended. Only queues are told.

        May be called while ``__aiter__`` waits. Must be safe to repeat. A message may have come over an earlier
        stream of the same source: where its receipt is good for nothing any more, it is passed over. Raises when the
        broker could not be told of all of them; the hub logs that, and the broker will deliver those messages again.

        :return: the ids of accepted messages of which the broker may not have heard, if there are any, though nothing
            has failed: those that were passed over. The hub acknowledges their copies.
        """
        return None

    async def watch(self, source: Source) -> None:
        """Begin to deliver what ``source`` asks for, on a connection shared by sources of an equal key.

        Called for the first source too, right after opening, before iteration starts; called once per distinct source,
        and for a queue once more when a further group begins to wait for the same source.
        """
        return None

    async def unwatch(self, source: Source) -> None:
        """Stop delivering what only ``source`` asked for. It may be watched again.

        A queue that all groups share is unwatched as soon as nobody wants more from this source; one with a session per
        group, and a log, when no group has the source any more.
        """
        return None


class LogStream(Stream):
    """A stream of a log that can be read again."""

    @abstractmethod
    def position(self) -> Position:
        """The next offset to be delivered, by partition: what was yielded lies before it, and nothing else does.

        Valid from the first ``watch`` on. A partition that is not in it will be delivered from its beginning.
        """

    @abstractmethod
    async def locate(self, since: datetime) -> Position:
        """For every partition of :meth:`position`, the offset of the first message stamped at or after ``since``.

        Where there is none yet, the end of the partition.
        """

    async def lost(self, start: Position) -> str:
        """What the log has lost before ``start``, which :meth:`locate` has just given; empty when nothing is missing.

        For people, in half a sentence that names partitions and offsets. Messages count as lost when they were deleted
        and nothing tells that they were older than what was asked for.
        """
        return ""

    def after(self, message: Message) -> Any:
        """The offset that follows this message's in its partition."""
        return message.offset + 1


class Source(ABC):
    """An immutable declaration of a stream of messages. Make subclasses frozen dataclasses.

    Every field must be JSON-compatible, may hold Jinja templates in its strings until they are rendered, and is given
    back to the constructor by :func:`load_source`.
    """

    kind: ClassVar[str]
    """Short name of the source's kind, for logs and notes: ``"kafka"``."""
    replayable: ClassVar[bool] = False
    """Whether this is a log (its streams are :class:`LogStream`) rather than a queue."""
    conn_type: ClassVar[str] = ""
    """The type of the Airflow connection that it needs; empty when it needs none."""
    client: ClassVar[str] = ""
    """The Python package that :meth:`open` imports and that is not there by itself: ``"aiokafka"``."""
    install: ClassVar[str] = ""
    """What brings that package, as pip is told it: ``"airflow-event-triggers[kafka]"``."""
    private: ClassVar[bool] = False
    """For queues: whether acknowledging a message takes it from nobody but the group that does (its own session)."""

    @abstractmethod
    def key(self, group: str) -> Hashable:
        """What identifies the connection: sources with equal keys share one stream.

        :param group: the identity of the group that asks; part of the key only for sources with per-group sessions.
        """

    @abstractmethod
    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream; leaving the context closes it.

        :raises ConfigurationError: for what waiting cannot mend (a bad option, a missing extra).
        """

    @property
    def family(self) -> Hashable:
        """Which sources may share a stream: those of one family whose keys are equal. By default one class is one."""
        return type(self)

    @property
    @abstractmethod
    def name(self) -> str:
        """The topic, queue or channel, for people."""

    @property
    def redelivery(self) -> float:
        """For queues: after how many seconds of reading whatever was delivered and not acknowledged has come again.

        When a group ends with messages that it has recorded, and of which nobody knows whether the broker was told (its
        triggerer died in between), the queue is read for so long, so that their copies are acknowledged and do not wait
        for the next group. Copies must come while the stream is open, watched or not. 0 is for brokers that send
        nothing again by themselves, and for sessions that :meth:`forget` removes.
        """
        return 0.0

    @property
    def per_group(self) -> bool:
        """Whether each group has a connection, or a session at the broker, of its own: its :meth:`key` says so."""
        return self.key("") != self.key("\0")

    def routes(self, message: Message) -> bool:
        """Whether ``message``, come over the shared stream, is one that this source asks for."""
        return True

    def validate(self) -> None:
        """Check the declaration while the DAG file is parsed. Templates are not rendered yet.

        :raises InvalidEventError: in one clear sentence.
        """
        return None

    async def forget(self, opening: Opening) -> None:
        """The group has ended for good: remove what it left at the broker (a durable session). Safe to repeat."""
        return None

    def receipt_of(self, message: Message) -> str | None:
        """For queues: what another process needs to acknowledge this delivery, if that is possible.

        It is stored with the message's facts. When the process dies before it has acknowledged, the next one does.
        """
        return None

    def recalled(self, identity: str, receipt: str) -> Message | None:
        """For queues: a message that can be settled as accepted, made from what :meth:`receipt_of` gave."""
        return None

    def serialize(self) -> dict[str, Any]:
        """The declaration as JSON-compatible data, readable by :func:`load_source`."""
        if not dataclasses.is_dataclass(self):
            raise InvalidEventError(f"{type(self).__qualname__} must be a dataclass, or define serialize() itself")
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.init}
        return {"type": f"{type(self).__module__}.{type(self).__qualname__}", **fields}

    @property
    def label(self) -> str:
        """Kind and name, for logs: ``kafka etl-finish``."""
        return f"{self.kind} {self.name}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_known: WeakKeyDictionary[Source, ref[Source]] = WeakKeyDictionary()


def _shared(source: Source) -> Source:
    """One of all that are the same: thousands of events may come from one topic."""
    try:
        known = _known.setdefault(source, ref(source))()
    except TypeError:  # of a class that cannot be hashed, or not be referred to weakly
        return source
    if known is None or known is source:
        return source
    # A class may compare less than it declares; what it leaves out must not become another's.
    return known if known.serialize() == source.serialize() else source


def load_source(data: Mapping[str, Any]) -> Source:
    """Make a source again from what :meth:`Source.serialize` gave.

    :param data: its fields and its ``type``: the dotted path of the class, or the name under which it is registered
        (see :mod:`event_triggers.sources.registry`).
    :raises InvalidEventError: when the class cannot be imported here, is no source, or does not take these fields.
    """
    fields = dict(data)
    path = str(fields.pop("type", ""))
    if path and "." not in path:
        return _made(_registered(path), path, fields)
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidEventError(
            f"source class {path!r} cannot be imported here: {error}; install the package that defines it in the "
            f"triggerer too, and restart the triggerer"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Source)):
        raise InvalidEventError(f"{path!r} is not a subclass of event_triggers.Source")
    return _made(cls, path, fields)


def _registered(kind: str) -> type[Source]:
    from event_triggers.sources.registry import find

    try:
        return find(kind)
    except InvalidEventError as error:
        raise InvalidEventError(
            f"source {kind!r} cannot be imported here: {error}; restart the triggerer then"
        ) from error


def _made(cls: type[Source], path: str, fields: Mapping[str, Any]) -> Source:
    try:
        return _shared(cls(**fields))
    except TypeError as error:
        raise InvalidEventError(f"source {path!r} does not take the fields {sorted(fields)}: {error}") from error
