"""A channel: one shared stream, read by one task, fanned out to every group that wants something from it.

Flow::

    open -> watch the sources -> read batches -> index -> hand out to groups -> (all answered) -> settle -> broker
                  ^                                          |
                  '-- joiners of a log: locate, replay, hold-'

Invariants, which hold at every ``await``:

* :attr:`Channel._position` (logs) is exactly what has been dispatched: everything before it was offered to the entries in the
  index then, nothing behind it was. A broken stream is opened again from there, so nothing is lost and nothing comes twice.
* An entry of a log is put into the index in the same step in which the position is read, so what it missed is exactly what lies
  before that position, and a *round* reads that from the past on a second, short-lived stream. Until the round is through, live
  messages are held back for the entry, so that it sees them in order.
* A message of a queue is settled once, after every group it was handed to has answered; while it is under way a second copy of
  it only renews its receipt; a copy that comes after it was recorded is acknowledged and handed to nobody.
* While too much is unanswered the reader does not ask for more, which pauses the broker.

Nothing survives a restart: groups subscribe again, logs are read again from ``since``, queues deliver again what was not settled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import anyio

from event_triggers.backoff import Backoff
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.interests import InterestIndex
from event_triggers.message import Message
from event_triggers.replay import Round
from event_triggers.settling import Settler
from event_triggers.sources.base import LogStream, Opening, Outcome, Source, Stream
from event_triggers.subscription import Answer, Entry, Handout, Interest, Subscription

__all__ = ["MOST_UNANSWERED", "Channel", "ChannelStatistics"]

log = logging.getLogger(__name__)

MOST_UNANSWERED = 1000
"""How many messages of one channel may be under way before it pauses its broker."""

MOST_REMEMBERED = 10_000
"""How many recorded messages of one channel are known again when their queue delivers them once more."""

_UNREADABLE_SHOWN = 20
"""How many unreadable messages of one connection are logged one by one."""


class ChannelStatistics(NamedTuple):
    """What a channel has done so far."""

    label: str
    connected: bool
    opened: int
    entries: int
    messages: int
    handed_out: int
    unanswered: int


class Channel:
    """One shared stream and everybody who listens to it.

    :param source: any of the sources that share it.
    :param opening: how to open it; its ``start`` is the channel's own business.
    :param on_failed: called when the stream can never be opened as it is configured.
    :param threads: limits the threads that match callables run in.
    """

    def __init__(
        self, source: Source, opening: Opening, on_failed: Callable[[Channel], None], threads: anyio.CapacityLimiter
    ) -> None:
        self.source = source
        self.opening = opening
        self._on_failed = on_failed
        self._threads = threads
        self._clock = opening.clock
        self._index = InterestIndex()
        self._members: dict[Subscription, list[Entry]] = {}
        self._position: dict[str, Any] | None = None
        self._rounds: set[Round] = set()
        self._replays = anyio.Semaphore(3)
        self._joining: list[Entry] = []
        self._watched: dict[Source, None] = {}
        self._requests = asyncio.Event()
        self._room = asyncio.Event()
        self._wanted = asyncio.Event()
        self._settler = Settler()
        self._under_way: dict[str, Handout] = {}
        self._recorded: dict[str, None] = {}
        self._unanswered = 0
        self._unreadable = 0
        self._connected = False
        self._opened = 0
        self._messages = 0
        self._handed_out = 0
        self._task: asyncio.Task[None] | None = None
        self._group: anyio.abc.TaskGroup | None = None

    # ------------------------------------------------------------------ groups come and go

    def add(self, subscription: Subscription, interest: Interest) -> None:
        """Deliver what ``interest`` asks for, from ``since`` on."""
        entry = Entry(subscription, interest, interest.count)
        self._members.setdefault(subscription, []).append(entry)
        subscription.entries.append((self, entry))
        for identity in interest.recorded:
            self._remember(identity)
        if not self.source.replayable:
            # Before the broker is asked for anything: a message that comes at once must find its group.
            self._admit(entry)
        self._joining.append(entry)
        self._requests.set()

    def drop(self, entry: Entry) -> None:
        """This entry is wanted no longer."""
        entry.remaining = 0
        self._forget(entry)

    def remove(self, subscription: Subscription, answer: Answer) -> bool:
        """Take a group out and answer for what it leaves open; ``True`` when nobody is left."""
        for entry in self._members.pop(subscription, ()):
            self.drop(entry)
            self._joining = [waiting for waiting in self._joining if waiting is not entry]
        subscription.answer_all(answer)
        self._requests.set()
        return not self._members

    def _remember(self, identity: str) -> None:
        """A copy of this message may still come; it is to be acknowledged then. Old ones are forgotten."""
        self._recorded[identity] = None
        if len(self._recorded) > MOST_REMEMBERED:
            del self._recorded[next(iter(self._recorded))]

    def _admit(self, entry: Entry) -> None:
        if entry.remaining > 0:
            self._index.add(entry)
            self._wanted.set()

    def _forget(self, entry: Entry) -> None:
        self._index.discard(entry)
        entry.held = None
        for past in self._rounds:
            past.index.discard(entry)

    def statistics(self) -> ChannelStatistics:
        """What has been done so far."""
        return ChannelStatistics(
            self.source.label, self._connected, self._opened, len(self._index), self._messages, self._handed_out,
            self._unanswered,
        )  # fmt: skip

    # ------------------------------------------------------------------ life of the connection

    def start(self, after: asyncio.Task[None] | None, context_run: Callable[..., Any]) -> None:
        """Begin, once the task ``after`` (the previous channel of this key, closing) has ended."""
        self._task = context_run(
            asyncio.get_running_loop().create_task, self._run(after), name=f"event_triggers: {self.source.label}"
        )

    async def close(self) -> None:
        """Tell the broker what is due, and disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait({after})
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._stay_connected, name=f"event_triggers: {self.source.label}, live")
        finally:
            self._settler.give_up()

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        while True:
            began = self._clock.monotonic()
            try:
                await self._connect(backoff)
            except Exception as error:
                self._connected = False
                cause = root_cause(error)
                if isinstance(cause, ConfigurationError):
                    self._fail(cause)
                    return
                if self._clock.monotonic() - began > 60:
                    backoff.reset()
                await self._pause(backoff, cause)

    async def _pause(self, backoff: Backoff, cause: BaseException) -> None:
        pause = backoff.next()
        self.tell(
            logging.WARNING,
            "%s: the connection broke or could not be made (%s: %s); attempt %d, trying again in %.1f s",
            self.source.label,
            type(cause).__name__,
            cause,
            backoff.attempts,
            pause,
        )
        await self._clock.sleep(pause)

    def _fail(self, error: BaseException) -> None:
        self._on_failed(self)
        for subscription in self._members:
            subscription.fail(error)
        if self._group is not None:
            self._group.cancel_scope.cancel()

    async def _connect(self, backoff: Backoff) -> None:
        async with self.source.open(replace(self.opening, start=self._position)) as stream:
            self._opened += 1
            self._watched.clear()
            await self._serve_sources(stream)
            if isinstance(stream, LogStream) and self._position is None:
                self._position = dict(stream.position())
            self._connected = True
            if backoff.attempts:
                self.tell(logging.INFO, "%s: connected again", self.source.label)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._serve_requests, stream, name=f"{self.source.label}, requests")
                    group.start_soon(self._settler.run, stream, self, name=f"{self.source.label}, settling")
                    await self._read(stream, backoff)
            finally:
                await self._settler.last_flush(stream, self)

    # ------------------------------------------------------------------ requests: sources to watch, entries to join

    async def _serve_requests(self, stream: Stream) -> None:
        while True:
            self._requests.clear()
            await self._serve_sources(stream)
            joining, self._joining = self._joining, []
            try:
                if isinstance(stream, LogStream):
                    await self._join(stream, joining)
                else:
                    self._now_live(joining)
            except BaseException:
                self._joining = [entry for entry in joining if not entry.live and entry.held is None] + self._joining
                raise
            await self._requests.wait()

    async def _serve_sources(self, stream: Stream) -> None:
        wanted = dict.fromkeys(entry.interest.source for entries in self._members.values() for entry in entries)
        for source in [source for source in wanted if source not in self._watched]:
            await stream.watch(source)
            self._watched[source] = None
        for source in [source for source in self._watched if source not in wanted]:
            del self._watched[source]
            await stream.unwatch(source)

    async def _join(self, stream: LogStream, joining: list[Entry]) -> None:
        """Put entries of a log into the index; those that have missed something get a round through the past."""
        # Who asks for the recent past shall not wait for who asks for last week.
        recent = self._clock.now().timestamp() - 300
        for old in (False, True):
            entries = [entry for entry in joining if old == (_since(entry) < recent)]
            sinces = [entry.interest.since for entry in entries if entry.interest.since is not None]
            start = await stream.locate(min(sinces)) if sinces else {}
            # From here to the end of the loop nothing is awaited: see the invariant of the position.
            now = self._position or {}
            past = Round({**now, **start}, {p: now[p] for p, offset in start.items() if p in now and offset < now[p]})
            for entry in entries:
                if entry.remaining > 0 and entry.subscription in self._members:
                    self._admit(entry)
                    if past.target and entry.interest.since is not None:
                        past.add(entry)
            if past.entries:
                self._begin(past)
            self._now_live([entry for entry in entries if entry.held is None])

    def _begin(self, past: Round) -> None:
        assert self._group is not None  # noqa: S101 - set before anything is served
        self._rounds.add(past)
        self._group.start_soon(self._replay, past, name=f"event_triggers: {self.source.label}, past")

    @staticmethod
    def _now_live(entries: Iterable[Entry]) -> None:
        for entry in entries:
            entry.live = True
            entry.subscription.went_live()

    async def _replay(self, past: Round) -> None:
        backoff = Backoff()
        async with self._replays:
            while not past.over:
                try:
                    async with self.source.open(replace(self.opening, start=past.position)) as stream:
                        for source in past.sources():
                            await stream.watch(source)
                        await past.read(stream, self._clock, self._dispatch_one, self._wait_for_room)
                except Exception as error:
                    cause = root_cause(error)
                    if isinstance(cause, ConfigurationError):
                        self._fail(cause)
                        break
                    await self._pause(backoff, cause)
        self._rounds.discard(past)
        for entry in past.entries:
            held, entry.held = entry.held or [], None
            for message in held:
                self._hand_out(message, [entry])
        self._now_live(past.entries)

    # ------------------------------------------------------------------ messages

    async def _read(self, stream: Stream, backoff: Backoff) -> None:
        batches = stream.__aiter__()
        while True:
            await self._wait_until_wanted()
            try:
                batch = await anext(batches)
            except StopAsyncIteration:
                raise StreamError(f"{self.source.label}: the stream ended by itself") from None
            backoff.reset()
            for message in batch:
                self._messages += 1
                if self._position is not None and isinstance(stream, LogStream):
                    self._position[message.partition] = stream.after(message)
                await self._dispatch_one(message, self._index)
                await self._wait_for_room()
            if isinstance(stream, LogStream):
                self._position = dict(stream.position())
            # A stream whose next batch is ready at once must not keep the loop for itself.
            await asyncio.sleep(0)

    async def _wait_until_wanted(self) -> None:
        """A queue is not asked for messages while nobody here wants any: others may."""
        while not self.source.replayable and not len(self._index):
            self._wanted.clear()
            await self._wanted.wait()

    async def _dispatch_one(self, message: Message, index: InterestIndex) -> None:
        entries = index.matching(message)
        if index.asks:
            entries += await index.asking(message, self._threads)
        if self._hand_out(message, entries):
            return
        if index.unreadable(message):
            self._note_unreadable(message)
        if not self.source.replayable:
            self._settle_unwanted(message, Outcome.REJECTED if index.unreadable(message) else Outcome.RELEASED)

    def _settle_unwanted(self, message: Message, outcome: Outcome) -> None:
        handout = self._under_way.get(message.id)
        if handout is not None:
            # One more copy of what groups are still recording: only the newest receipt can settle it.
            handout.message.receipt = message.receipt
        else:
            self._settler.add(message, Outcome.ACCEPTED if message.id in self._recorded else outcome)

    def _hand_out(self, message: Message, entries: Sequence[Entry]) -> bool:
        """Offer the message to the groups of these entries; ``False`` when none of them wants it any more."""
        names: dict[Subscription, list[str]] = {}
        wanted = False
        for entry in entries:
            if entry.remaining <= 0 or message.id in entry.seen:
                continue
            wanted = True
            if entry.held is not None and not self._in_round(entry, message):
                entry.held.append(message)
                continue
            names.setdefault(entry.subscription, []).append(entry.interest.name)
            entry.took(message)
            if not entry.remaining:
                self._forget(entry)
        if names:
            handout = self._handout(message)
            self._handed_out += 1
            for subscription, events in names.items():
                subscription.offer(handout, events, self)
        return wanted

    def _handout(self, message: Message) -> Handout:
        handout = None if self.source.replayable else self._under_way.get(message.id)
        if handout is None:
            handout = self._under_way[message.id] = Handout(message)
            self._unanswered += 1
        else:
            handout.message.receipt = message.receipt
        return handout

    def _in_round(self, entry: Entry, message: Message) -> bool:
        return any(entry in past.entries and past.covers(message) for past in self._rounds)

    async def _wait_for_room(self) -> None:
        while self._unanswered >= MOST_UNANSWERED:
            self._room.clear()
            await self._room.wait()

    def answered(self, handout: Handout) -> None:
        """One group has answered; the last answer settles the message."""
        if handout.open:
            return
        if self._under_way.get(handout.message.id) is handout:
            del self._under_way[handout.message.id]
        self._unanswered -= 1
        self._room.set()
        if self.source.replayable:
            for delivery in handout.deliveries:
                delivery.settlement_done()
            return
        if handout.outcome is Outcome.ACCEPTED:
            self._remember(handout.message.id)
        self._settler.add(handout.message, handout.outcome, handout)

    def _note_unreadable(self, message: Message) -> None:
        self._unreadable += 1
        if self._unreadable <= _UNREADABLE_SHOWN:
            more = "; further ones are not logged" if self._unreadable == _UNREADABLE_SHOWN else ""
            self.tell(
                logging.WARNING,
                "%s: the message at %s is not JSON, so no pattern can match it; it is skipped%s",
                self.source.label,
                message.position,
                more,
            )

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write into the task log of every group that listens."""
        for subscription in self._members:
            subscription.tell(level, text, *args)


def _since(entry: Entry) -> float:
    since = entry.interest.since
    return float("inf") if since is None else since.timestamp()


def root_cause(error: BaseException) -> BaseException:
    """The error inside nested groups that says most: a configuration error if there is one, else the first."""
    nested: Sequence[BaseException] = getattr(error, "exceptions", ())
    if not nested:
        return error
    causes = [root_cause(one) for one in nested]
    return next((cause for cause in causes if isinstance(cause, ConfigurationError)), causes[0])

