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
from event_triggers.testing.conformance.rules import rule

__all__ = ["LogConformance"]


class LogConformance(SourceConformance):
    """What a log adds: it can be read again from any position."""

    replayable: ClassVar[bool | None] = True

    @rule(
        "a log without a start begins behind the newest message",
        mend="look the end up in open() or watch() when opening.start is None",
    )
    async def test_begins_behind_the_newest_message(self, harness: BrokerHarness) -> None:
        await harness.publish(*numbered("old", 3))
        async with reading(harness) as reader:
            await harness.publish(b"new")
            assert await reader.bodies(1) == [b"new"]

    @rule(
        "a partition that the start does not name is read from its beginning",
        mend="take the offset with opening.start.get(partition, the first), and tell {} from None",
    )
    async def test_empty_position_begins_at_the_beginning(self, harness: BrokerHarness) -> None:
        bodies = numbered("all", 7)
        await harness.publish(*bodies)
        async with reading(harness, start={}) as reader:
            check_order(harness, await reader.take(len(bodies)), bodies)

    @rule(
        "position() is valid from the first watch() on",
        mend="find out where the stream stands in open() or watch(), not when the first batch is asked for",
    )
    async def test_position_before_the_first_message(self, harness: BrokerHarness) -> None:
        """A connection that breaks before it delivered anything must not lose what came in between."""
        await harness.publish(*numbered("old", 3))
        async with reading(harness) as reader:
            position = reader.log.position()
            await harness.publish(b"unseen")
        async with reading(harness, start=position) as reader:
            await harness.publish(b"last")
            check_order(harness, await reader.take(2), [b"unseen", b"last"])

    @rule(
        "position() is just behind what was yielded, never where the client has fetched to",
        mend="move it on right before the batch is yielded; JSON values only",
    )
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

    @rule(
        "a stream opened at after(message) begins with the next message",
        mend="override after() where offsets are not numbers that go up by one",
    )
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

    @rule(
        "offsets rise within a partition, and a message has the same id on every stream",
        mend="make the id of the broker's own facts (partition and offset), not of a counter or the time",
    )
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

    @rule(
        (
            "locate() gives the first message stamped at or after a moment, the end where there is none, and "
            "disturbs nobody"
        ),
        mend="compare aware timestamps; look up beside the stream's own reading",
    )
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

    @rule(
        "locate() before everything gives the beginning",
        mend="return the first offset of each partition there",
    )
    async def test_locate_before_everything_is_the_beginning(self, harness: BrokerHarness) -> None:
        bodies = numbered("early", 4)
        await harness.publish(*bodies)
        async with reading(harness) as live:
            start = await live.log.locate(datetime.now(timezone.utc) - timedelta(days=1))
        async with reading(harness, start=start) as reader:
            check_order(harness, await reader.take(4), bodies)

    @rule(
        "locate() on an empty log gives its end, so that the next message is read",
        mend=(
            "return the end of each partition; never leave one out that the next message may come to before it is read"
        ),
    )
    async def test_locate_on_an_empty_log(self, harness: BrokerHarness) -> None:
        async with reading(harness) as live:
            start = await live.log.locate(datetime.now(timezone.utc) - timedelta(days=1))
        await harness.publish(b"first")
        async with reading(harness, start=start) as reader:
            assert await reader.bodies(1) == [b"first"]
