"""What the conformance suite needs of a broker, and a reader that never waits without bound."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import anyio

from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Outcome, Position, Settlement, Source, Stream

__all__ = [
    "BrokerHarness",
    "Reader",
    "blocked",
    "check_order",
    "next_millisecond",
    "numbered",
    "reading",
    "tasks_ended",
    "until_undelivered",
]


class BrokerHarness(ABC):
    """One real broker with one fresh topic or queue per test.

    The class attributes say what this kind of source documents; override them where it differs.
    """

    patience: ClassVar[float] = 20.0
    """Seconds that any single step (connect, deliver, come again, notice a cut) may take at most."""
    closing: ClassVar[float] = 5.0
    """Seconds in which a cancelled stream must have closed."""
    idle: ClassVar[float] = 1.0
    """Seconds for which nobody pulls, in the test of a stream that is left alone. Make it longer than the broker's
    shortest keep-alive or session time where that can be set low."""
    large: ClassVar[int] = 200_000
    """Size in bytes of the large body."""
    bodies: ClassVar[Sequence[bytes]] = (
        b"",
        b"plain",
        bytes(range(256)),
        b"\xff\xfe\x00",
        "\u20ac \U0001f600".encode(),
    )
    """Bodies that pass unchanged, beside the large one. Fewer where the broker itself takes text only."""
    odd: ClassVar[bytes] = b"\xffodd"
    """A body that no JSON decoder reads; not UTF-8 either where the broker takes that."""
    ordered: ClassVar[bool] = True
    """Whether messages of one partition (or of the queue) arrive in the order in which they were published."""
    released_comes_again: ClassVar[bool] = True
    """Whether a released message comes again after the queue is opened again."""
    rejected_comes_again: ClassVar[bool] = False
    """Whether a rejected message comes again after the queue is opened again (left to the broker's redrive)."""

    @abstractmethod
    def source(self) -> Source:
        """The source under test, on this test's topic or queue. Equal each time it is asked."""

    @abstractmethod
    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        """An opening that reaches the broker (by the way that :meth:`cut` can cut)."""

    @abstractmethod
    async def publish(self, *bodies: bytes) -> None:
        """Send messages in this order; return when the broker has them. Must work right after :meth:`cut`."""

    @abstractmethod
    async def cut(self) -> None:
        """Break every connection of the source under test from the broker's side; return once new ones are possible."""

    @abstractmethod
    def broken(self) -> tuple[Source, Opening]:
        """A source and an opening whose connection is wrong, for example a closed port or a wrong password."""

    async def undelivered(self) -> int:
        """Queues only: how many messages the broker still keeps, visible or in flight."""
        raise NotImplementedError(f"{type(self).__name__} of a queue must say how many messages the broker keeps")


class Reader:
    """Takes messages from one open stream. Every wait is bounded by the harness's patience."""

    def __init__(self, source: Source, stream: Stream, patience: float) -> None:
        self.source = source
        self.stream = stream
        self._patience = patience
        self._batches: AsyncIterator[Sequence[Message]] = stream.__aiter__()

    @property
    def log(self) -> LogStream:
        """The stream, when it is a log's."""
        assert isinstance(self.stream, LogStream), "a replayable source must open a LogStream"
        return self.stream

    async def batch(self) -> list[Message]:
        """The next batch, which may be empty."""
        with anyio.fail_after(self._patience):
            return list(await self._pull())

    async def _pull(self) -> Sequence[Message]:
        try:
            return await self._batches.__anext__()
        except StopAsyncIteration:
            raise AssertionError("the stream ended by itself; it must yield for ever, or raise") from None

    async def take(self, count: int) -> list[Message]:
        """Pull batches until at least ``count`` messages are there; all of them, also those above ``count``."""
        messages: list[Message] = []
        with anyio.fail_after(self._patience):
            while len(messages) < count:
                messages += await self._pull()
        return messages

    async def collect(self, into: list[Message], bodies: Iterable[bytes]) -> None:
        """Pull into a list until it holds all of these bodies. Not bounded, and what was pulled stays in the list."""
        while not {message.body for message in into}.issuperset(bodies):
            into += await self._pull()

    async def bodies(self, count: int) -> list[bytes | None]:
        """As :meth:`take`, only the bodies."""
        return [message.body for message in await self.take(count)]

    async def settle(self, messages: Iterable[Message], outcome: Outcome = Outcome.ACCEPTED) -> None:
        """Settle all of these alike."""
        with anyio.fail_after(self._patience):
            await self.stream.settle([Settlement(message, outcome) for message in messages])


@asynccontextmanager
async def reading(
    harness: BrokerHarness, *, group: str = "conformance", start: Position | None = None
) -> AsyncIterator[Reader]:
    """Open the source under test as the hub does: open, watch, then iterate."""
    source = harness.source()
    # One limit around the whole stay: open() may enter cancel scopes of its own, which must end before ours does.
    with anyio.fail_after(8 * harness.patience):
        async with source.open(harness.opening(group=group, start=start)) as stream:
            await stream.watch(source)
            yield Reader(source, stream, harness.patience)


async def tasks_ended(before: set[asyncio.Task[object]], patience: float) -> set[str]:
    """Names of the tasks that run now, were not in ``before``, and do not end within ``patience`` seconds."""
    new = asyncio.all_tasks() - before - {asyncio.current_task()}
    if not new:
        return set()
    _, pending = await asyncio.wait(new, timeout=patience)
    return {task.get_name() for task in pending}


async def blocked() -> None:
    """Return when every task waits for something, or at the latest after two seconds: a client may poll."""
    with anyio.move_on_after(2):
        await anyio.wait_all_tasks_blocked()


async def next_millisecond() -> None:
    """Return when the clock shows another millisecond: brokers stamp no finer."""
    before = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= before:  # noqa: ASYNC110 - a clock has no event to wait for
        await asyncio.sleep(0.0005)


async def until_undelivered(harness: BrokerHarness, count: int) -> None:
    """Wait until the broker keeps ``count`` messages; brokers count with a delay."""
    deadline = time.monotonic() + harness.patience
    while (kept := await harness.undelivered()) != count:
        assert time.monotonic() < deadline, f"the broker keeps {kept} messages, not {count}"
        await asyncio.sleep(0.02)


def numbered(prefix: str, count: int) -> list[bytes]:
    """Distinct JSON bodies."""
    return [json.dumps({"what": prefix, "n": n}).encode() for n in range(count)]


def check_order(harness: BrokerHarness, messages: Iterable[Message], expected: Sequence[bytes]) -> None:
    """Everything is there, nothing more, and within a partition in the order of publishing."""
    messages = list(messages)
    assert sorted(m.body or b"" for m in messages) == sorted(expected)
    if not harness.ordered:
        return
    for partition in {m.partition for m in messages}:
        places = [expected.index(m.body or b"") for m in messages if m.partition == partition]
        assert places == sorted(places), f"messages of partition {partition!r} arrived out of order: {places}"
