"""A channel: one shared stream, read by one task, fanned out to every group that wants something from it.

Flow::

    open -> watch the sources -> read batches -> hand out -> groups -> (all answered) -> settle -> broker
                  ^                                         |
                  '-- joiners of a log: locate, round through the past, then live

Invariants, which hold at every ``await``:

* :attr:`Channel._place` (logs) is exactly what has been dispatched: everything before it was offered to the
  entries in the index then, nothing behind it was. A broken stream is opened again from there, so nothing is lost or
  comes twice.
* An entry of a log is put into the index in the same step in which the position is read. So what it missed is exactly
  what lies before that position, and a :class:`~event_triggers.replay.Round` reads that from the past on a second,
  short-lived stream. Until it is through, live messages are held back for the entry, so that it sees them in order.
* Every message taken from a queue is settled: see :mod:`event_triggers.fanout`. What was taken and cannot be
  dispatched any more is given back.
* While too much is under way the reader does not ask for more, which pauses the broker.
* A group whose events of a log are all satisfied and answered leaves that log's channel by itself. A queue's channel
  keeps its groups until they leave: copies of what they recorded must be acknowledged. A channel without groups is
  over, unless it lingers for copies that may still come (:mod:`event_triggers.owed`): then it is read, everything but
  those copies is given back, and it is over when they are acknowledged or their time is.

Nothing survives a restart: groups subscribe again, logs are read again from ``since``, queues deliver again what was
not settled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio

from event_triggers.backoff import Backoff
from event_triggers.callables import Callables
from event_triggers.connecting import opened, pause, root_cause
from event_triggers.delivery import Answer, Delivery, Handout
from event_triggers.entry import Entry, Interest
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.fanout import Fanout
from event_triggers.interests import InterestIndex
from event_triggers.misses import Miss
from event_triggers.owed import Owed
from event_triggers.place import Place
from event_triggers.reader import Reader
from event_triggers.replay import BEGINNING, Replays, Round, now_live, resumed, since_of, tell_lost
from event_triggers.sources.base import LogStream, Opening, Position, Source, Stream
from event_triggers.statistics import ChannelStatistics
from event_triggers.subscription import Subscription
from event_triggers.telling import Telling
from event_triggers.text import plain_logger
from event_triggers.watching import Watching

__all__ = ["Channel", "root_cause"]

log = plain_logger(__name__)

_RECENT = 300
"""Up to how many seconds ago is the recent past, which is read apart from what is older."""

_STABLE = 60
"""After so many seconds of connection the next failure is a first one again."""


class Channel:
    """One shared stream and everybody who listens to it.

    :param source: any of the sources that share it.
    :param opening: how to open it; its ``start`` is the channel's own business.
    :param callables: runs match callables.
    :param owed: what it owes to its broker.
    :param on_over: called when the last group has left, or the stream can never be opened as it is configured.
    """

    def __init__(
        self,
        source: Source,
        opening: Opening,
        *,
        callables: Callables,
        owed: Owed,
        on_over: Callable[[Channel], None],
    ) -> None:
        self.source = source
        self._on_over = on_over
        self._clock = opening.clock
        self._index = InterestIndex()
        self._members: dict[Subscription, list[Entry]] = {}
        self.tell = Telling(self._members).tell
        self._fanout = Fanout(
            source,
            callables=callables,
            clock=opening.clock,
            owed=owed,
            responder=self,
            satisfied=self._satisfied,
            tell=self.tell,
        )
        self._opening = replace(opening, tell=self.tell, recorded=self._fanout.recorded_before)
        self._owed = owed
        self.hold, self.know, self.repaid = self._fanout.hold, self._fanout.know, owed.repaid
        self._replays = Replays(source, opening, self._fanout, self._fail)
        self._place = Place()
        self._reader = Reader(
            source,
            self._place,
            self._index,
            self._fanout,
            heard=lambda: bool(self._members) or self._owed.lingers,
            until_wanted=self._until_wanted,
        )
        self._joining: list[Entry] = []
        self._watching = Watching(source)
        self._requests = asyncio.Event()
        self._wanted = asyncio.Event()
        self.connected = False
        self._opened = 0
        self._after: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._group: anyio.abc.TaskGroup | None = None

    # ------------------------------------------------------------------ groups come and go

    def add(self, subscription: Subscription, interest: Interest) -> None:
        """Deliver what ``interest`` asks for, from ``since`` on."""
        entry = Entry(subscription, interest, self)
        self._members.setdefault(subscription, []).append(entry)
        subscription.entries.append(entry)
        self._watching.join([entry])
        if not self.source.replayable:
            self._owed.expect_within(interest.source.redelivery)
            self._fanout.know(interest.recorded, interest.recalled)
            # Before the broker is asked for anything: a message that comes at once must find its group.
            self._admit(entry)
            self._fanout.offer_under_way(entry)
        self._joining.append(entry)
        self._requests.set()

    def drop(self, entry: Entry) -> None:
        """This entry is wanted no longer."""
        entry.remaining = 0
        self._satisfied(entry)
        entry.subscription.changed()
        self._leave_if_done(entry.subscription)

    def remove(self, subscription: Subscription, answer: Answer) -> None:
        """Take a group out, and answer for what it leaves open."""
        entries = self._members.pop(subscription, [])
        self._watching.leave(entries)
        for entry in entries:
            entry.remaining = 0
            self._forget(entry)
        self._joining = [entry for entry in self._joining if entry.subscription is not subscription]
        subscription.answer_all(answer)
        if answer is Answer.DECLINED:
            # For good: nobody will bring along again what it has recorded.
            self._owed.leave(identity for entry in entries for identity in entry.seen)
        self._after_leaving()

    def answered(self, delivery: Delivery, handout: Handout) -> None:
        """A group has answered for one message."""
        self._fanout.answered(delivery, handout)
        self._leave_if_done(delivery.subscription)

    def _leave_if_done(self, subscription: Subscription) -> None:
        entries = self._members.get(subscription)
        if entries is None or not self.source.replayable:
            return
        if any(entry.remaining > 0 for entry in entries) or subscription.owes(self):
            return
        self._watching.leave(self._members.pop(subscription))
        self._after_leaving()

    def _after_leaving(self) -> None:
        if self._members or self._owed.lingers:
            self._requests.set()
            self._wanted.set()
        else:
            # Its sources are not unwatched one by one: a durable session must keep what it has subscribed to.
            self._on_over(self)

    async def _linger(self) -> None:
        while True:
            await self._owed.changed()
            self._wanted.set()
            if not self._members and not self._owed.lingers:
                self._on_over(self)

    def _admit(self, entry: Entry) -> None:
        if entry.remaining > 0:
            entry.seen_before = self._index.seen
            self._index.add(entry)
            self._wanted.set()

    def _forget(self, entry: Entry) -> None:
        self._index.discard(entry)
        self._replays.discard(entry)

    def _satisfied(self, entry: Entry) -> None:
        self._forget(entry)
        if not self.source.replayable:
            self._requests.set()

    @property
    def has_groups(self) -> bool:
        """Whether somebody listens."""
        return bool(self._members)

    @property
    def lingers(self) -> bool:
        """Whether nobody listens any more, and copies of what was recorded may still come."""
        return not self._members and self._owed.lingers

    def statistics(self) -> ChannelStatistics:
        """What has been done so far."""
        work = len(self._index), self._reader.messages, self._fanout.handed_out, self._fanout.unanswered
        return ChannelStatistics(
            self.source.label, self.connected, self._opened, *work, owed=len(self._owed), lingering=self.lingers
        )

    def miss(self, entry: Entry) -> Miss:
        """What came nearest to an event that is still waited for."""
        return self._fanout.misses.nearest(entry, self._index.seen, lambda: self._index.pattern_of(entry))

    # ------------------------------------------------------------------ life of the connection

    def start(self, after: asyncio.Task[None] | None, context_run: Callable[..., Any]) -> None:
        """Begin, once the task ``after`` (the previous channel of this key, closing) has ended."""
        self._after = after
        self._task = context_run(
            asyncio.get_running_loop().create_task, self._run(), name=f"event_triggers: {self.source.label}"
        )

    async def close(self) -> None:
        """Tell the broker what is due, and disconnect; so must have the previous channel of this key then."""
        tasks = {task for task in (self._task, self._after) if task is not None}
        if self._task is not None:
            self._task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        try:
            if self._after is not None:
                await asyncio.wait({self._after})
                self._after = None
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._stay_connected, name=f"event_triggers: {self.source.label}, live")
                if not self.source.replayable:
                    group.start_soon(self._linger, name=f"event_triggers: {self.source.label}, lingering")
            self._fail(StreamError(f"{self.source.label}: the connection was cancelled from inside"))
        except Exception as error:
            log.exception("%s: a mistake in event_triggers ended this stream", self.source.label)
            self._fail(root_cause(error))
        finally:
            self.connected = False
            self._fanout.settler.give_up()

    def _fail(self, error: BaseException) -> None:
        """Whoever listens is told, once; who comes later tries anew."""
        for subscription in self._members:
            subscription.fail(error)
        self._on_over(self)

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        while True:
            began = self._clock.monotonic()
            try:
                await self._connect(backoff)
            except Exception as error:
                cause = root_cause(error)
                if isinstance(cause, ConfigurationError):
                    self._fail(cause)
                    await anyio.sleep_forever()
                if self._clock.monotonic() - began > _STABLE:
                    backoff.reset()
                await pause(self.source, self._clock, backoff, cause, self.tell)

    async def _connect(self, backoff: Backoff) -> None:
        async with opened(self.source, replace(self._opening, start=self._place.start)) as stream:
            self._opened += 1
            self._watching.begin()
            await self._watching.serve(stream, self._entries, self._joining)
            log_stream = self._as_log(stream)
            if log_stream is not None and self._place.offsets is None:
                self._place.offsets = dict(log_stream.position())
            self.connected = True
            self._owed.connected()
            if backoff.attempts:
                self.tell(logging.INFO, "%s: connected again", self.source.label)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._serve_requests, stream, name=f"{self.source.label}, requests")
                    group.start_soon(self._fanout.settler.run, stream, name=f"{self.source.label}, settling")
                    await self._reader.read(stream, backoff.reset)
            finally:
                self.connected = False
                self._owed.disconnected()
                await self._fanout.settler.last_flush(stream)
            raise StreamError(f"{self.source.label}: the connection was cancelled from inside")

    def _as_log(self, stream: Stream) -> LogStream | None:
        return stream if self.source.replayable and isinstance(stream, LogStream) else None

    # ------------------------------------------------------------------ requests: sources to watch, entries to join

    async def _serve_requests(self, stream: Stream) -> None:
        while True:
            self._requests.clear()
            # Taken before the sources are watched, so that no entry joins whose source is not.
            joining, self._joining = self._joining, []
            try:
                await self._watching.serve(stream, self._entries, joining)
                log_stream = self._as_log(stream)
                if log_stream is None:
                    self._catch_up(joining)
                else:
                    await self._join(log_stream, joining)
            except BaseException:
                # The next connection serves them.
                self._joining = [entry for entry in joining if not entry.live and entry.past is None] + self._joining
                raise
            await self._requests.wait()

    def _entries(self) -> list[Entry]:
        return [entry for entries in self._members.values() for entry in entries]

    def _catch_up(self, joining: list[Entry]) -> None:
        """The entries of a queue are in the index already; what was under way when they came may be theirs too."""
        asking = [entry for entry in joining if entry.interest.accepts is not None]
        now_live(entry for entry in joining if entry.interest.accepts is None)
        if asking:
            assert self._group is not None  # noqa: S101 - set before anything is served
            self._group.start_soon(
                self._ask_under_way, asking, name=f"event_triggers: {self.source.label}, catching up"
            )

    async def _ask_under_way(self, entries: list[Entry]) -> None:
        await self._fanout.ask_under_way(entries)
        now_live(entries)

    async def _join(self, stream: LogStream, joining: list[Entry]) -> None:
        """Put entries of a log into the index; those that have missed something get a round through the past."""
        assert self._group is not None  # noqa: S101 - set before anything is served
        border = self._clock.now().timestamp() - _RECENT
        for entry in [entry for entry in joining if entry.interest.start is not None]:
            await self._join_at(stream, entry)
        joining = [entry for entry in joining if entry.interest.start is None]
        for recent in (True, False):
            entries = [entry for entry in joining if entry.remaining > 0 and recent == (since_of(entry) >= border)]
            sinces = [entry.interest.since for entry in entries if entry.interest.since is not None]
            start = await stream.locate(min(sinces)) if sinces else {}
            lost = await stream.lost(start) if start else ""
            # From here to the end of this turn nothing is awaited: see the invariant of the position. Meanwhile some
            # may have gone.
            entries = [entry for entry in entries if entry.remaining > 0]
            now = {**stream.position(), **(self._place.offsets or {})}
            target = {p: now[p] for p, offset in start.items() if p in now and offset < now[p]}
            past = Round({**now, **{p: start[p] for p in target}}, target)
            for entry in entries:
                self._admit(entry)
                if target and entry.interest.since is not None:
                    past.add(entry)
            if lost:
                tell_lost(self.source, entries, lost)
            if past.entries:
                self._replays.begin(past, self._group, recent=recent)
            now_live(entry for entry in entries if entry.past is None)

    async def _join_at(self, stream: LogStream, entry: Entry) -> None:
        """As :meth:`_join`, for an entry that knows where it was."""
        assert self._group is not None  # noqa: S101 - set before anything is served
        beginnings = await stream.locate(BEGINNING)
        # From here on nothing is awaited: see the invariant of the position.
        if entry.remaining > 0 and entry.past is None and not entry.live:
            past = resumed(entry, beginnings, {**stream.position(), **(self._place.offsets or {})})
            self._admit(entry)
            if past.entries:
                self._replays.begin(past, self._group, recent=False)
            else:
                now_live([entry])

    def offered(self, entry: Entry) -> Position | None:
        """Everything before this position of the log was offered to the entry; ``None`` while nothing is known."""
        if entry.past is not None:
            return entry.past.offered()
        return self._place.start if entry.live else None

    async def _until_wanted(self) -> None:
        """A queue is not asked for messages while nobody here wants any: others may. It is asked for copies."""
        while not (self.source.replayable or len(self._index) or self.lingers or (self._members and len(self._owed))):
            self._wanted.clear()
            await self._wanted.wait()
