"""How much of a channel is under way: taken from its broker, and not yet answered and told.

While it is too much the reader does not ask its stream for more, which pauses the broker. So what a channel keeps in
memory is bounded by these limits, one batch and what single events ask for, however slowly messages are recorded.

A reader asks for room after each message. So that is also where it lets the rest of the event loop run: when its batch
takes long, as when hundreds of groups are told of a message, and when it has woken many groups, which would otherwise
all run in one turn of the event loop.
"""

from __future__ import annotations

import asyncio

from event_triggers.message import Message

__all__ = ["LONGEST_HOLD", "MOST_UNANSWERED", "MOST_UNANSWERED_BYTES", "MOST_WOKEN", "Load"]

MOST_UNANSWERED = 1000
"""How many messages of one channel may be under way before it pauses its broker."""

MOST_UNANSWERED_BYTES = 32 * 1024 * 1024
"""How many bytes their bodies may have together before it does; one message may be larger, and is then alone."""

LONGEST_HOLD = 0.01
"""Seconds after which a reader lets others run, even in the middle of a batch."""

MOST_WOKEN = 32
"""How many times groups may be handed a message before a reader lets them run: each needs some tenths of
a millisecond."""


class Load:
    """What is under way in one channel."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self._woken = 0
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    def take(self, message: Message) -> None:
        """This message is under way from now on."""
        self.messages += 1
        self.bytes += len(message.body or b"")

    def release(self, message: Message) -> None:
        """It has been seen through."""
        self.messages -= 1
        self.bytes -= len(message.body or b"")
        self._room.set()

    def woke(self, groups: int) -> None:
        """So many groups have been handed a message."""
        self._woken += groups

    def tight(self) -> bool:
        """Whether :meth:`room` has something to do now."""
        if self.messages >= MOST_UNANSWERED or self.bytes >= MOST_UNANSWERED_BYTES:
            return True
        return self._held_long()

    def _held_long(self) -> bool:
        return self._woken >= MOST_WOKEN or self._loop.time() - self._since > LONGEST_HOLD

    async def room(self) -> None:
        """Wait until there is room for more, and let others run if that was long ago."""
        while self.messages >= MOST_UNANSWERED or self.bytes >= MOST_UNANSWERED_BYTES:
            self._room.clear()
            await self._room.wait()
        if self._held_long():
            await asyncio.sleep(0)
            self._woken = 0
            self._since = self._loop.time()
