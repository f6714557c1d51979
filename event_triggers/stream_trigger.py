"""StreamTrigger: a source as a trigger of Airflow that starts DAGs, for an asset watcher.

Flow, on Airflow 3.3, whose shared streams say when an event is stored::

    hub -> Producer.open_stream -> Airflow -> filter_shared_stream -> TriggerEvent -> asset event (stored)
     ^------------ accept, position <------------ Producer.advance <---------------------'

Invariants:

* A message is acknowledged only when Airflow has stored its event. Airflow before 3.3 does not tell; there that is
  taken for granted :data:`_STORED_WITHIN` seconds after the event was handed over.
* The position that is stored for a log lies before every message whose event is not stored yet.
* A trigger never ends by itself, and its constructor raises nothing for stored arguments: Airflow would start it again
  at once, or end its triggerer. What is wrong is told in the triggerer's log, and tried again after a pause.

A restart begins again from the same arguments: a queue delivers again what was not acknowledged, and a log is read from
the stored position, or where there is none from ``since``, or from its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import anyio
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from event_triggers.backoff import Backoff
from event_triggers.clock import parse_datetime
from event_triggers.compat import SHARES_STREAMS, SharedStreamProducer, ask_supervisor, asset_stores
from event_triggers.delivery import Delivery
from event_triggers.entry import ENDLESS, Interest
from event_triggers.errors import EventTriggersError, InvalidEventError, StreamError
from event_triggers.event import Event, load_callable
from event_triggers.ledger import payload_of
from event_triggers.message import Message
from event_triggers.runtime import Runtime, current_runtime
from event_triggers.sources.base import Position, Source
from event_triggers.subscription import Subscription
from event_triggers.text import plain_logger, storable, text_of

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import AdvanceItem

__all__ = ["StreamTrigger"]

log = plain_logger(__name__)

_LOOK_EVERY = 1.0
"""Seconds after which a feed that waits for messages looks at what else is due."""
_SAVE_EVERY = 30.0
"""Seconds between two positions that are stored, when nothing has come that counts."""
_SAVE_WITHIN = 5.0
"""Seconds that storing the last position may take."""
_STORED_WITHIN = 10.0
"""Seconds after which Airflow has stored an event, where it does not say so: its supervisor asks every second."""
_MOST_OUTSTANDING = 200
"""How many events may be on their way to Airflow's database; the broker waits then. Airflow's own limit is 1024."""


class StreamTrigger(BaseEventTrigger):
    """The messages of a source as events that start DAGs.

    Each message that matches is one event of the assets whose watcher has this trigger. Its payload, in the asset
    event's ``extra``, has ``source``, ``stream``, ``position``, ``id``, ``key``, ``headers``, ``timestamp`` and
    ``payload``. The same source in groups and other triggers shares one connection per triggerer.

    :param source: where the messages come from. There is no run yet, so no templates.
    :param match: which of them count, as in :class:`~event_triggers.Event`.
    :param since: for a log that is read for the first time: from when on its messages count; by default those that come
        from then on. For a queue: messages stamped earlier do not count.
    :raises InvalidEventError: in one sentence, when something is declared wrongly.
    """

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        *,
        match: Mapping[str, Any] | Callable[[Message], bool] | str | None = None,
        since: datetime | str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if isinstance(source, Mapping):
            # Stored arguments, which were looked at when the DAG file was parsed.
            self.declared: dict[str, Any] = {"source": dict(source), "match": match, "since": since}
        else:
            self.declared = _declared(Event(source, match=match, since=since))
        self._feed: _Feed | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", dict(self.declared)

    # ------------------------------------------------------------------ where Airflow says what is stored

    def shared_stream_key(self) -> Hashable | None:
        """What makes Airflow take events from :class:`_Producer`; the connection itself is shared by the hub."""
        if not SHARES_STREAMS:
            return None
        key = _digest(self.declared)
        _living[key] = self
        return ("event_triggers", key)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        declared = {"source": kwargs["source"], "match": kwargs.get("match"), "since": kwargs.get("since")}
        return _Producer(_Feed(declared, _living.get(_digest(declared))))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Message]) -> AsyncIterator[TriggerEvent]:
        limit = current_runtime().payload_limit
        async for message in shared_stream:
            yield _event(message, limit)

    # ------------------------------------------------------------------ where it does not

    async def run(self) -> AsyncIterator[TriggerEvent]:
        runtime = current_runtime()
        feed = self._feed = _Feed(self.declared, self)
        handed: deque[tuple[float, Delivery]] = deque()
        while True:
            for delivery in await feed.next():
                yield _event(delivery.message, runtime.payload_limit)
                handed.append((runtime.clock.monotonic() + _STORED_WITHIN, delivery))
            while handed and handed[0][0] <= runtime.clock.monotonic():
                handed.popleft()[1].accept()

    async def cleanup(self) -> None:
        """Leave what is not acknowledged to whoever comes next."""
        if self._feed is not None:
            await self._feed.close()


_living: WeakValueDictionary[str, StreamTrigger] = WeakValueDictionary()
"""The triggers of this process by what they declare: Airflow makes producers without them."""


class _Feed:
    """A subscription at the hub that is opened again whenever it cannot go on.

    :param declared: what the trigger declares.
    :param trigger: the trigger, which knows where a position can be stored.
    """

    def __init__(self, declared: Mapping[str, Any], trigger: StreamTrigger | None) -> None:
        self._declared = declared
        self._stores = asset_stores(trigger)
        self._key = f"event_triggers.{_digest(declared)}"
        self._open = AsyncExitStack()
        self._subscription: Subscription | None = None
        self._source: Source | None = None
        self._saved: Position | None = None
        self._saved_at = 0.0
        self._backoff = Backoff(first=5.0, most=300.0)
        self.advanced = False
        """Whether events were stored since the position was."""
        self.failed = False
        """Whether an event was not stored: the position must not pass it."""

    async def next(self) -> list[Delivery]:
        """What has come; nothing when nothing came for a while."""
        runtime = current_runtime()
        try:
            if self._subscription is None:
                self._subscription = await self._subscribe(runtime)
            deliveries: list[Delivery] = []
            with anyio.move_on_after(_LOOK_EVERY):
                deliveries = await self._subscription.receive()
        except EventTriggersError as error:
            await self._pause(runtime, error)
            return []
        if deliveries:
            self._backoff.reset()
        await self.save(runtime)
        return deliveries

    async def _subscribe(self, runtime: Runtime) -> Subscription:
        event = Event.deserialize(self._declared)
        source, match = event.source, event.match
        self._source = source
        start = await self._load() if source.replayable else None
        interest = Interest(
            _digest(match),
            source,
            pattern=match if isinstance(match, Mapping) else None,
            accepts=load_callable(match) if isinstance(match, str) else None,
            count=ENDLESS,
            since=None if event.since is None or start is not None else parse_datetime(event.since),
            start=start,
        )
        # One session at the broker for all that want something from this source, whatever it is.
        group = f"stream-trigger/{_digest(source.serialize())}"
        subscription = await self._open.enter_async_context(runtime.hub.subscribe(group, [interest]))
        log.info("%s: its messages start DAGs from now on", source.label)
        return subscription

    async def _pause(self, runtime: Runtime, error: EventTriggersError) -> None:
        await self.close()
        what = self._source.label if self._source is not None else str(self._declared["source"].get("type"))
        seconds = self._backoff.next()
        text = "%s: its messages cannot start DAGs: %s: %s; trying again in %.0f s"
        log.error(text, what, type(error).__name__, error, seconds)
        await runtime.clock.sleep(seconds)

    async def close(self) -> None:
        """Leave the hub; what is not answered goes back to its broker."""
        self._subscription = None
        await self._open.aclose()

    # -- positions of a log

    async def _load(self) -> Position | None:
        for store in self._stores:
            try:
                stored = await ask_supervisor(store.aget(self._key))
            except Exception as error:
                raise StreamError(f"Airflow could not say where reading was to go on: {text_of(error)}") from error
            if isinstance(stored, dict):
                self._saved = stored
                return stored
        return None

    async def save(self, runtime: Runtime) -> None:
        """Store how far a log has been seen through, if that is due."""
        if not self._stores or self.failed or self._subscription is None:
            return
        if self._source is None or not self._source.replayable:
            return
        now = runtime.clock.monotonic()
        if not self.advanced and self._saved is not None and now - self._saved_at < _SAVE_EVERY:
            return
        position = self._subscription.position()
        if position is None or position == self._saved:
            return
        try:
            for store in self._stores:
                await ask_supervisor(store.aset(self._key, dict(position)))
        except Exception as error:
            log.warning("%s: its position could not be stored: %s", self._source.label, text_of(error))
            return
        self._saved, self._saved_at, self.advanced = position, now, False


class _Producer(SharedStreamProducer):
    """The broker's side of one of Airflow's shared streams."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._outstanding = 0
        self._room = asyncio.Event()

    async def open_stream(self) -> AsyncIterator[tuple[Message, Delivery]]:
        while True:
            for delivery in await self._feed.next():
                while self._outstanding >= _MOST_OUTSTANDING:
                    self._room.clear()
                    await self._room.wait()
                self._outstanding += 1
                yield delivery.message, delivery

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Acknowledge what is stored.

        :raises StreamError: when some of it is not. Airflow then starts the trigger again, and it comes again.
        """
        self._outstanding -= len(batch)
        self._room.set()
        failed = []
        for delivery, outcome in batch:
            if outcome.failed or not (outcome.acked or outcome.rejected):
                # Where a log goes on must not be behind it, once it is off our hands.
                self._feed.failed = True
                failed.append(delivery.message)
                delivery.abandon()
            elif outcome.acked:
                delivery.accept()
            else:
                delivery.decline()
        self._feed.advanced = True
        if failed:
            raise StreamError(f"{len(failed)} events were not stored, and come again; the first is {failed[0]}")

    async def aclose(self) -> None:
        with anyio.move_on_after(_SAVE_WITHIN, shield=True):
            await self._feed.save(current_runtime())
        await self._feed.close()


def _declared(event: Event) -> dict[str, Any]:
    """A declaration as it is stored with the DAG.

    :raises InvalidEventError: when it cannot be, or there is a template in it.
    """
    data = event.serialize()
    declared = {name: data[name] for name in ("source", "match", "since")}
    try:
        text = json.dumps(declared, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidEventError(
            f"StreamTrigger({event.source.label}) cannot be sent to the triggerer, because something in it is not "
            f"JSON: {error}"
        ) from error
    if "{{" in text or "{%" in text:
        raise InvalidEventError(
            f"StreamTrigger({event.source.label}) has a template in it; there is no run yet that could fill it in"
        )
    # Airflow tells triggers apart by their arguments: what is equal shall be so after it was stored, too.
    return dict(json.loads(text))


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _event(message: Message, limit: int) -> TriggerEvent:
    headers = {storable(name): storable(value.decode("utf-8", "backslashreplace")) for name, value in message.headers}
    if sum(len(name) + len(value) for name, value in headers.items()) > limit:
        headers = {"truncated": "true"}
    key = None if message.key is None else storable(message.key[: limit + 1].decode("utf-8", "backslashreplace"))
    return TriggerEvent(  # type: ignore[no-untyped-call]
        {
            "source": message.source,
            "stream": storable(message.stream),
            "position": storable(message.position),
            "id": storable(message.id),
            "key": key,
            "headers": headers,
            "timestamp": message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else None,
            "payload": payload_of(message, limit),
        }
    )
