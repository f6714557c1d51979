"""What the conformance suite asks of a queue."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import ClassVar

import anyio

from event_triggers.message import same_message
from event_triggers.sources.base import Outcome, Settlement
from event_triggers.testing.conformance.common import SourceConformance
from event_triggers.testing.conformance.harness import (
    BrokerHarness,
    blocked,
    check_order,
    numbered,
    reading,
    until_undelivered,
)
from event_triggers.testing.conformance.rules import rule

__all__ = ["QueueConformance"]


class QueueConformance(SourceConformance):
    """What a queue adds: a message is gone once it is acknowledged, and not before."""

    replayable: ClassVar[bool | None] = False

    @rule(
        "an accepted message is acknowledged at the broker",
        mend="acknowledge in settle() for Outcome.ACCEPTED, and return when the broker has it",
    )
    async def test_accepted_messages_are_gone(self, harness: BrokerHarness) -> None:
        bodies = numbered("done", 12)
        async with reading(harness) as reader:
            await harness.publish(*bodies)
            messages = await reader.take(len(bodies))
            check_order(harness, messages, bodies)
            await reader.settle(messages[:5])
            await reader.settle(messages[5:])
        async with reading(harness) as reader:
            await harness.publish(b"last")
            again = await reader.take(1)
            assert [m.body for m in again] == [b"last"]
            await reader.settle(again)
        await until_undelivered(harness, 0)

    @rule(
        "settle() works while the next batch is waited for",
        mend=(
            "do not hold a lock over both; where the client cannot do both at once, use one task that does the talking"
        ),
    )
    async def test_settles_while_a_pull_waits(self, harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            await harness.publish(b"one")
            messages = await reader.take(1)
            pulling = asyncio.create_task(reader.take(1), name="conformance-pull")
            try:
                await blocked()
                await reader.settle(messages)
                await harness.publish(b"two")
                later = await pulling
                assert [m.body for m in later] == [b"two"]
                await reader.settle(later)
            finally:
                pulling.cancel()
                await asyncio.wait({pulling})
        await until_undelivered(harness, 0)

    @rule(
        "settle() may be repeated",
        mend="pass over receipts that are good for nothing any more",
    )
    async def test_settling_twice_is_harmless(self, harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            await harness.publish(b"one", b"two")
            messages = await reader.take(2)
            await reader.settle(messages)
            await reader.settle(messages)
            await reader.settle([*messages, *messages])
            await harness.publish(b"three")
            later = await reader.take(1)
            assert [m.body for m in later] == [b"three"]
            await reader.settle(later)
        await until_undelivered(harness, 0)

    @rule(
        "what was not settled comes again, with the same id; nothing is acknowledged anywhere but in settle()",
        mend="switch the client's auto-acknowledgement off; take the id from the broker",
    )
    async def test_unsettled_messages_come_again(self, harness: BrokerHarness) -> None:
        one, two, three, four = numbered("again", 4)
        async with reading(harness) as reader:
            await harness.publish(one, two, three, four)
            first = {m.body: m for m in await reader.take(4)}
            await reader.settle([first[two]])
        await until_undelivered(harness, 3)
        async with reading(harness) as reader:
            messages = await reader.take(3)
            assert sorted(m.body or b"" for m in messages) == [one, three, four]
            assert all(same_message(m.id, first[m.body].id) for m in messages)
            await reader.settle(messages)
        await until_undelivered(harness, 0)

    @rule(
        "a released message goes the way that the harness states (released_comes_again)",
        mend=(
            "give it back to the broker on Outcome.RELEASED; do not acknowledge it, or say in the harness that it "
            "does not come again"
        ),
    )
    async def test_released_messages_come_again(self, harness: BrokerHarness) -> None:
        await self._check_outcome(harness, Outcome.RELEASED, harness.released_comes_again)

    @rule(
        "an abandoned message comes again: a group wanted it and could not record it",
        mend="give it back on Outcome.ABANDONED, or leave it unacknowledged",
    )
    async def test_abandoned_messages_come_again(self, harness: BrokerHarness) -> None:
        await self._check_outcome(harness, Outcome.ABANDONED, True)

    @rule(
        "a rejected message goes the broker's way for poison (rejected_comes_again)",
        mend="acknowledge, dead-letter or leave it on Outcome.REJECTED, as the harness says",
    )
    async def test_rejected_messages(self, harness: BrokerHarness) -> None:
        await self._check_outcome(harness, Outcome.REJECTED, harness.rejected_comes_again)

    @staticmethod
    async def _check_outcome(harness: BrokerHarness, outcome: Outcome, comes_again: bool) -> None:
        async with reading(harness) as reader:
            await harness.publish(harness.odd)
            (odd,) = await reader.take(1)
            await reader.settle([odd], outcome)
        async with reading(harness) as reader:
            await harness.publish(b"last")
            messages = await reader.take(2 if comes_again else 1)
            expected = [b"last", harness.odd] if comes_again else [b"last"]
            assert sorted(m.body or b"" for m in messages) == sorted(expected)
            assert not comes_again or any(same_message(odd.id, m.id) for m in messages)
            await reader.settle(messages)
        await until_undelivered(harness, 0)

    @rule(
        "settle() on a closed stream returns or raises, in bounded time",
        mend="look whether the connection is there before you wait for an answer",
    )
    async def test_settling_on_a_closed_stream_returns(self, harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            await harness.publish(b"late")
            messages = await reader.take(1)
        with anyio.fail_after(harness.closing), suppress(Exception):
            await reader.stream.settle([Settlement(message, Outcome.ACCEPTED) for message in messages])
        async with reading(harness) as reader:
            await harness.publish(b"last")
            await reader.collect(messages := [], [b"last"])
            await reader.settle(messages)
