"""Reading a channel's live stream: batch after batch, each message handed out or passed over.

Flow: pull a batch -> of a log, go over what nobody wants -> ask the callables -> dispatch -> the place moves.

Invariants, which hold at every ``await``:

* The place is behind exactly what was dispatched or passed over, and the index is asked in the same step: an entry
  that comes meanwhile is offered everything behind the place, and reads what lies before it from the past.
* What was taken from a queue and cannot be dispatched any more is given back.
* While too much is under way nothing more is pulled.

A restart reads a log from its place, and gets from a queue what was not settled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio

from event_triggers.connecting import batches_of, next_batch
from event_triggers.entry import Entry
from event_triggers.fanout import Fanout
from event_triggers.interests import InterestIndex
from event_triggers.message import Message
from event_triggers.place import Place
from event_triggers.sources.base import Source, Stream
from event_triggers.unread import Unread

__all__ = ["Reader"]


class Reader:
    """Reads for one channel, over one stream after the other.

    :param heard: whether anybody is left to want a message.
    :param until_wanted: waits until the stream is to be asked for messages.
    """

    def __init__(
        self,
        source: Source,
        place: Place,
        index: InterestIndex,
        fanout: Fanout,
        *,
        heard: Callable[[], bool],
        until_wanted: Callable[[], Awaitable[None]],
    ) -> None:
        self._source = source
        self._place = place
        self._index = index
        self._fanout = fanout
        self._heard = heard
        self._until_wanted = until_wanted
        self.messages = 0
        """How many have come."""

    async def read(self, stream: Stream, got_one: Callable[[], None]) -> None:
        """Read until the stream fails.

        :param got_one: is told of each batch.
        """
        async with batches_of(stream) as batches:
            while True:
                await self._until_wanted()
                batch = await next_batch(batches, self._source)
                got_one()
                if self._source.replayable and isinstance(batch, Unread):
                    await self._go_through(batch, stream)
                else:
                    await self._hand_out(batch, stream)
                self._place.take_over(stream)
                # A stream whose next batch is ready at once must not keep the loop for itself.
                await asyncio.sleep(0)

    async def _hand_out(self, batch: Sequence[Message], stream: Stream) -> None:
        left = deque(batch)
        self._place.meet(left)
        fanout, index = self._fanout, self._index
        nobody: Sequence[Entry] = ()
        try:
            while left:
                # Not in methods of its own: each call counts where every message passes.
                agreed = await self._ask(left[0], stream) if index.asks or not self._heard() else nobody
                self.messages += 1
                self._place.passed(left[0])
                fanout.dispatch(left[0], index, agreed, live=True)
                left.popleft()
                if fanout.load.tight():
                    await self._make_room(stream)
        finally:
            self._place.move(stream)
            self._fanout.give_back(left)

    async def _go_through(self, batch: Unread, stream: Stream) -> None:
        self._place.meet(batch[begin] for begin, _ in batch.runs())
        fanout, index = self._fanout, self._index
        try:
            for at, end in batch.runs():
                while at < end:
                    wanted = fanout.pass_over(batch, index, at, end) if self._heard() else at
                    if wanted > at:
                        self.messages += wanted - at
                        self._place.passed(batch[wanted - 1])
                    else:
                        message, wanted = batch[at], at + 1
                        agreed = await self._ask(message, stream)
                        self.messages += 1
                        self._place.passed(message)
                        fanout.dispatch(message, index, agreed, live=True)
                    at = wanted
                    if fanout.load.tight():
                        await self._make_room(stream)
        finally:
            self._place.move(stream)

    async def _ask(self, message: Message, stream: Stream) -> Sequence[Entry]:
        """Whose callables want it, while somebody is there to want it."""
        agreed: Sequence[Entry] = ()
        if self._index.asks:
            self._place.move(stream)
            agreed = await self._fanout.ask(message, self._index)
        if not self._heard():
            # Nobody is left to want it: it is given back when the channel closes.
            self._place.move(stream)
            await anyio.sleep_forever()
        return agreed

    async def _make_room(self, stream: Stream) -> None:
        self._place.move(stream)
        await self._fanout.load.room()
