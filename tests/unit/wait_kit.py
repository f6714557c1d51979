"""What the tests of waits share: a hub and a ledger in memory, and waits that run in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from event_triggers.event import Event
from event_triggers.ledger import GroupRef
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryLedger, MemoryLog, MemoryQueue
from event_triggers.verdict import Verdict
from event_triggers.wait import GroupWait
from tests.unit.hub_kit import Kit, idle, soon

__all__ = ["GROUP", "RunningWait", "WaitKit", "from_log", "from_queue"]

GROUP = GroupRef("daily", "manual__1", "inputs.wait")


def from_queue(match: str | None = None, *, count: int = 1, channel: str = "queue", **options: Any) -> Event:
    """An event over a queue; ``match`` is what the field ``what`` must be."""
    return Event(MemoryQueue(channel, **options), match=match and {"what": [match]}, count=count)


def from_log(match: str | None = None, *, count: int = 1, channel: str = "log", since: str | None = None) -> Event:
    """An event over a log; by default it reads from the beginning of the test."""
    since = since or "2030-01-01T00:00:00Z"
    return Event(MemoryLog(channel), match=match and {"what": [match]}, count=count, since=since)


class RunningWait:
    """A wait that runs in the background."""

    def __init__(self, wait: GroupWait) -> None:
        self.wait = wait
        self.task = asyncio.get_running_loop().create_task(wait.run(), name="the wait under test")

    async def verdict(self) -> Verdict:
        """What it ends with."""
        return await soon(asyncio.shield(self.task))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.task.done()

    async def kill(self) -> None:
        """Cancel it, as when its triggerer stops."""
        self.task.cancel()
        await soon(asyncio.wait({self.task}))


class WaitKit(Kit):
    """A hub and a ledger in memory, with a clock that the test turns."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger()

    def wait(
        self,
        events: Mapping[str, Event],
        *,
        timeout: float = 600,
        group: GroupRef = GROUP,
        handled: Mapping[str, int] | None = None,
        terms: Terms | None = None,
        warned: bool = False,
        **options: Any,
    ) -> GroupWait:
        """A wait whose time began with the test."""
        terms = terms or Terms()
        return GroupWait(
            group,
            events,
            {name: f"inputs.{name}" for name in events},
            hub=self.hub,
            ledger=self.ledger,
            clock=self.clock,
            terms=terms,
            timeline=Timeline.of(terms, events, self.start, timeout, warned=warned),
            handled=handled,
            **options,
        )

    @asynccontextmanager
    async def running(self, events: Mapping[str, Event], **options: Any) -> AsyncIterator[RunningWait]:
        """A wait that runs, up to where nothing more happens by itself."""
        running = RunningWait(self.wait(events, **options))
        try:
            await idle()
            yield running
        finally:
            await running.kill()

    def send(self, what: str, *, to: str = "queue", **more: Any) -> str:
        """Publish ``{"what": what}``; gives the message's id."""
        return self.broker.publish(to, {"what": what, **more})

    def ids(self, event: str, group: GroupRef = GROUP) -> list[str]:
        """What the ledger holds."""
        return self.ledger.ids(group, event)

    def states(self, *events: str, group: GroupRef = GROUP) -> list[str | None]:
        """The states of markers."""
        return [self.ledger.state(group, event) for event in events]

    def told(self, channel: str = "queue") -> list[tuple[str, str]]:
        """How messages ended at the broker: id and outcome, in order."""
        return [(one.message.id, one.outcome.value) for one in self.broker.settled(channel)]
