"""What the conformance suite asks of a log."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import ClassVar

from event_triggers.message import Message
from event_triggers.testing.conformance.common import SourceConformance
from event_triggers.testing.conformance.harness import (
    BrokerHarness,
    blocked,
    check_order,
    next_millisecond,
    numbered,
    reading,
)

__all__ = ["LogConformance"]


class LogConformance(SourceConformance):
    """What a log adds: it can be read again from any position."""

    replayable: ClassVar[bool | None] = True

    async def test_begins_behind_the_newest_message(self, harness: BrokerHarness) -> None:
        await harness.publish(*numbered("old", 3))
        async with reading(harness) as reader:
            await harness.publish(b"new")
            assert await reader.bodies(1) == [b"new"]

    async def test_empty_position_begins_at_the_beginning(self, harness: BrokerHarness) -> None:
        bodies = numbered("all", 7)
        await harness.publish(*bodies)
        async with reading(harness, start={}) as reader:
            check_order(harness, await reader.take(len(bodies)), bodies)

    async def test_position_before_the_first_message(self, harness: BrokerHarness) -> None:
        """A connection that breaks before it delivered anything must not lose what came in between."""
        await harness.publish(*numbered("old", 3))
        async with reading(harness) as reader:
            position = reader.log.position()
            await harness.publish(b"unseen")
        async with reading(harness, start=position) as reader:
            await harness.publish(b"last")
            check_order(harness, await reader.take(2), [b"unseen", b"last"])

    async def test_position_is_exact_after_each_batch(self, harness: BrokerHarness) -> None:
        """Fetching ahead does not move the position; yielding does, to just behind what was yielded."""
        bodies = numbered("exact", 30)
        await harness.publish(*bodies)
        seen: list[Message] = []
        async with reading(harness, start={}) as reader:
            while not seen:
                seen = await reader.batch()
            position = reader.log.position()
            for message in seen:
                assert message.offset < position[message.partition]
        json.dumps(dict(position))
        await harness.publish(b"last")
        async with reading(harness, start=position) as reader:
            seen += await reader.take(len(bodies) + 1 - len(seen))
        check_order(harness, seen, [*bodies, b"last"])

    async def test_goes_on_behind_any_message(self, harness: BrokerHarness) -> None:
        """The hub may have dispatched half a batch when the connection breaks."""
        bodies = numbered("middle", 20)
        await harness.publish(*bodies)
        async with reading(harness, start={}) as reader:
            messages = await reader.take(len(bodies))
            seen, rest = messages[:9], messages[9:]
            start = dict.fromkeys(reader.log.position(), 0)
            start |= {message.partition: reader.log.after(message) for message in seen}
        async with reading(harness, start=start) as reader:
            check_order(harness, await reader.take(len(rest)), [m.body or b"" for m in rest])

    async def test_offsets_and_ids(self, harness: BrokerHarness) -> None:
        bodies = numbered("offsets", 20)
        await harness.publish(*bodies)
        async with reading(harness, start={}) as reader:
            once = await reader.take(len(bodies))
        async with reading(harness, start={}) as reader:
            twice = await reader.take(len(bodies))
        last: dict[str, object] = {}
        for message in once:
            assert message.partition not in last or message.offset > last[message.partition]
            last[message.partition] = message.offset
        assert {m.body: m.id for m in once} == {m.body: m.id for m in twice}, "ids change from stream to stream"

    async def test_locate_finds_what_was_stamped_since(self, harness: BrokerHarness) -> None:
        bodies = numbered("since", 6)
        for body in bodies:
            await harness.publish(body)
            await next_millisecond()
        async with reading(harness, start={}) as reader:
            messages = await reader.take(len(bodies))
        stamps = {m.body: m.timestamp for m in messages}
        assert all(stamps.values()), "a log stamps every message"
        since = stamps[bodies[3]]
        assert since is not None
        async with reading(harness) as live:
            pulling = asyncio.create_task(live.take(1), name="conformance-pull")
            try:
                await blocked()
                start = await live.log.locate(since)
                ahead = await live.log.locate(since + timedelta(hours=1))
                assert dict(ahead) == dict(live.log.position()), "a moment to come is located at the end"
                async with reading(harness, start=start) as late:
                    await harness.publish(b"last")
                    check_order(harness, await late.take(4), [*bodies[3:], b"last"])
                assert [m.body for m in await pulling] == [b"last"], "another reader disturbs the live stream"
            finally:
                pulling.cancel()
                await asyncio.wait({pulling})

    async def test_locate_before_everything_is_the_beginning(self, harness: BrokerHarness) -> None:
        bodies = numbered("early", 4)
        await harness.publish(*bodies)
        async with reading(harness) as live:
            start = await live.log.locate(datetime.now(timezone.utc) - timedelta(days=1))
        async with reading(harness, start=start) as reader:
            check_order(harness, await reader.take(4), bodies)

    async def test_locate_on_an_empty_log(self, harness: BrokerHarness) -> None:
        async with reading(harness) as live:
            start = await live.log.locate(datetime.now(timezone.utc) - timedelta(days=1))
        await harness.publish(b"first")
        async with reading(harness, start=start) as reader:
            assert await reader.bodies(1) == [b"first"]
