"""Which messages of a queue may come again though they are recorded: nobody knows that the broker was told.

Flow: a message is *owed* from when a group accepts it, or brings it along as recorded before, until the broker was told
of it or of its copy, or until the time is up in which a copy would have come
(:attr:`~event_triggers.sources.base.Source.redelivery`). What an earlier channel has told the broker
(:mod:`event_triggers.told`) is not owed. What is owed of a group that has ended for good is *left*:
nobody else brings it along, so the channel lingers for it.

Invariants:

* Nothing is owed where the source says that nothing comes again.
* The time runs while the queue can be read, and a new connection begins it anew. What is left is waited for without
  regard to that, after the first connection, so lingering is bounded.

Nothing survives a restart. So a group whose markers are complete waits itself (:meth:`Owed.repaid`) before it ends for
good; the channel lingers for those that ended otherwise, and what was left of them when the process ended stays in the
queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Iterable

from event_triggers.clock import Clock, move_on_after
from event_triggers.told import Told

__all__ = ["MOST_OWED", "Owed"]

MOST_OWED = 10_000
"""Of how many messages of one channel it is remembered that their queue may deliver them again."""


_LOOK_AGAIN = 1.0


class Owed:
    """What one channel owes to its broker.

    :param told: what the broker was told over any channel.
    :param channel: the key of this one.
    """

    def __init__(self, clock: Clock, told: Told, channel: Hashable) -> None:
        self._clock = clock
        self._told = told
        self._channel = channel
        self._within = 0.0
        self._until: dict[str, float] = {}
        self._left: set[str] = set()
        self._connections = 0
        self._reading = False
        self._changed = asyncio.Event()

    def expect_within(self, seconds: float) -> None:
        """Copies come within so many seconds; the longest time that any source gives holds."""
        self._within = max(self._within, seconds)

    def add(self, identities: Iterable[str], *, being_told: bool = False) -> None:
        """These are recorded, and the broker may not know.

        :param being_told: it is just being told, so no copy is to be looked for yet.
        """
        if not self._within:
            return
        until = self._clock.monotonic() + self._within
        for identity in identities:
            self._until.pop(identity, None)
            self._until[identity] = until
        if not being_told:
            self._changed.set()
        while len(self._until) > MOST_OWED:
            self._remove(next(iter(self._until)))

    def told(self, identity: str) -> None:
        """The broker knows of this one."""
        if self._within:
            self._told.note(self._channel, identity)
        self._remove(identity)

    def not_told(self, identity: str) -> None:
        """The broker could not be told of this one, or of its copy."""
        self._told.forget(self._channel, identity)
        self.add([identity])

    def is_told(self, identity: str) -> bool:
        """Whether the broker knows of this one, as far as is remembered."""
        return self._told.knows(self._channel, identity)

    def _remove(self, identity: str) -> None:
        self._until.pop(identity, None)
        self._left.discard(identity)
        self._changed.set()

    def leave(self, identities: Iterable[str]) -> None:
        """The group that has recorded these has ended for good."""
        self._left.update(identity for identity in identities if identity in self._until)
        self._changed.set()

    def connected(self) -> None:
        """There is a new connection, over which copies come."""
        self._connections += 1
        self._reading = True
        if self._connections == 1:
            # The channel before this one was still telling when these were brought along.
            for identity in [one for one in self._until if self.is_told(one)]:
                self._remove(identity)
        again = self._clock.monotonic() + self._within
        for identity in self._until:
            if self._connections == 1 or identity not in self._left:
                self._until[identity] = again

    def disconnected(self) -> None:
        """It has ended."""
        self._reading = False

    def __len__(self) -> int:
        """Of how many messages a copy may still come."""
        self._expire()
        return len(self._until)

    @property
    def lingers(self) -> bool:
        """Whether some of them are nobody's business but the channel's."""
        self._expire()
        return bool(self._left)

    async def changed(self) -> None:
        """Wait until something is added, told or left, or the time for all that is left is up."""
        self._changed.clear()
        if not self.lingers:
            await self._changed.wait()
            return
        latest = max(self._until[identity] for identity in self._left)
        async with move_on_after(self._clock, latest - self._clock.monotonic()):
            await self._changed.wait()

    async def repaid(self, identities: Collection[str]) -> None:
        """Wait until no copy of these can come any more. Bound it: without a connection the time stands still."""
        while len(self) and (until := [self._until[one] for one in identities if one in self._until]):
            self._changed.clear()
            async with move_on_after(self._clock, max(max(until) - self._clock.monotonic(), _LOOK_AGAIN)):
                await self._changed.wait()

    def _expire(self) -> None:
        now = self._clock.monotonic()
        over = [one for one, until in self._until.items() if until <= now and (self._reading or one in self._left)]
        for identity in over:
            del self._until[identity]
            self._left.discard(identity)
