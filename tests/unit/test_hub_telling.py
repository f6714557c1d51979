"""What a stream has to say reaches the task logs of those whom it concerns, and of nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from event_triggers.entry import Interest
from event_triggers.sources.base import Opening, Position
from event_triggers.subscription import Subscription
from event_triggers.telling import AT_ONCE, Telling
from tests.unit.hub_kit import QUEUE, Kit, ScriptLog, ScriptQueue, idle, scripted, want

_TASK: ContextVar[str] = ContextVar("task", default="the process")


class Logs(logging.Handler):
    """Keeps every line under the name of the task that Airflow would show it to."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((_TASK.get(), record.levelno, record.getMessage()))

    def told(self, text: str) -> list[tuple[str, int]]:
        """Who was told something with this text in it, and at which level."""
        return [(task, level) for task, level, line in self.lines if text in line]


@pytest.fixture
def logs() -> Iterator[Logs]:
    handler = Logs()
    logger = logging.getLogger("event_triggers")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@asynccontextmanager
async def task(kit: Kit, name: str, *interests: Interest, live: bool = True) -> AsyncIterator[Subscription]:
    """A group with a task log of its own."""
    token = _TASK.set(name)
    manager = kit.group(*interests, name=name, live=live)
    try:
        group = await manager.__aenter__()
    finally:
        _TASK.reset(token)
    yield group
    await manager.__aexit__(None, None, None)


async def test_a_stream_tells_all_groups_that_listen(kit: Kit, logs: Logs) -> None:
    source = ScriptQueue()
    async with task(kit, "a", want(source)):
        async with task(kit, "b", want(source)), task(kit, "elsewhere", want(QUEUE)):
            source.stream.opening.tell(logging.ERROR, "%d messages are gone", 7)
        source.stream.opening.tell(logging.WARNING, "it is slow")
    source.stream.opening.tell(logging.WARNING, "it was slow")
    assert logs.told("7 messages are gone") == [("a", logging.ERROR), ("b", logging.ERROR)]
    assert logs.told("it is slow") == [("a", logging.WARNING)]
    assert logs.told("it was slow") == [("the process", logging.WARNING)]


async def test_a_crowd_is_told_in_order_and_some_in_each_turn(kit: Kit, logs: Logs) -> None:
    source = ScriptQueue()
    async with AsyncExitStack() as stack:
        for number in range(2 * AT_ONCE):
            await stack.enter_async_context(task(kit, str(number), want(source)))
        leaving = await stack.enter_async_context(AsyncExitStack())
        await leaving.enter_async_context(task(kit, "leaving", want(source)))
        tell = source.stream.opening.tell
        tell(logging.WARNING, "first")
        tell(logging.WARNING, "second")
        assert [name for name, _ in logs.told("first")] == [str(number) for number in range(AT_ONCE)]
        assert logs.told("second") == []
        await asyncio.sleep(0)
        assert len(logs.told("first")) == 2 * AT_ONCE
        await leaving.aclose()
        await idle()
        everybody = [str(number) for number in range(2 * AT_ONCE)]
        assert [name for name, _ in logs.told("first") if name != "leaving"] == everybody
        assert [name for name, _ in logs.told("second")] == everybody, "who has left is told no more"


async def test_a_log_that_fails_keeps_no_line_from_the_others() -> None:
    told: list[int] = []

    def listener(number: int) -> Any:
        def tell(*_: object) -> None:
            if number == 0:
                raise OSError("no space left")
            told.append(number)

        return SimpleNamespace(tell=tell)

    listeners = [listener(number) for number in range(2 * AT_ONCE)]
    with pytest.raises(OSError, match="no space"):
        Telling(listeners).tell(logging.WARNING, "a line")
    await idle()
    assert told == list(range(1, 2 * AT_ONCE))


async def test_the_past_concerns_those_who_read_it(kit: Kit, logs: Logs) -> None:
    source = ScriptLog()
    async with task(kit, "live", want(source, count=9)):
        source.stream.feed.put_nowait([scripted(0), scripted(1)])
        await idle()
        async with task(kit, "late", want(source, since=kit.ago(60)), live=False):
            await idle()
            live, past = source.streams
            past.opening.tell(logging.ERROR, "the past is gone")
            live.opening.tell(logging.ERROR, "the present is gone")
    assert logs.told("the past is gone") == [("late", logging.ERROR)]
    assert {name for name, _ in logs.told("the present is gone")} == {"live", "late"}


async def test_a_log_that_begins_after_what_was_asked_for_is_an_error(
    kit: Kit, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Position] = []

    async def lost(start: Position) -> str:
        asked.append(start)
        return "partition 0 begins at offset 6 now" if len(asked) == 1 else ""

    source = ScriptLog()
    async with task(kit, "live", want(source)):
        monkeypatch.setattr(source.stream, "lost", lost)
        source.stream.located = {"0": 6}
        late = want(source, "x", since=kit.ago(60)), want(source, "y", since=kit.ago(30)), want(source, "z")
        async with task(kit, "late", *late), task(kit, "in time", want(source, since=kit.ago(10))):
            pass
    assert asked == [{"0": 6}, {"0": 6}]
    text = "script script: partition 0 begins at offset 6 now; what was sent there since 2029-12-31T23:59:00+00:00"
    assert logs.told(text) == [("late", logging.ERROR)]


def test_without_a_hub_it_is_the_process_that_is_told(logs: Logs) -> None:
    Opening().tell(logging.WARNING, "%s: messages are lost", "somewhere")
    assert logs.told("somewhere: messages are lost") == [("the process", logging.WARNING)]
