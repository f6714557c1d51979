"""The conformance suite finds faults: each source here breaks one promise, and the test that holds it must fail."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import pytest

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Outcome, Position, Settlement, Source, Stream
from event_triggers.testing import MemoryBroker, MemoryLog, MemoryQueue
from event_triggers.testing.conformance import BrokerHarness, ContractBrokenError, LogConformance, QueueConformance

QUEUE, LOG = QueueConformance(), LogConformance()


class Harness(BrokerHarness):
    patience: ClassVar[float] = 10
    closing: ClassVar[float] = 5
    idle: ClassVar[float] = 0

    def __init__(self, broker: MemoryBroker, source: Source) -> None:
        self.broker = broker
        self._source = source

    def source(self) -> Source:
        return self._source

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return Opening(group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        for body in bodies:
            self.broker.publish("topic", body)

    async def undelivered(self) -> int:
        return self.broker.undelivered("topic")

    async def cut(self) -> None:
        self.broker.cut()

    def broken(self) -> tuple[Source, Opening]:
        return self._source, self.opening()


class HastyHarness(Harness):
    """Does not wait long for what will not come."""

    patience: ClassVar[float] = 0.3
    closing: ClassVar[float] = 0.3


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    broker = MemoryBroker(batch_size=3)
    yield broker
    broker.reset()


class Faulty:
    """Hands everything on to a good stream; subclasses break one thing."""

    good: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)


class FaultyStream(Faulty, Stream):
    closed = pulling = False

    def __init__(self, good: Any) -> None:
        self.good = good

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self.good.__aiter__()  # type: ignore[no-any-return]

    async def watch(self, source: Source) -> None:
        await self.good.watch(source)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.good.settle(settlements)


class FaultyLog(FaultyStream, LogStream):
    def position(self) -> Position:
        return self.good.position()  # type: ignore[no-any-return]

    async def locate(self, since: Any) -> Position:
        return await self.good.locate(since)  # type: ignore[no-any-return]


class SwallowsCancellation(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        try:
            async for batch in self.good:
                yield batch
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        yield []


class TurnsCancellationIntoAnError(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        try:
            async for batch in self.good:
                yield batch
        except asyncio.CancelledError:
            raise OSError("interrupted") from None


class LeavesATask(FaultyStream):
    async def watch(self, source: Source) -> None:
        await super().watch(source)
        self.task = asyncio.create_task(asyncio.sleep(1), name="left behind")


class HangsWhenCut(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        try:
            async for batch in self.good:
                yield batch
        except Exception:
            await asyncio.sleep(5)


class AcknowledgesAtOnce(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            await self.good.settle([Settlement(message, Outcome.ACCEPTED) for message in batch])
            yield batch


class NeverAcknowledges(FaultyStream):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        return None


class SettlesOnlyOnce(FaultyStream):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        for message, outcome in settlements:
            if message.receipt is None:
                raise KeyError("unknown receipt")
            await self.good.settle([Settlement(message, outcome)])
            message.receipt = None


class AcknowledgesWhateverTheOutcome(FaultyStream):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.good.settle([Settlement(message, Outcome.ACCEPTED) for message, _ in settlements])


class NewIds(FaultyStream):
    numbers = itertools.count()

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            for message in batch:
                message.id = str(next(self.numbers))
            yield batch


class NewIdsLog(NewIds, FaultyLog):
    pass


class Reorders(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            yield batch[::-1]


class ChangesBodies(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            for message in batch:
                message.body = (message.body or b"").decode(errors="replace").encode()
            yield batch


class FetchesAhead(FaultyLog):
    """Its position is how far it has fetched, not how far it has delivered."""

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        batches = self.good.__aiter__()
        coming = asyncio.ensure_future(anext(batches))
        try:
            while True:
                batch = await coming
                coming = asyncio.ensure_future(anext(batches))
                await asyncio.sleep(0)
                yield batch
        finally:
            coming.cancel()


class LagsBehind(FaultyLog):
    def position(self) -> Position:
        return {partition: max(offset - 1, 0) for partition, offset in super().position().items()}


class KnowsNoPositionAtFirst(FaultyLog):
    """Begins where the log ends when the first batch is asked for, as a lazy client does."""

    async def watch(self, source: Source) -> None:
        self.late = source

    def position(self) -> Position:
        return super().position() if self.good.sources else {}

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        await self.good.watch(self.late)
        async for batch in self.good:
            yield batch


class LocatesTheEnd(FaultyLog):
    async def locate(self, since: Any) -> Position:
        return self.position()


class EndsByItself(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        try:
            async for batch in self.good:
                yield batch
        except StreamError:
            return


class Spins(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            yield []


class StampsWithoutAZone(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            for message in batch:
                message.timestamp = datetime.now()
            yield batch


class OneIdForAll(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self.good:
            for message in batch:
                message.id = "the same"
            yield batch


class DropsWhatNobodyPulls(FaultyStream):
    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        batches = self.good.__aiter__()
        yield await anext(batches)
        await anext(batches)
        async for batch in batches:
            yield batch


class HangsWhenSettledLate(FaultyStream):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        if self.closed:
            await asyncio.sleep(5)
        await super().settle(settlements)


class OffsetsBehind(FaultyLog):
    def after(self, message: Message) -> Any:
        return message.offset


class StandsStillWhileItSettles(FaultyStream):
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        if self.pulling:
            await asyncio.sleep(5)
        await super().settle(settlements)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        batches = self.good.__aiter__()
        while True:
            self.pulling = True
            batch = await anext(batches)
            self.pulling = False
            yield batch


class NoOpening(FaultyStream):
    """Raises what no one expects of a connection that is wrong."""

    async def watch(self, source: Source) -> None:
        raise ValueError("a bug")


@dataclass(frozen=True)
class FaultyQueueSource(MemoryQueue):
    fault: Callable[[Any], Stream] = FaultyStream

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        async with super().open(opening) as good:
            stream = self.fault(good)
            yield stream
        stream.closed = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class FaultyLogSource(MemoryLog):
    fault: Callable[[Any], Stream] = FaultyLog

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        async with super().open(opening) as good:
            yield self.fault(good)


FAULTS: list[tuple[Any, Callable[[BrokerHarness], Any]]] = [
    (SwallowsCancellation, QUEUE.test_idle_stream_closes_promptly_when_cancelled),
    (TurnsCancellationIntoAnError, QUEUE.test_idle_stream_closes_promptly_when_cancelled),
    (LeavesATask, QUEUE.test_idle_stream_closes_promptly_when_cancelled),
    (LeavesATask, QUEUE.test_stream_that_nobody_iterates_closes_promptly),
    (HangsWhenCut, QUEUE.test_cut_connection_loses_nothing),
    (AcknowledgesAtOnce, QUEUE.test_unsettled_messages_come_again),
    (NeverAcknowledges, QUEUE.test_accepted_messages_are_gone),
    (SettlesOnlyOnce, QUEUE.test_settling_twice_is_harmless),
    (AcknowledgesWhateverTheOutcome, QUEUE.test_released_messages_come_again),
    (AcknowledgesWhateverTheOutcome, QUEUE.test_abandoned_messages_come_again),
    (NewIds, QUEUE.test_unsettled_messages_come_again),
    (NewIdsLog, LOG.test_offsets_and_ids),
    (Reorders, QUEUE.test_messages_arrive_in_order_and_complete),
    (ChangesBodies, QUEUE.test_any_body_passes_unchanged),
    (FaultyStream, QUEUE.test_wrong_connection_is_an_error_in_bounded_time),
    (FetchesAhead, LOG.test_position_is_exact_after_each_batch),
    (LagsBehind, LOG.test_position_is_exact_after_each_batch),
    (KnowsNoPositionAtFirst, LOG.test_position_before_the_first_message),
    (LocatesTheEnd, LOG.test_locate_finds_what_was_stamped_since),
    (LocatesTheEnd, LOG.test_locate_before_everything_is_the_beginning),
    (FaultyLog, QUEUE.test_suite_fits_the_source),
    (EndsByItself, QUEUE.test_cut_connection_loses_nothing),
    (Spins, QUEUE.test_idle_stream_waits),
    (StampsWithoutAZone, QUEUE.test_messages_arrive_in_order_and_complete),
    (OneIdForAll, QUEUE.test_messages_arrive_in_order_and_complete),
    (DropsWhatNobodyPulls, QUEUE.test_stream_stays_healthy_while_nobody_pulls),
    (HangsWhenSettledLate, QUEUE.test_settling_on_a_closed_stream_returns),
    (StandsStillWhileItSettles, QUEUE.test_settles_while_a_pull_waits),
    (OffsetsBehind, LOG.test_goes_on_behind_any_message),
    (NoOpening, QUEUE.test_wrong_connection_is_an_error_in_bounded_time),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=lambda value: value.__name__.removeprefix("test_"))
async def test_fault_is_found(broker: MemoryBroker, fault: Any, check: Callable[[BrokerHarness], Any]) -> None:
    log = issubclass(fault, FaultyLog)
    source = FaultyLogSource("topic", fault=fault) if log else FaultyQueueSource("topic", fault=fault)
    with pytest.raises(ContractBrokenError) as caught:
        await check(HastyHarness(broker, source))
    assert caught.value.rule == check.rule  # type: ignore[attr-defined]
    assert check.rule in str(caught.value)  # type: ignore[attr-defined]
    assert "To mend it: " in str(caught.value)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.parametrize("check", sorted({check.__name__ for _, check in FAULTS if "wrong" not in check.__name__}))
async def test_without_a_fault_the_same_checks_pass(broker: MemoryBroker, check: str) -> None:
    """Else the test above would prove nothing."""
    for suite, source in (
        (QUEUE, FaultyQueueSource("topic", fault=FaultyStream)),
        (LOG, FaultyLogSource("topic", fault=FaultyLog)),
    ):
        if hasattr(suite, check):
            await getattr(suite, check)(Harness(broker, source))
            broker.reset()


@dataclass(frozen=True)
class _Unstable(MemoryQueue):
    """Its declaration does not come back as it was."""

    def serialize(self) -> dict[str, Any]:
        return {**super().serialize(), "channel": "another"}


@dataclass(frozen=True)
class _OwnConnectionEach(MemoryQueue):
    def key(self, group: str) -> Any:
        return object()


@pytest.mark.parametrize(
    ("source", "check"),
    [
        (_Unstable("topic"), QUEUE.test_declaration_survives_json),
        (_OwnConnectionEach("topic"), QUEUE.test_equal_declarations_share_a_connection),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_fault_of_a_declaration_is_found(broker: MemoryBroker, source: Source, check: Any) -> None:
    with pytest.raises(ContractBrokenError) as caught:
        await check(HastyHarness(broker, source))
    assert caught.value.rule == check.rule


def test_every_test_of_the_suite_names_a_rule_of_its_own() -> None:
    tests = {
        (name, getattr(getattr(suite, name), "rule", None))
        for suite in (LogConformance, QueueConformance)
        for name in dir(suite)
        if name.startswith("test_")
    }
    assert len(tests) == len({rule for _, rule in tests}) >= 30


async def test_what_the_harness_lacks_is_not_blamed_on_the_source(broker: MemoryBroker) -> None:
    class Lacking(Harness):
        undelivered = BrokerHarness.undelivered

    with pytest.raises(NotImplementedError, match="Lacking of a queue must say"):
        await QUEUE.test_accepted_messages_are_gone(Lacking(broker, MemoryQueue("topic")))
