"""The wait of one group, from the first stream to the verdict. Knows the hub and the ledger, and nothing of Airflow.

Flow::

    ledger.load -> subscribe what is missing -> receive -> record -> accept (acknowledge) -> ... -> verdict
                                                   marks made by hand, the deadline  ------------^

Invariants:

* A message is accepted only when the ledger holds it; whatever else was received goes back to its broker.
* The wait ends with exactly one verdict, after everything that was received is recorded, and before the brokers'
  sessions of a group that is over are removed. When Airflow does not take what came before the deadline, those sessions
  stay.
* Nothing is remembered that the ledger does not hold, so a wait that starts again, here or on another triggerer, finds
  what was received and waits for the rest. Two that run at the same time do the same work twice, with the same effect.
* The deadline does not hide what came in time: a wait that only starts after it (its triggerer was away) still reads
  what the ledger and the logs hold up to then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import anyio

from event_triggers.clock import Clock, move_on_after, parse_datetime
from event_triggers.connecting import root_cause
from event_triggers.errors import EventTriggersError
from event_triggers.event import Event, load_callable
from event_triggers.hub import Hub
from event_triggers.ledger import Arrival, Book, GroupRef, Ledger, Received, payload_of
from event_triggers.message import Message
from event_triggers.notes import note_of, shown
from event_triggers.progress import EventProgress, GroupProgress
from event_triggers.subscription import Delivery, Interest, Subscription
from event_triggers.text import plain_logger

__all__ = ["FINISH_RECORDING", "FINISH_SETTLING", "GroupWait", "Status", "Verdict"]

log = plain_logger(__name__)

FINISH_RECORDING = 30.0
"""Seconds past the deadline that reading and recording what came in time may take."""
FINISH_SETTLING = 15.0
"""Seconds that the brokers' last acknowledgements may take before the verdict goes out."""


class Status(str, Enum):
    """How a wait ended."""

    COMPLETE = "complete"
    ARRIVALS = "arrivals"
    TIMEOUT = "timeout"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """How a wait ended, and what the sensor needs to know of it.

    :param received: of each event that has arrived, the facts (a list of them when it wants several messages);
        ``{"marked_by_hand": state}`` when a person marked it.
    :param missing: of each event that has not, how far it is: ``"orders"``, ``"shifts (1 of 3)"``.
    :param text: for ``failed`` and ``error``: what happened; for ``timeout``: why, when there is more to say.
    :param arrivals: of each event, how many messages it has received by now.
    """

    status: Status
    received: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    text: str = ""
    arrivals: Mapping[str, int] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nobody will wait for this group's messages again, unless a person starts it over."""
        return self.status in (Status.COMPLETE, Status.TIMEOUT, Status.FAILED)


class GroupWait:
    """One wait.

    :param group: whose.
    :param events: the events, their templates rendered.
    :param markers: the task id of each event's marker.
    :param deadline: when the time is up.
    :param handled: with a handler of arrivals: how many messages of each event it has been given; ``None`` without one.
    :param payload_limit: payloads whose JSON is longer (in bytes) are kept as a reference.
    """

    def __init__(
        self,
        group: GroupRef,
        events: Mapping[str, Event],
        markers: Mapping[str, str],
        *,
        hub: Hub,
        ledger: Ledger,
        clock: Clock,
        deadline: datetime,
        handled: Mapping[str, int] | None = None,
        payload_limit: int = 48 * 1024,
    ) -> None:
        self._group = group
        self._markers = markers
        self._hub = hub
        self._ledger = ledger
        self._clock = clock
        self._deadline = deadline
        self._handled = handled
        self._payload_limit = payload_limit
        self._progress = GroupProgress(events)
        self._book: Book | None = None
        self._subscription: Subscription | None = None
        self._caught_up = asyncio.Event()
        self._recorded = asyncio.Event()
        self._expired = False
        self._keep_sessions = False
        self._verdict: Verdict | None = None
        self._decided = asyncio.Event()

    async def run(self) -> Verdict:
        """Wait, and say how it ended. A broker or an API that is away is waited for."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._expire, name="event_triggers: deadline")
                group.start_soon(self._work, name="event_triggers: wait")
                await self._decided.wait()
                group.cancel_scope.cancel()
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, EventTriggersError):
                return Verdict(Status.ERROR, text=f"{type(cause).__name__}: {cause}")
            raise
        if self._over_for_good():
            await self._hub.forget(self._group.identity, (one.event.source for one in self._progress))
        assert self._verdict is not None  # noqa: S101 - decided above
        return self._verdict

    def _decide(self, status: Status, text: str = "") -> None:
        if self._verdict is None:
            progress = self._progress
            self._verdict = Verdict(status, progress.outcomes(), progress.missing(), text, progress.counts())
            self._keep_sessions = progress.recording
            self._decided.set()

    def _over_for_good(self) -> bool:
        """Whether what the brokers keep for this group can go."""
        return self._verdict is not None and self._verdict.final and not self._keep_sessions

    # ------------------------------------------------------------------ the parts that run side by side

    async def _expire(self) -> None:
        await self._clock.sleep((self._deadline - self._clock.now()).total_seconds())
        self._expired = True
        async with move_on_after(self._clock, FINISH_RECORDING):
            await self._caught_up.wait()
            while self._progress.recording or (self._subscription is not None and self._subscription.waiting):
                await self._next_recorded()
        if self._progress.missing():
            trouble = self._book.trouble if self._book else self._ledger.trouble
            self._decide(Status.TIMEOUT, trouble or "")
            return
        # The last one came in time, and the verdict only waits for the brokers to be told.
        async with move_on_after(self._clock, FINISH_SETTLING):
            await self._decided.wait()
        self._decide(Status.COMPLETE)

    async def _work(self) -> None:
        async with self._ledger.open(self._group, self._markers, _tell) as book:
            self._book = book
            await self._read_back(book)
            if await self._over(book):
                if self._over_for_good():
                    await self._linger()
                return
            async with self._hub.subscribe(self._group.identity, self._interests()) as subscription:
                self._subscription = subscription
                try:
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._follow_marks, book, subscription, name="event_triggers: marks")
                        group.start_soon(self._catch_up, subscription, name="event_triggers: catch up")
                        await self._receive(book, subscription)
                        group.cancel_scope.cancel()
                finally:
                    subscription.over = self._over_for_good()

    async def _linger(self) -> None:
        """All was recorded before: what of it is still in its queue is acknowledged when it comes again."""
        recorded = [(one, frozenset(received.id for received in one.received)) for one in self._progress]
        interests = [Interest(one.name, one.event.source, count=0, recorded=ids) for one, ids in recorded if ids]
        await self._hub.linger(self._group.identity, interests)

    async def _catch_up(self, subscription: Subscription) -> None:
        await subscription.live()
        self._caught_up.set()
        log.info("every source is connected, and nothing that is sent from now on is missed")

    async def _receive(self, book: Book, subscription: Subscription) -> None:
        until = self._deadline.isoformat(timespec="seconds")
        log.info("waiting for %s until %s", ", ".join(self._progress.missing()), until)
        while True:
            await self._record(book, await subscription.receive())
            self._recorded.set()
            if await self._over(book, subscription):
                return

    async def _next_recorded(self) -> None:
        self._recorded.clear()
        await self._recorded.wait()

    async def _follow_marks(self, book: Book, subscription: Subscription) -> None:
        while True:
            for name, state in (await book.marked()).items():
                one = self._progress[name]
                under_way = one.recording
                while one.recording:
                    await self._next_recorded()
                if one.done and (state != "failed" or under_way):
                    continue  # our own mark, or one that it has overtaken
                if state == "success":
                    await self._look_up(book, one)
                else:
                    self._marked_by_hand(one, state)
                subscription.drop(name)
            if await self._over(book, subscription):
                return

    # ------------------------------------------------------------------ what is there, and when it is over

    async def _read_back(self, book: Book) -> None:
        unmarked = []
        for name, state in (await book.load()).items():
            one = self._progress[name]
            if state == "success":
                one.known = False
            elif state in ("failed", "skipped"):
                self._marked_by_hand(one, state)
            elif one.event.count > 1:
                one.received = await book.received(name)
                if one.done:  # the last try was ended between recording and marking
                    unmarked.append(Arrival(name, (), one.event.count))
        if unmarked:
            await book.record(unmarked)
        if self._progress.missing():
            # A queue may deliver once more what was recorded but not acknowledged.
            await self._look_up_unknown(book, (one for one in self._progress if not one.event.source.replayable))

    def _marked_by_hand(self, one: EventProgress, state: str) -> None:
        one.by_hand = state
        log.info("event %s: its marker was marked %s by hand; it is waited for no longer", one.name, state)

    async def _over(self, book: Book, subscription: Subscription | None = None) -> bool:
        """Decide if there is something to decide."""
        failed = ", ".join(self._progress.failed)
        if failed:
            text = f"the marker of {failed} was marked failed; clear it together with the sensor to wait again"
            self._decide(Status.FAILED, text)
            return True
        if self._progress.missing():
            if subscription is not None and subscription.waiting:
                return False  # more has come meanwhile: it goes along
            if not await self._unhandled(book):
                return False
        await self._look_up_unknown(book, self._progress)
        complete = not self._progress.missing()
        if complete and subscription is not None:
            async with move_on_after(self._clock, FINISH_SETTLING):
                await subscription.settled()
        self._decide(Status.COMPLETE if complete else Status.ARRIVALS)
        return True

    async def _unhandled(self, book: Book) -> bool:
        """Whether there is something that the handler of arrivals has not been given yet."""
        if self._handled is None:
            return False
        handled = self._handled
        await self._look_up_unknown(book, (one for one in self._progress if not handled.get(one.name)))
        return any(count > handled.get(name, 0) for name, count in self._progress.counts().items())

    async def _look_up_unknown(self, book: Book, events: Iterable[EventProgress]) -> None:
        unknown = [one for one in events if not one.known]
        async with anyio.create_task_group() as group:
            for one in unknown:
                group.start_soon(self._look_up, book, one, name=f"event_triggers: look up {one.name}")

    async def _look_up(self, book: Book, one: EventProgress) -> None:
        """Read what a green marker holds; when it holds too little, a person has marked it."""
        received = await book.received(one.name)
        if one.recording:
            while one.recording:
                await self._next_recorded()
            received = one.received
        one.received, one.known = received, True
        if not one.done:
            self._marked_by_hand(one, "success")

    # ------------------------------------------------------------------ messages

    def _interests(self) -> list[Interest]:
        interests = []
        for one in self._progress:
            source, match = one.event.source, one.event.match
            if one.done and (source.replayable or not one.received):
                continue
            interests.append(
                Interest(
                    one.name,
                    source,
                    pattern=match if isinstance(match, Mapping) else None,
                    accepts=load_callable(match) if isinstance(match, str) else None,
                    count=one.missing,
                    since=None if one.event.since is None else parse_datetime(one.event.since),
                    recorded=frozenset(received.id for received in one.received) if one.received else frozenset(),
                )
            )
        return interests

    async def _record(self, book: Book, deliveries: Sequence[Delivery]) -> None:
        new: dict[str, list[Received]] = {}
        received_at = self._clock.now().isoformat(timespec="milliseconds")
        for delivery in deliveries:
            if self._too_late(delivery.message):
                continue
            for name in delivery.events:
                if not self._progress[name].done:
                    messages = new.setdefault(name, [])
                    messages.append(self._received(delivery.message, self._progress[name], len(messages), received_at))
        if new:
            await self._record_new(book, new)
        for delivery in deliveries:
            held = any(name in new and self._progress[name].holds(delivery.message.id) for name in delivery.events)
            if held:
                delivery.accept()
            else:
                delivery.decline()

    async def _record_new(self, book: Book, new: Mapping[str, Sequence[Received]]) -> None:
        arrivals = []
        for name, messages in new.items():
            self._progress[name].recording = len(messages)
            arrivals.append(Arrival(name, tuple(messages), self._progress[name].event.count))
        try:
            held = await book.record(arrivals)
        finally:
            for name in new:
                self._progress[name].recording = 0
        for name in new:
            self._progress[name].received = held[name]
        for name in new:
            self._say_arrived(self._progress[name])

    def _too_late(self, message: Message) -> bool:
        return self._expired and message.timestamp is not None and message.timestamp > self._deadline

    def _received(self, message: Message, one: EventProgress, before: int, received_at: str) -> Received:
        return Received(
            source=message.source,
            stream=message.stream,
            position=message.position,
            id=message.id,
            timestamp=message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else None,
            received_at=received_at,
            payload=payload_of(message, self._payload_limit),
            note=note_of(message, received_at, len(one.received) + before + 1, one.event.count),
        )

    def _say_arrived(self, one: EventProgress) -> None:
        last = one.received[-1]
        where = f"{last.source} {shown(last.stream)} {shown(last.position)}"
        missing = ", ".join(self._progress.missing())
        log.info("event %s: %s; %s", one.describe(), where, f"missing: {missing}" if missing else "complete")


def _tell(level: int, text: str) -> None:
    log.log(level, "%s", text)
