"""How much of a channel is under way: taken from its broker, and not yet answered and told.

While it is too much the reader does not ask its stream for more, which pauses the broker. So what a channel keeps in
memory is bounded by these limits, one batch and what single events ask for, however slowly messages are recorded.
"""

from __future__ import annotations

import asyncio

from event_triggers.message import Message

__all__ = ["MOST_UNANSWERED", "MOST_UNANSWERED_BYTES", "Load"]

MOST_UNANSWERED = 1000
"""How many messages of one channel may be under way before it pauses its broker."""

MOST_UNANSWERED_BYTES = 32 * 1024 * 1024
"""How many bytes their bodies may have together before it does; one message may be larger, and is then alone."""


class Load:
    """What is under way in one channel."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self._room = asyncio.Event()

    def take(self, message: Message) -> None:
        """This message is under way from now on."""
        self.messages += 1
        self.bytes += len(message.body or b"")

    def release(self, message: Message) -> None:
        """It has been seen through."""
        self.messages -= 1
        self.bytes -= len(message.body or b"")
        self._room.set()

    async def room(self) -> None:
        """Wait until there is room for more."""
        while self.messages >= MOST_UNANSWERED or self.bytes >= MOST_UNANSWERED_BYTES:
            self._room.clear()
            await self._room.wait()
