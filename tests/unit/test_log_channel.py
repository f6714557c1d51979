"""Log lines do not block the event loop, however little is read of them."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import contextvars
import io
import logging
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from event_triggers import log_channel
from event_triggers.log_channel import spare_the_loop

LINES = 2_000
"""Several times as many as the socket takes."""
TEXT = "x" * 300

who = contextvars.ContextVar("who", default="")


class Channel:
    """A logger that writes as those of Airflow's triggerer do: into a socket, without a buffer."""

    def __init__(self) -> None:
        self.written, self.read = socket.socketpair()
        self.read.setblocking(False)
        self.log = logging.Logger("a triggerer's")
        self._raw = os.fdopen(os.dup(self.written.fileno()), "wb", buffering=0)
        self.handler = logging.StreamHandler(codecs.lookup("utf-8").streamwriter(self._raw))
        self.log.addHandler(self.handler)

    async def lines(self, count: int) -> list[str]:
        """As many lines, as soon as they are there."""
        loop, content = asyncio.get_running_loop(), b""
        while content.count(b"\n") < count:
            content += await loop.sock_recv(self.read, 65536)
        return content.decode().splitlines()

    def content(self) -> bytes:
        """What is there to be read."""
        content = b""
        with contextlib.suppress(BlockingIOError):
            while part := self.read.recv(65536):
                content += part
        return content

    def close(self) -> None:
        self.read.close()
        self.written.close()
        self._raw.close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.close()


def say(channel: Channel, first: int, last: int) -> None:
    for number in range(first, last):
        channel.log.warning("%d %s", number, TEXT)


async def test_nobody_waits_for_who_does_not_read(channel: Channel) -> None:
    spare_the_loop(channel.log)
    say(channel, 0, LINES)  # would never return
    lines = await channel.lines(LINES)
    assert lines == [f"{number} {TEXT}" for number in range(LINES)]
    say(channel, LINES, LINES + 1)
    assert await channel.lines(1) == [f"{LINES} {TEXT}"]


async def test_lines_keep_their_order_while_some_are_read(channel: Channel) -> None:
    spare_the_loop(channel.log)
    lines: list[str] = []
    for start in range(0, LINES, 100):
        say(channel, start, start + 100)
        lines += await channel.lines(1)
    while len(lines) < LINES:
        lines += await channel.lines(1)
    assert "".join(lines) == "".join(f"{number} {TEXT}" for number in range(LINES))


async def test_lines_keep_their_context(channel: Channel) -> None:
    """By it Airflow knows whose log it is."""
    spare_the_loop(channel.log)
    channel.handler.setFormatter(_OfTask())

    async def task(name: str) -> None:
        who.set(name)
        say(channel, 0, LINES // 2)

    await asyncio.gather(task("one"), task("two"))
    lines = await channel.lines(LINES)
    assert [line.split()[0] for line in lines] == ["one"] * (LINES // 2) + ["two"] * (LINES // 2)


class _OfTask(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{who.get()} {record.getMessage()}"


async def test_a_thread_waits_and_the_loop_does_not(channel: Channel) -> None:
    spare_the_loop(channel.log)
    say(channel, 0, LINES)
    thread = threading.Thread(target=say, args=(channel, LINES, LINES + 50))
    thread.start()
    # Also with the thread in the middle of its lines, the loop's own are taken.
    say(channel, LINES + 50, LINES + 100)
    lines = await channel.lines(LINES + 100)
    thread.join(30)
    numbers = [int(line.split()[0]) for line in lines]
    assert sorted(numbers) == list(range(LINES + 100))
    for mine in (range(LINES), range(LINES, LINES + 50), range(LINES + 50, LINES + 100)):
        assert [number for number in numbers if number in mine] == list(mine)


async def test_what_is_left_out_is_said(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_channel, "MOST_WAITING", 10)
    monkeypatch.setattr(log_channel, "log", channel.log)
    spare_the_loop(channel.log)
    say(channel, 0, LINES)
    lines: list[str] = []
    while "left out" not in "".join(lines):
        lines += await channel.lines(1)
    assert f"{LINES - len(lines) + 1} lines of the log were left out here" in lines[-1]
    assert lines[-2].startswith(f"{len(lines) - 2} "), "the first are kept"


async def test_who_reads_no_more_holds_nobody_up(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    all_have_failed = asyncio.Event()

    def failed(record: logging.LogRecord) -> None:
        if record.getMessage().startswith(f"{LINES + 9} "):
            all_have_failed.set()

    monkeypatch.setattr(channel.handler, "handleError", failed)
    spare_the_loop(channel.log)
    say(channel, 0, LINES)
    channel.read.close()
    say(channel, LINES, LINES + 10)
    await all_have_failed.wait()


async def test_again_changes_nothing(channel: Channel) -> None:
    spare_the_loop(channel.log)
    before = list(channel.handler.filters)
    spare_the_loop(channel.log)
    assert channel.handler.filters == before


async def test_what_is_no_socket_stays_as_it_is() -> None:
    logger = logging.Logger("a test's")
    logger.addHandler(logging.StreamHandler())
    logger.addHandler(logging.NullHandler())
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    spare_the_loop(logger)
    assert not any(handler.filters for handler in logger.handlers)


def test_what_is_left_when_the_loop_ends_is_written_by_the_next(channel: Channel) -> None:
    async def begin() -> None:
        spare_the_loop(channel.log)
        say(channel, 0, LINES)

    async def go_on() -> list[str]:
        spare_the_loop(channel.log)
        return await channel.lines(LINES)

    asyncio.run(begin())
    assert len(asyncio.run(go_on())) == LINES


def test_what_is_left_when_the_loop_ends_is_written_with_the_next_line(channel: Channel) -> None:
    async def begin() -> None:
        spare_the_loop(channel.log)
        say(channel, 0, LINES)

    asyncio.run(begin())
    reading = threading.Thread(target=lambda: lines.extend(asyncio.run(channel.lines(LINES + 1))))
    lines: list[str] = []
    reading.start()
    say(channel, LINES, LINES + 1)  # waits for the reader: there is no loop to spare
    reading.join(30)
    assert lines == [f"{number} {TEXT}" for number in range(LINES + 1)]


def test_what_was_left_out_when_the_loop_ends_is_said_with_the_next_line(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_channel, "MOST_WAITING", 10)
    monkeypatch.setattr(log_channel, "log", channel.log)

    async def begin() -> None:
        spare_the_loop(channel.log)
        say(channel, 0, LINES)

    asyncio.run(begin())
    content = channel.content()
    channel.log.warning("the last")
    lines = (content + channel.content()).decode().splitlines()
    left_out = LINES - len(lines) + 2
    assert lines[-3].startswith(f"{len(lines) - 3} "), "the first are kept"
    assert lines[-2].startswith(f"{left_out} lines of the log were left out here")
    assert lines[-1] == "the last"
