"""The suite that every source passes, on memory and on its real broker.

A test module gives an async fixture ``harness`` (a :class:`BrokerHarness`) and one class that inherits
:class:`LogConformance` or :class:`QueueConformance`::

    @pytest.fixture
    async def harness():
        async with my_broker() as broker:
            yield MyHarness(broker)

    class TestMySource(QueueConformance):
        pass

It needs pytest-asyncio in ``asyncio_mode = "auto"``. ``pytest.register_assert_rewrite`` for the modules
``event_triggers.testing.conformance`` and ``event_triggers.testing.harness`` in a conftest gives readable failures.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta, timezone

import anyio

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.message import Message
from event_triggers.sources.base import Outcome, Source, load_source
from event_triggers.testing.harness import BrokerHarness, Reader, reading, tasks_ended

__all__ = ["BrokerHarness", "LogConformance", "QueueConformance", "Reader", "SourceConformance", "reading"]


def numbered(prefix: str, count: int) -> list[bytes]:
    """Distinct JSON bodies that sort in the order they are made in."""
    return [json.dumps({"what": prefix, "n": n}).encode() for n in range(count)]


def check_order(harness: BrokerHarness, messages: list[Message], expected: list[bytes]) -> None:
    """Everything is there, nothing more, and within a partition in the order of publishing."""
    assert sorted(m.body or b"" for m in messages) == sorted(expected)
    if not harness.ordered:
        return
    for partition in {m.partition for m in messages}:
        places = [expected.index(m.body or b"") for m in messages if m.partition == partition]
        assert places == sorted(places), f"messages of partition {partition!r} arrived out of order: {places}"


class SourceConformance:
    """What holds for every source. Inherit :class:`LogConformance` or :class:`QueueConformance`, which add theirs."""

    async def test_suite_fits_the_source(self, harness: BrokerHarness) -> None:
        suite = LogConformance if harness.source().replayable else QueueConformance
        assert isinstance(self, suite), f"the tests of this source must inherit {suite.__name__}"

    async def test_declaration_survives_json(self, harness: BrokerHarness) -> None:
        source = harness.source()
        again = load_source(json.loads(json.dumps(source.serialize())))
        assert again == source
        assert type(again) is type(source)
        assert again.key("a") == source.key("a")
        source.validate()

    async def test_equal_declarations_share_a_connection(self, harness: BrokerHarness) -> None:
        one, two = harness.source(), harness.source()
        assert one == two
        assert hash(one) == hash(two)
        assert one.key("a") == two.key("a")
        assert hash(one.key("a")) == hash(two.key("a"))
        assert one.name and one.kind
        assert one.name in one.label

    async def test_messages_arrive_in_order_and_complete(self, harness: BrokerHarness) -> None:
        bodies = numbered("orders", 50)
        before = datetime.now(timezone.utc) - timedelta(minutes=5)
        async with reading(harness) as reader:
            await harness.publish(*bodies)
            messages = await reader.take(len(bodies))
            check_order(harness, messages, bodies)
            self._check_description(reader.source, messages, before)
            await reader.settle(messages)

    @staticmethod
    def _check_description(source: Source, messages: list[Message], before: datetime) -> None:
        for message in messages:
            assert message.source == source.kind
            assert message.stream
            assert message.position
            assert str(message)
            assert message.attempt >= 1
            assert source.routes(message)
            if message.timestamp is not None:
                assert message.timestamp.tzinfo is not None, "timestamps must be aware"
                assert before < message.timestamp < before + timedelta(minutes=15)
        assert len({m.id for m in messages}) == len(messages), "two messages have one id"

    async def test_any_body_passes_unchanged(self, harness: BrokerHarness) -> None:
        bodies = [b"", b"plain", bytes(range(256)), b"\xff\xfe\x00", "\u20ac \U0001f600".encode(), b"x" * harness.large]
        async with reading(harness) as reader:
            received: list[bytes] = []
            for body in bodies:
                await harness.publish(body)
                messages = await reader.take(1)
                received += [m.body or b"" for m in messages]
                await reader.settle(messages)
            assert received == bodies

    async def test_idle_stream_closes_promptly_when_cancelled(self, harness: BrokerHarness) -> None:
        opened = asyncio.Event()

        async def listen() -> None:
            async with reading(harness) as reader:
                opened.set()
                await reader.take(1)

        before = asyncio.all_tasks()
        task = asyncio.create_task(listen(), name="conformance-listener")
        opening = asyncio.create_task(opened.wait(), name="conformance-opened")
        await asyncio.wait({task, opening}, timeout=harness.patience, return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        assert opened.is_set(), "the stream did not open"
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await asyncio.wait({task}, timeout=harness.closing)
        assert task.done(), "the stream swallowed its cancellation, or did not close in time"
        assert task.cancelled(), "the stream turned its cancellation into something else"
        assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the stream"

    async def test_stream_that_nobody_iterates_closes_promptly(self, harness: BrokerHarness) -> None:
        before = asyncio.all_tasks()
        async with reading(harness):
            await harness.publish(b"never looked at")
            started = time.monotonic()
        assert time.monotonic() - started < harness.closing
        assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the stream"

    async def test_opens_again_and_again(self, harness: BrokerHarness) -> None:
        for body in numbered("turn", 3):
            async with reading(harness) as reader:
                await harness.publish(body)
                messages = await reader.take(1)
                assert [m.body for m in messages] == [body]
                await reader.settle(messages)

    async def test_stream_stays_healthy_while_nobody_pulls(self, harness: BrokerHarness) -> None:
        bodies = numbered("patient", 20)
        async with reading(harness) as reader:
            await harness.publish(*bodies[:10])
            messages = await reader.batch()
            await asyncio.sleep(harness.idle)  # the time itself is what is tested
            await harness.publish(*bodies[10:])
            messages += await reader.take(len(bodies) - len(messages))
            check_order(harness, messages, bodies)
            await reader.settle(messages)

    async def test_cut_connection_loses_nothing(self, harness: BrokerHarness) -> None:
        """A waiting stream whose connection breaks raises or recovers; what is published meanwhile arrives either way."""
        first, second, third = numbered("cut", 3)
        async with reading(harness) as reader:
            await harness.publish(first)
            messages = await reader.take(1)
            assert [m.body for m in messages] == [first]
            await reader.settle(messages)
            position = reader.log.position() if reader.source.replayable else None
            pulling = asyncio.create_task(reader.take(2), name="conformance-pull")
            try:
                await anyio.wait_all_tasks_blocked()
                await harness.cut()
                await harness.publish(second, third)
                await asyncio.wait({pulling}, timeout=harness.patience)
                assert pulling.done(), "the stream hangs after its connection was cut"
            finally:
                pulling.cancel()
                await asyncio.wait({pulling})
            error = pulling.exception()
            if error is None:
                check_order(harness, pulling.result(), [second, third])
                await reader.settle(pulling.result())
                return
            assert not isinstance(error, TimeoutError | ConfigurationError | StopAsyncIteration), repr(error)
        async with reading(harness, start=position) as reader:
            messages = await reader.take(2)
            check_order(harness, messages, [second, third])
            await reader.settle(messages)

    async def test_wrong_connection_is_an_error_in_bounded_time(self, harness: BrokerHarness) -> None:
        source, opening = harness.broken()
        before = asyncio.all_tasks()
        error: Exception | None = None
        with anyio.move_on_after(harness.patience) as limit:
            try:
                async with source.open(opening) as stream:
                    await stream.watch(source)
                    await stream.__aiter__().__anext__()
            except (ConfigurationError, StreamError) as caught:
                error = caught
        assert not limit.cancelled_caught, "a wrong connection hangs"
        assert error is not None, "a wrong connection went unnoticed"
        assert str(error)
        assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the failed stream"


class LogConformance(SourceConformance):
    """What a log adds: it can be read again from any position."""

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
                await anyio.wait_all_tasks_blocked()
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


class QueueConformance(SourceConformance):
    """What a queue adds: a message is gone once it is acknowledged, and not before."""

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

    async def test_settles_while_a_pull_waits(self, harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            await harness.publish(b"one")
            messages = await reader.take(1)
            pulling = asyncio.create_task(reader.take(1), name="conformance-pull")
            try:
                await anyio.wait_all_tasks_blocked()
                await reader.settle(messages)
                await harness.publish(b"two")
                later = await pulling
                assert [m.body for m in later] == [b"two"]
                await reader.settle(later)
            finally:
                pulling.cancel()
                await asyncio.wait({pulling})
        await until_undelivered(harness, 0)

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
            assert {m.body: m.id for m in messages} == {b: first[b].id for b in (one, three, four)}
            await reader.settle(messages)
        await until_undelivered(harness, 0)

    async def test_released_messages_come_again(self, harness: BrokerHarness) -> None:
        await self._check_outcome(harness, Outcome.RELEASED, harness.released_comes_again)

    async def test_rejected_messages(self, harness: BrokerHarness) -> None:
        await self._check_outcome(harness, Outcome.REJECTED, harness.rejected_comes_again)

    @staticmethod
    async def _check_outcome(harness: BrokerHarness, outcome: Outcome, comes_again: bool) -> None:
        async with reading(harness) as reader:
            await harness.publish(b"\xffodd")
            (odd,) = await reader.take(1)
            await reader.settle([odd], outcome)
        async with reading(harness) as reader:
            await harness.publish(b"last")
            messages = await reader.take(2 if comes_again else 1)
            expected = [b"last", b"\xffodd"] if comes_again else [b"last"]
            assert sorted(m.body or b"" for m in messages) == expected
            assert not comes_again or odd.id in {m.id for m in messages}
            await reader.settle(messages)
        await until_undelivered(harness, 0)


async def next_millisecond() -> None:
    """Return when the clock shows another millisecond: brokers stamp no finer."""
    before = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= before:
        await asyncio.sleep(0.0005)


async def until_undelivered(harness: BrokerHarness, count: int) -> None:
    """Wait until the broker keeps ``count`` messages; brokers count with a delay."""
    deadline = time.monotonic() + harness.patience
    while (kept := await harness.undelivered()) != count:
        assert time.monotonic() < deadline, f"the broker keeps {kept} messages, not {count}"
        await asyncio.sleep(0.02)
