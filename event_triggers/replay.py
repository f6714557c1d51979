"""Rounds through the past of a log, for entries that joined after it.

Flow: the channel fixes where the past begins (``since``) and where it ends (its own position when the entries
joined). A :class:`Round` opens a second stream at the beginning and dispatches from it until every partition has
reached the end. Live messages that its entries want wait in :attr:`Round.held` meanwhile; then they are handed over,
and the entries are live.

Invariants:

* Everything before :attr:`Round.position` has been dispatched, so a round whose stream breaks goes on from there.
* A round ends when its past is read, or when none of its entries wants more, and opens nothing after that.
* An entry has no more held for it than it still wants.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import anyio

from event_triggers.backoff import Backoff
from event_triggers.connecting import batches_of, next_batch, opened, pause, root_cause
from event_triggers.entry import Entry
from event_triggers.errors import ConfigurationError
from event_triggers.fanout import Fanout
from event_triggers.interests import InterestIndex
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Position, Source
from event_triggers.subscription import Subscription
from event_triggers.unread import Unread

__all__ = ["BEGINNING", "Replays", "Round", "now_live", "resumed", "since_of", "tell_lost"]

BEGINNING = datetime(1970, 1, 1, tzinfo=timezone.utc)
"""Before every message."""

_LOOK_EVERY = 0.25
"""Seconds between two looks at the position of a stream that is silent: its log may end with records nobody is
shown."""

_AT_ONCE = 2
"""How many rounds of one channel run at the same time, of those for the recent past and of the others each."""


class Round:
    """The past between two positions, and who wants it.

    :param start: where to begin, for every partition the channel knows.
    :param target: where the past ends, for the partitions that have one.
    """

    def __init__(self, start: Position, target: Position) -> None:
        self.position: dict[str, Any] = dict(start)
        self.target = dict(target)
        self.index = InterestIndex()
        self.entries: dict[Entry, None] = {}
        self.held: dict[Message, list[Entry]] = {}
        self._dispatching = False

    def add(self, entry: Entry) -> None:
        """Read the past for this entry too; its live messages are held back until then."""
        self.entries[entry] = None
        self.index.add(entry)
        entry.past = self

    def hold(self, message: Message, entry: Entry) -> None:
        """Keep a live message until the past is through. More than the entry still wants can never reach it."""
        if entry.held < entry.remaining:
            entry.held += 1
            self.held.setdefault(message, []).append(entry)

    def sources(self) -> list[Source]:
        """The distinct sources of the entries."""
        return list(dict.fromkeys(entry.interest.source for entry in self.entries))

    def subscriptions(self) -> list[Subscription]:
        """The groups of the entries that still want something."""
        return list(dict.fromkeys(entry.subscription for entry in self.entries if entry.remaining > 0))

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write into the task logs of these groups."""
        for subscription in self.subscriptions():
            subscription.tell(level, text, *args)

    def covers(self, message: Message) -> bool:
        """Whether this message lies in the past that is read here."""
        end = self.target.get(message.partition)
        return end is not None and bool(message.offset < end)

    def offered(self) -> dict[str, Any]:
        """Everything before this was offered to the entries of the round.

        What lies behind the target was only passed: it is held, and offered when the round is over.
        """
        ends = self.target
        return {p: ends[p] if p in ends and offset > ends[p] else offset for p, offset in self.position.items()}

    async def read(self, source: Source, opening: Opening, fanout: Fanout) -> None:
        """Open a stream where the round is, and dispatch from it until the round is over."""
        async with opened(source, replace(opening, start=dict(self.position), tell=self.tell)) as stream:
            assert isinstance(stream, LogStream)  # noqa: S101 - opened() has looked
            for watched in self.sources():
                await stream.watch(watched)
            self._dispatching = False
            async with anyio.create_task_group() as group:
                # Pulling may wait for ever at the end of a log, so somebody else must see that it is the end.
                group.start_soon(self._look, stream, opening, group.cancel_scope, name=f"{source.label}, end of past")
                await self._read(stream, source, fanout)
                group.cancel_scope.cancel()

    async def _read(self, stream: LogStream, source: Source, fanout: Fanout) -> None:
        async with batches_of(stream) as batches:
            while not self.over(stream):
                batch = await next_batch(batches, source)
                self._dispatching = True
                at = 0
                while at < len(batch):
                    at = await self._go_on(batch, at, fanout)
                    if fanout.load.tight():
                        await fanout.load.room()
                # A batch that is not dispatched to its end comes again; entries know what they have taken.
                self.position.update(stream.position())
                self._dispatching = False
                await asyncio.sleep(0)

    async def _go_on(self, batch: Sequence[Message], at: int, fanout: Fanout) -> int:
        """Dispatch the message at this place, or pass over some that nobody wants; gives the next place."""
        message = batch[at]
        if not self.covers(message):
            return at + 1
        if isinstance(batch, Unread):
            end = batch.ends[bisect_right(batch.ends, at)]
            if self.covers(batch[end - 1]):
                wanted = fanout.pass_over(batch, self.index, at, end)
                if wanted > at:
                    return wanted
        agreed = await fanout.ask(message, self.index) if self.index.asks else ()
        fanout.dispatch(message, self.index, agreed, live=False)
        return at + 1

    async def _look(self, stream: LogStream, opening: Opening, scope: anyio.CancelScope) -> None:
        while not self.over(stream):
            await opening.clock.sleep(_LOOK_EVERY)
        scope.cancel()

    def over(self, stream: LogStream | None = None) -> bool:
        """Whether the past is read, as far as ``stream`` has got, or nobody wants more of it."""
        if not len(self.index):
            return True
        # A stream is ahead of what it has yielded for as long as that is being dispatched.
        position = self.position if stream is None or self._dispatching else stream.position()
        return not self._dispatching and all(position.get(p, end) >= end for p, end in self.target.items())


class Replays:
    """The rounds of one channel.

    :param source: opens the streams.
    :param opening: how; where they start is the rounds' business.
    :param fail: ends the channel, when its source can never be opened as it is configured.
    """

    def __init__(self, source: Source, opening: Opening, fanout: Fanout, fail: Callable[[BaseException], None]) -> None:
        self._source = source
        self._opening = opening
        self._fanout = fanout
        self._fail = fail
        self._rounds: set[Round] = set()
        # Who asks for the recent past shall not wait for those who ask for last week.
        self._limits = {recent: anyio.Semaphore(_AT_ONCE) for recent in (False, True)}

    def begin(self, past: Round, group: anyio.abc.TaskGroup, *, recent: bool) -> None:
        """Read a round's past in a task of its own."""
        self._rounds.add(past)
        group.start_soon(self._run, past, recent, name=f"event_triggers: {self._source.label}, past")

    def discard(self, entry: Entry) -> None:
        """This entry wants nothing more."""
        for past in self._rounds:
            past.index.discard(entry)

    async def _run(self, past: Round, recent: bool) -> None:
        backoff = Backoff()
        async with self._limits[recent]:
            while not past.over():
                before = dict(past.position)
                try:
                    await past.read(self._source, self._opening, self._fanout)
                    break
                except Exception as error:
                    cause = root_cause(error)
                    if isinstance(cause, ConfigurationError):
                        self._fail(cause)
                        return
                    if past.position != before:
                        backoff.reset()
                    clock = self._opening.clock
                    await pause(self._source, clock, backoff, cause, past.tell, "reading what was missed")
        self._end(past)

    def _end(self, past: Round) -> None:
        # Nothing is awaited here: no live message may overtake those that were held.
        self._rounds.discard(past)
        for entry in past.entries:
            entry.seen_past += past.index.seen
            entry.past = None
            entry.held = 0
        for message, entries in past.held.items():
            self._fanout.hand_out(message, entries, live=False)
        now_live(past.entries)


def resumed(entry: Entry, beginnings: Position, now: Position) -> Round:
    """The past of an entry that goes on where it was, and not at a moment.

    :param beginnings: where the partitions begin; those that the entry does not know yet are read from there.
    :param now: where the shared stream is.
    """
    known = dict(entry.interest.start or {})
    source, subscription = entry.interest.source, entry.subscription
    start = {**beginnings, **known}
    for partition, offset in known.items():
        if partition in now and offset > now[partition]:
            start[partition] = beginnings.get(partition, now[partition])
            text = "%s: partition %s ends before offset %s, where reading was to go on; it is read from its beginning"
            subscription.tell(logging.ERROR, text, source.label, partition, offset)
        elif partition in beginnings and offset < beginnings[partition]:
            text = "%s: partition %s begins at offset %s now; what was there since offset %s is deleted, and lost"
            subscription.tell(logging.ERROR, text, source.label, partition, beginnings[partition], offset)
    target = {p: now[p] for p, offset in start.items() if p in now and offset < now[p]}
    past = Round({**now, **{p: start[p] for p in target}}, target)
    if target:
        past.add(entry)
    return past


def now_live(entries: Iterable[Entry]) -> None:
    """These entries see every message from now on."""
    for entry in entries:
        entry.live = True
        entry.subscription.changed()


def tell_lost(source: Source, entries: Iterable[Entry], lost: str) -> None:
    """Tell the groups of these entries what a log no longer has of what they ask for.

    :param lost: what :meth:`LogStream.lost` says.
    """
    sinces: dict[Subscription, datetime] = {}
    for entry in entries:
        if entry.interest.since is not None:
            since = sinces.setdefault(entry.subscription, entry.interest.since)
            sinces[entry.subscription] = min(since, entry.interest.since)
    for subscription, since in sinces.items():
        subscription.tell(
            logging.ERROR,
            "%s: %s; what was sent there since %s, if anything, is lost",
            source.label,
            lost,
            since.isoformat(timespec="seconds"),
        )


def since_of(entry: Entry) -> float:
    """From when on it wants messages, in seconds since 1970; infinite where it wants only what comes."""
    since = entry.interest.since
    return float("inf") if since is None else since.timestamp()
