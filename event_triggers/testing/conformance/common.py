"""What the conformance suite asks of every source."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta, timezone
from typing import ClassVar

import anyio
import pytest

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.message import Message
from event_triggers.sources.base import Source, load_source
from event_triggers.testing.conformance.harness import (
    BrokerHarness,
    blocked,
    check_order,
    numbered,
    reading,
    tasks_ended,
)
from event_triggers.testing.conformance.rules import rule

__all__ = ["SourceConformance"]


class SourceConformance:
    """What holds for every source. Inherit ``LogConformance`` or ``QueueConformance``, which add theirs."""

    event_triggers_conformance: ClassVar[bool] = True
    """By this the pytest plugin knows the suite."""
    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]
    replayable: ClassVar[bool | None] = None

    @rule(
        "a log's streams are tested as a log's, a queue's as a queue's",
        mend=(
            "inherit LogConformance where the source is replayable, QueueConformance where it is not; or set "
            "replayable on the source"
        ),
    )
    async def test_suite_fits_the_source(self, harness: BrokerHarness) -> None:
        suite = "LogConformance" if harness.source().replayable else "QueueConformance"
        assert self.replayable is harness.source().replayable, f"the tests of this source must inherit {suite}"

    @rule(
        "a source is a frozen dataclass whose fields are JSON, and load_source() gives an equal one back",
        mend=(
            "use @dataclass(frozen=True) and fields of JSON types only, at module level so that the class can be "
            "imported; turn lists into tuples in __post_init__"
        ),
    )
    async def test_declaration_survives_json(self, harness: BrokerHarness) -> None:
        source = harness.source()
        again = load_source(json.loads(json.dumps(source.serialize())))
        assert again == source
        assert type(again) is type(source)
        assert hash(again) == hash(source)
        assert again.key("a") == source.key("a")
        source.validate()

    @rule(
        "equal declarations have equal, hashable keys, and a name and a kind for people",
        mend="make key() of the fields that tell connections apart and of nothing else; name must not be empty",
    )
    async def test_equal_declarations_share_a_connection(self, harness: BrokerHarness) -> None:
        one, two = harness.source(), harness.source()
        assert one == two
        assert hash(one) == hash(two)
        assert one.key("a") == two.key("a")
        assert hash(one.key("a")) == hash(two.key("a"))
        assert one.name
        assert one.kind
        assert one.name in one.label

    @rule(
        "every message is handed over once, in the order of its partition, described truly",
        mend=(
            "yield what the broker sends without dropping, doubling or sorting; give each an id of its own, the "
            "source's kind, a stream, a position, an aware timestamp or None"
        ),
    )
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

    @rule(
        "a body is bytes, handed over as it came",
        mend=(
            "do not decode, strip or split bodies; where the broker itself cannot carry some, name fewer in the "
            "harness's bodies and large"
        ),
    )
    async def test_any_body_passes_unchanged(self, harness: BrokerHarness) -> None:
        bodies = [*harness.bodies, b"x" * harness.large]
        async with reading(harness) as reader:
            received: list[bytes] = []
            for body in bodies:
                await harness.publish(body)
                messages = await reader.take(1)
                received += [m.body or b"" for m in messages]
                await reader.settle(messages)
            assert received == bodies

    @rule(
        "a stream without messages waits: it never yields empty batches one upon another",
        mend="await something of the broker before an empty batch is yielded, or do not yield it",
    )
    async def test_idle_stream_waits(self, harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            for _ in range(1000):
                pulling = asyncio.create_task(reader.batch(), name="conformance-pull")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if not pulling.done():
                    pulling.cancel()
                    await asyncio.wait({pulling})
                    return
                assert pulling.result() == [], "there is nothing to deliver"
            raise AssertionError("1000 empty batches came without any waiting in between")

    @rule(
        "cancellation passes through, and closes the stream with all its tasks in bounded time",
        mend=(
            "never catch CancelledError without raising it again; end your tasks in the finally of open(), within "
            "the harness's closing seconds"
        ),
    )
    async def test_idle_stream_closes_promptly_when_cancelled(self, harness: BrokerHarness) -> None:
        opened = asyncio.Event()

        async def listen() -> None:
            async with reading(harness) as reader:
                opened.set()
                await reader.collect([], [b"never"])

        before = asyncio.all_tasks()
        task = asyncio.create_task(listen(), name="conformance-listener")
        opening = asyncio.create_task(opened.wait(), name="conformance-opened")
        await asyncio.wait({task, opening}, timeout=harness.patience, return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        assert opened.is_set(), "the stream did not open"
        await blocked()
        task.cancel()
        await asyncio.wait({task}, timeout=harness.closing)
        assert task.done(), "the stream swallowed its cancellation, or did not close in time"
        assert task.cancelled(), "the stream turned its cancellation into something else"
        assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the stream"

    @rule(
        "opening can be cancelled at any await, and nothing is left running",
        mend="put what open() starts under try/finally, or an async with, before the next await",
    )
    async def test_cancelled_while_it_opens(self, harness: BrokerHarness) -> None:
        for steps in (*range(60), 100, 200):
            before = asyncio.all_tasks()
            task = asyncio.create_task(self._stay_open(harness), name="conformance-opener")
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=harness.closing)
            assert task.done(), "the stream swallowed its cancellation, or did not close in time"
            assert task.cancelled(), "the stream turned its cancellation into something else"
            assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the stream"

    @staticmethod
    async def _stay_open(harness: BrokerHarness) -> None:
        async with reading(harness) as reader:
            await reader.collect([], [b"never"])

    @rule(
        "a stream that is never iterated closes all the same",
        mend="do not let the end of open() wait for a reader",
    )
    async def test_stream_that_nobody_iterates_closes_promptly(self, harness: BrokerHarness) -> None:
        before = asyncio.all_tasks()
        async with reading(harness):
            await harness.publish(b"never looked at")
            started = time.monotonic()
        assert time.monotonic() - started < harness.closing
        assert await tasks_ended(before, harness.closing) == set(), "tasks outlive the stream"

    @rule(
        "a source can be opened again after it was closed",
        mend="keep what belongs to a connection in the stream, not in the source or its module",
    )
    async def test_opens_again_and_again(self, harness: BrokerHarness) -> None:
        for body in numbered("turn", 3):
            async with reading(harness) as reader:
                await harness.publish(body)
                messages = await reader.take(1)
                assert [m.body for m in messages] == [body]
                await reader.settle(messages)

    @rule(
        "not asking for a batch is the back-pressure: the stream stays alive meanwhile and loses nothing",
        mend="keep heartbeats going in a task of the stream; buffer within bounds, and do not drop",
    )
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

    @rule(
        "a broken connection is raised (or mended), and what is sent meanwhile arrives over the next stream",
        mend=(
            "let the client's error through, never end the iteration; begin a log where opening.start says, and "
            "acknowledge nothing that was not settled"
        ),
    )
    async def test_cut_connection_loses_nothing(self, harness: BrokerHarness) -> None:
        """A waiting stream whose connection breaks raises or recovers; what is published meanwhile arrives anyway."""
        first, *rest = numbered("cut", 3)
        messages: list[Message] = []
        async with reading(harness) as reader:
            await harness.publish(first)
            await reader.settle(await reader.take(1))
            pulling = asyncio.create_task(reader.collect(messages, rest), name="conformance-pull")
            try:
                await blocked()
                await harness.cut()
                await harness.publish(*rest)
                await asyncio.wait({pulling}, timeout=harness.patience)
                assert pulling.done(), "the stream hangs after its connection was cut"
            finally:
                pulling.cancel()
                await asyncio.wait({pulling})
            position = reader.log.position() if reader.source.replayable else None
            recovered = pulling.exception() is None
            if recovered:
                await reader.settle(messages)
        if not recovered:
            assert not isinstance(pulling.exception(), (AssertionError, ConfigurationError)), pulling.exception()
            async with reading(harness, start=position) as reader:
                again: list[Message] = []
                with anyio.fail_after(harness.patience):
                    await reader.collect(again, set(rest) - {m.body for m in messages if reader.source.replayable})
                await reader.settle(again)
                messages += again
        if harness.source().replayable:
            check_order(harness, messages, rest)
        else:  # what was settled just before the cut may come again, and so may what came after it
            check_order(harness, {m.id: m for m in messages if m.body != first}.values(), rest)

    @rule(
        "a connection that cannot work raises ConfigurationError or StreamError, in bounded time",
        mend=(
            "turn the client's error into StreamError (what time may mend) or ConfigurationError (what it "
            "cannot), and give connecting a timeout"
        ),
    )
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
