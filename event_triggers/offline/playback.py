"""One wait of a group, played: what it waits for is delivered message by message, and its clock is turned from outside.

Flow: whoever plays begins the wait as a task, lets it :meth:`~Playback.settle`, and then for each message turns the
clock on (:meth:`~Playback.turn_to`, which stops where something is due) and delivers it (:meth:`~Playback.deliver`).

Invariant: between two calls everything has run that can run without the clock, so what a message has set off is done
before the next is delivered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from event_triggers.callables import CALLABLE_TIMEOUT
from event_triggers.errors import ConnectionMissingError
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.message import Message
from event_triggers.offline.dagfile import Group
from event_triggers.offline.feed import impersonated, stands_for
from event_triggers.offline.lines import Line
from event_triggers.sources.base import BrokerConnection, Source
from event_triggers.terms import Timeline
from event_triggers.testing.clock import ManualClock
from event_triggers.testing.ledger import MemoryLedger

__all__ = ["Playback", "Step", "no_connection"]


@dataclass(frozen=True)
class Step:
    """One message.

    :param messages: what it is on each source that delivers it.
    :param before: the states of the markers before it.
    :param over: whether the wait was over before it.
    """

    line: Line
    at: datetime
    messages: dict[Source, Message]
    before: dict[str, str | None]
    over: bool


async def no_connection(conn_id: str) -> BrokerConnection:
    """What a hub is given that reaches no broker.

    :raises ConnectionMissingError: always.
    """
    raise ConnectionMissingError(conn_id)


class Playback:
    """Feeds, a ledger and a clock for one group, and the task that waits.

    :param begin: what the clock shows at first.
    """

    def __init__(self, group: Group, begin: datetime, map_index: int = -1) -> None:
        self.group = group
        self.ref = GroupRef(group.dag_id, group.run.run_id, group.task_id, map_index)
        self.clock = ManualClock(begin)
        self.ledger = MemoryLedger()
        self.hub = Hub(no_connection, clock=self.clock)
        self.events, self.feeds = impersonated(group.events)
        self.timeline = self.lay_out(begin, warned=False)
        self.task: asyncio.Task[Any] | None = None
        # What one message sets off is a few steps for each event.
        self._turns = 200 + 50 * len(group.events)

    def lay_out(self, started: datetime, *, warned: bool) -> Timeline:
        """What is due when, in a try that began then."""
        group = self.group
        return Timeline.of(group.terms, group.events, started, group.timeout, warned=warned)

    def ended(self) -> bool:
        """The task is done: gives whether another was begun in its place."""
        return False

    @property
    def paused(self) -> bool:
        """Whether the clock stands still, because nobody waits."""
        return self.task is None or self.task.done()

    def states(self) -> dict[str, str | None]:
        """The markers' states now."""
        return {name: self.ledger.state(self.ref, name) for name in self.events}

    def took(self) -> dict[str, list[int]]:
        """Of each event, the numbers of the lines whose messages its marker holds."""
        ids = {name: self.ledger.ids(self.ref, name) for name in self.events}
        return {name: [int(one.removeprefix("line ")) for one in held] for name, held in ids.items()}

    async def settle(self) -> None:
        """Let everything run that can run without the clock."""
        while True:
            await self._run_dry()
            if self.task is None:
                return
            if self.task.done():
                if not self.ended():
                    return
            elif self._joined():
                # Complete; behind a failed marker the join is marked for some seconds more.
                self.clock.advance(1)
            else:
                return

    async def turn_to(self, moment: datetime) -> None:
        """Turn the clock on to this moment, or until nobody waits any more."""
        for stop in self.stops(moment):
            if self.paused:
                return
            if stop > self.clock.now():
                self.clock.advance(stop - self.clock.now())
                await self.settle()

    def stops(self, moment: datetime | None = None) -> Iterator[datetime]:
        """When something is due from now until that moment, and the moment itself."""
        due = [self.timeline.deadline, self.timeline.warn_at, *self.timeline.events.values()]
        now = self.clock.now()
        yield from sorted(at for at in due if at is not None and now < at and (moment is None or at < moment))
        if moment is not None:
            yield moment

    def arrive(self, line: Line, stamp: datetime) -> dict[Source, Message]:
        """What this line is on each source that delivers it.

        :param stamp: the message's, where the line has none.
        """
        found = {source: stands_for(line, source, stamp, self._wanted_by(source)) for source in self.feeds}
        return {source: message for source, message in found.items() if message is not None}

    def _wanted_by(self, source: Source) -> set[str]:
        return {name for name, event in self.group.events.items() if event.source == source}

    async def deliver(self, line: Line, *, over: bool = False) -> Step:
        """Let it come, unless the wait is over; everything that it sets off is done then."""
        now = self.clock.now()
        step = Step(line, now, self.arrive(line, now), self.states(), over)
        if not over:
            for source, message in step.messages.items():
                self.feeds[source].push(message)
            await self.settle()
        return step

    async def close(self) -> None:
        """End the task, and what the hub has left."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    def _joined(self) -> bool:
        join = self.group.terms.join
        return join is not None and self.ledger.state(self.ref, join) == "success"

    async def _run_dry(self) -> None:
        began = time.monotonic()
        while True:
            for _ in range(self._turns):
                await asyncio.sleep(0)
            # A function that is asked about a message runs in a thread of its own.
            asked = any(thread.name.endswith("match callable") for thread in threading.enumerate())
            if not asked or time.monotonic() - began > CALLABLE_TIMEOUT:
                return
            await asyncio.sleep(0.001)
