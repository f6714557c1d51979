"""The wait of a group, replayed: its clock goes by the stamps of the messages, and each is dealt with before the next.

Flow: the try begins at the run's ``run_after``. For each message the clock is turned on to its stamp, stopping where
something is due (an event's own time, the warning, the deadline); then every source that it comes from delivers it, and
all that can run without the clock runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

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
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait

__all__ = ["Replayed", "Step", "replay"]


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


@dataclass
class Replayed:
    """What became of a group.

    :param verdict: ``None`` while it waits on.
    :param took: of each event, the lines of its messages.
    :param states: of the markers.
    :param warned: when somebody would have been told, and that these were missing.
    """

    group: Group
    timeline: Timeline
    steps: list[Step] = field(default_factory=list)
    verdict: Verdict | None = None
    took: dict[str, list[int]] = field(default_factory=dict)
    states: dict[str, str | None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    warned: tuple[datetime, list[str]] | None = None

    @property
    def complete(self) -> bool:
        """Whether the group is."""
        return self.verdict is not None and self.verdict.status is Status.COMPLETE


async def replay(group: Group, lines: Sequence[Line]) -> Replayed:
    """Let a group wait for these messages."""
    return await _Replay(group).run(lines)


async def _no_connection(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


class _Replay:
    def __init__(self, group: Group) -> None:
        self._group = group
        self._ref = GroupRef(group.dag_id, group.run.run_id, group.task_id)
        self._clock = ManualClock(group.run.run_after)
        self._ledger = MemoryLedger()
        self._hub = Hub(_no_connection, clock=self._clock)
        self._events, self._feeds = impersonated(group.events)
        self._timeline = self._lay_out(warned=False)
        self._replayed = Replayed(group, self._timeline)
        self._waiting: asyncio.Task[Verdict] | None = None
        # What one message sets off is a few steps for each event.
        self._turns = 200 + 50 * len(group.events)

    def _lay_out(self, *, warned: bool) -> Timeline:
        group = self._group
        return Timeline.of(group.terms, group.events, group.run.run_after, group.timeout, warned=warned)

    async def run(self, lines: Sequence[Line]) -> Replayed:
        """Replay all lines."""
        self._begin(self._timeline)
        await self._settle()
        try:
            for line in lines:
                await self._turn_to(line.timestamp)
                await self._deliver(line)
            self._sum_up()
            return self._replayed
        finally:
            await self._end()

    def _begin(self, timeline: Timeline) -> None:
        wait = GroupWait(
            self._ref,
            self._events,
            self._group.markers,
            hub=self._hub,
            ledger=self._ledger,
            clock=self._clock,
            terms=self._group.terms,
            timeline=timeline,
        )
        self._waiting = asyncio.get_running_loop().create_task(wait.run(), name="event_triggers: offline wait")

    async def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait({self._waiting})

    async def _settle(self) -> None:
        """Let everything run that can run without the clock; a warning is given, and the wait goes on."""
        while True:
            await self._run_dry()
            task = self._waiting
            if task is None:
                return
            if not task.done():
                if not self._joined():
                    return
                # Complete; behind a failed marker the join is marked for some seconds more.
                self._clock.advance(1)
                continue
            verdict = task.result()
            if verdict.status is not Status.WARNING:
                self._replayed.verdict = verdict
                return
            self._replayed.warned = (self._clock.now(), list(verdict.missing))
            self._begin(self._lay_out(warned=True))

    def _joined(self) -> bool:
        join = self._group.terms.join
        return join is not None and self._ledger.state(self._ref, join) == "success"

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

    async def _turn_to(self, moment: datetime | None) -> None:
        if moment is None:
            return
        due = [self._timeline.deadline, self._timeline.warn_at, *self._timeline.events.values()]
        stops = sorted(at for at in due if at is not None and self._clock.now() < at <= moment)
        for stop in (*stops, moment):
            if stop > self._clock.now():
                self._clock.advance(stop - self._clock.now())
                await self._settle()

    async def _deliver(self, line: Line) -> None:
        now = self._clock.now()
        messages: dict[Source, Message] = {}
        for source in self._feeds:
            message = stands_for(line, source, now)
            if message is not None:
                messages[source] = message
        step = Step(line, now, messages, self._states(), self._replayed.verdict is not None)
        self._replayed.steps.append(step)
        if step.over:
            return
        for source, message in messages.items():
            self._feeds[source].push(message)
        await self._settle()

    def _states(self) -> dict[str, str | None]:
        return {name: self._ledger.state(self._ref, name) for name in self._events}

    def _sum_up(self) -> None:
        replayed = self._replayed
        replayed.states = self._states()
        for name in self._events:
            ids = self._ledger.ids(self._ref, name)
            replayed.took[name] = [int(one.removeprefix("line ")) for one in ids]
        if replayed.verdict is not None:
            replayed.missing = list(replayed.verdict.missing)
            return
        for name, event in self._group.events.items():
            got = len(replayed.took[name])
            if replayed.states[name] is None and event.required and got < event.count:
                replayed.missing.append(f"{name} ({got} of {event.count})" if event.count > 1 else name)
