"""A round through the past of a log, for entries that joined after it.

Flow: the channel fixes where the past begins (``since``) and where it ends (its own position when the entries joined), opens a
second stream at the beginning, and :meth:`Round.read` dispatches from it until every partition has reached the end.

Invariant: :attr:`Round.position` is exactly what has been dispatched, so a round whose stream breaks goes on from there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from event_triggers.clock import Clock
from event_triggers.interests import InterestIndex
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Position, Source, Stream
from event_triggers.subscription import Entry

__all__ = ["Round"]

_LOOK_EVERY = 0.25
"""Seconds between two looks at the position of a stream that is silent: its log may end with records nobody is shown."""


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
        self.over = False

    def add(self, entry: Entry) -> None:
        """Read the past for this entry too; its live messages are held back until then."""
        self.entries[entry] = None
        entry.held = []
        self.index.add(entry)

    def sources(self) -> list[Source]:
        """The distinct sources of the entries."""
        return list(dict.fromkeys(entry.interest.source for entry in self.entries))

    def covers(self, message: Message) -> bool:
        """Whether this message lies in the past that is read here."""
        end = self.target.get(message.partition)
        return end is not None and bool(message.offset < end)

    async def read(
        self,
        stream: Stream,
        clock: Clock,
        dispatch: Callable[[Message, InterestIndex], Awaitable[None]],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        """Dispatch the past from ``stream`` until it has reached the target everywhere, or nobody wants more."""
        assert isinstance(stream, LogStream)  # noqa: S101 - only logs have a past
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_when_reached, stream, clock, group.cancel_scope, name="event_triggers: past, end")
            async for batch in stream:
                for message in batch:
                    self.position[message.partition] = stream.after(message)
                    if self.covers(message):
                        await dispatch(message, self.index)
                        await room()
                self.position.update(stream.position())
                if self._reached(stream):
                    group.cancel_scope.cancel()
                    break
        self.over = True

    async def _stop_when_reached(self, stream: LogStream, clock: Clock, scope: anyio.CancelScope) -> None:
        while not self._reached(stream):
            await clock.sleep(_LOOK_EVERY)
        scope.cancel()

    def _reached(self, stream: LogStream) -> bool:
        position = {**stream.position(), **self.position}
        return not len(self.index) or all(position.get(p, end) >= end for p, end in self.target.items())
