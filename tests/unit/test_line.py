"""The line: questions travel together, and everyone who asks gets an answer of their own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from event_triggers.line import Line, Waiting

Due = Waiting[int, int]


class Refused(Exception):
    """What a request that failed unforeseen becomes."""


def up_to_three(due: deque[Due]) -> list[Due]:
    taken = [due.popleft() for _ in range(min(3, len(due)))]
    return [waiting for waiting in taken if not waiting.over]


class Far:
    """Answers a question with its double, when it is let; notes what came together."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.reached = asyncio.Event()
        self.trouble: Callable[[], None] = lambda: None

    async def send(self, taken: Sequence[Due]) -> None:
        self.requests.append([waiting.question for waiting in taken])
        self.reached.set()
        await self.open.wait()
        self.trouble()
        for waiting in taken:
            waiting.give(2 * waiting.question)


@pytest.fixture
async def far() -> Far:
    return Far()


@pytest.fixture
async def line(far: Far) -> Line[int, int]:
    return Line("questions", take=up_to_three, send=far.send, failed=Refused)


async def asked(line: Line[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Tasks that have put these questions into the line."""
    tasks = [asyncio.create_task(line.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


@asynccontextmanager
async def working(line: Line[int, int]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(line.work())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_lone_question_goes_by_itself(line: Line[int, int], far: Far) -> None:
    async with working(line):
        assert await line.ask(21) == 42
        assert await line.ask(1) == 2
    assert far.requests == [[21], [1]]
    assert not line


async def test_what_comes_while_a_request_is_under_way_goes_together(line: Line[int, int], far: Far) -> None:
    far.open.clear()
    async with working(line):
        asking = await asked(line, 0)
        await far.reached.wait()
        asking += await asked(line, 1, 2, 3, 4, 5)
        far.open.set()
        assert await asyncio.gather(*asking) == [0, 2, 4, 6, 8, 10]
    assert far.requests == [[0], [1, 2, 3], [4, 5]]


async def test_whoever_has_gone_is_passed_over(line: Line[int, int], far: Far) -> None:
    far.open.clear()
    async with working(line):
        (first,) = await asked(line, 0)
        await far.reached.wait()
        gone, stays = await asked(line, 1, 2)
        gone.cancel()
        first.cancel()
        await asyncio.wait({gone, first})
        far.open.set()  # the answer to the first one finds nobody
        assert await stays == 4
    assert far.requests == [[0], [2]]


async def test_a_line_of_which_all_have_gone_sends_nothing(line: Line[int, int], far: Far) -> None:
    (gone,) = await asked(line, 1)
    gone.cancel()
    await asyncio.wait({gone})
    async with working(line):
        assert await line.ask(2) == 4
    assert far.requests == [[2]]


async def test_an_unforeseen_error_reaches_everybody_and_the_line_goes_on(
    line: Line[int, int], far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise KeyError("what nobody thought of")

    far.trouble = broken
    async with working(line):
        asking = await asked(line, 1, 2)
        for task in asking:
            with pytest.raises(Refused, match=r"questions could not be sent .*what nobody thought of"):
                await task
        assert "questions could not be sent" in caplog.text
        far.trouble = lambda: None
        assert await line.ask(3) == 6


async def test_a_worker_that_is_cancelled_puts_back_what_is_not_answered(line: Line[int, int], far: Far) -> None:
    far.open.clear()
    async with working(line):
        asking = await asked(line, 1, 2)
        await far.reached.wait()
    far.open.set()
    assert line
    async with working(line):
        assert await asyncio.gather(*asking) == [2, 4]
    assert far.requests == [[1, 2], [1, 2]]
