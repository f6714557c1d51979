"""What a message and a waiting group cost, in numbers that are the same on every machine.

They guard what the benchmarks measure: calls, decodings, tasks and bytes, never seconds.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.memory import memory_per_group
from event_triggers import message
from event_triggers.matching import PatternIndex
from event_triggers.message import Message
from event_triggers.misses import MOST_KEPT
from tests.unit.hub_kit import Kit, ScriptLog, UnreadMessages, idle, soon, want
from tests.unit.wait_kit import WaitKit, from_log

_BATCH = 100
_MOST_CALLS_PER_MESSAGE = 17
_READ_AT_ONCE = 500
_MOST_CALLS_PER_UNREAD_MESSAGE = 2
"""Of a batch whose messages are made only when somebody wants them, as Kafka's are."""
_MOST_CALLS_PER_MISS = 9
"""To compare one event, of two fields, with one message."""
_MOST_TASKS_PER_GROUP = 3
_MOST_BYTES_PER_GROUP = 40 * 1024


class _Calls:
    """Counts the calls of Python functions, and those of some names, while the context is open."""

    def __init__(self, *names: str) -> None:
        self.all = 0
        self.of = dict.fromkeys(names, 0)

    def __enter__(self) -> _Calls:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: Any, event: str, _: object) -> None:
        if event == "call":
            self.all += 1
            name = frame.f_code.co_name
            if name in self.of:
                self.of[name] += 1


def _message(number: int) -> Message:
    body = b'{"table": "t_%d", "day": "another day", "rows": 1}' % number
    return Message("script", "script", f"0@{number}", f"0@{number}", body, partition="0", offset=number)


async def _calls(kit: Kit, source: ScriptLog, first: int, *names: str, unread: int = 0) -> _Calls:
    """What a batch of messages that match nothing costs, beside what each batch costs."""
    numbers = range(first, first + (unread or _BATCH))
    messages = [_message(number) for number in numbers]
    batch = UnreadMessages(messages) if unread else messages
    with _Calls(*names) as calls:
        source.stream.feed.put_nowait(batch)
        await idle()
    assert kit.channel.messages == numbers.stop
    return calls


@pytest.mark.parametrize("waiting", [1, 500])
async def test_a_message_that_nobody_wants(kit: Kit, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    decode = message._decode

    def counted_decode(body: bytes) -> Any:
        return decode(body)

    monkeypatch.setattr(message, "_decode", counted_decode)
    source = ScriptLog()
    interests = [want(source, f"event_{n}", pattern={"table": [f"t_{n}"], "day": ["a day"]}) for n in range(waiting)]
    async with kit.group(*interests):
        await _calls(kit, source, 0)  # what is made once is made now
        with _Calls() as nothing:
            await idle()
        before = asyncio.all_tasks()
        calls = await _calls(kit, source, _BATCH, "counted_decode", "create_task")
        assert (calls.all - nothing.all) / _BATCH < _MOST_CALLS_PER_MESSAGE
        assert calls.of["counted_decode"] == _BATCH, "decoded once each, however many wait"
        assert calls.of["create_task"] == 0
        assert asyncio.all_tasks() == before


@pytest.mark.parametrize("waiting", [1, 500])
async def test_a_message_that_nobody_wants_need_not_be_made(kit: Kit, waiting: int) -> None:
    source = ScriptLog()
    interests = [want(source, f"event_{n}", pattern={"table": [f"t_{n}"], "day": ["a day"]}) for n in range(waiting)]
    async with kit.group(*interests):
        await _calls(kit, source, 0, unread=_READ_AT_ONCE)
        with _Calls() as nothing:
            await idle()
        calls = await _calls(kit, source, _READ_AT_ONCE, "message", unread=_READ_AT_ONCE)
        assert (calls.all - nothing.all) / _READ_AT_ONCE < _MOST_CALLS_PER_UNREAD_MESSAGE
        assert calls.of["message"] <= 3, "but for the beginning and the end of each partition"


async def test_tasks_of_a_waiting_group(waits: WaitKit) -> None:
    events = {f"event_{number}": from_log(f"what {number}") for number in range(20)}
    async with waits.running(events):
        before = len(asyncio.all_tasks())
        async with waits.running(events), waits.running(events):
            assert len(asyncio.all_tasks()) - before <= 2 * _MOST_TASKS_PER_GROUP


async def test_an_idle_group_is_woken_by_nothing(waits: WaitKit) -> None:
    """Neither messages for others nor time make it do anything, until its log tells what came nearest."""
    source = from_log("mine")
    async with waits.running({"mine": source}):
        await idle()
        with _Calls("_look", "misses", "receive") as calls:
            waits.send("others", to="log")
            waits.clock.advance(30)
            await idle()
        assert calls.of == {"_look": 0, "misses": 0, "receive": 0}


async def test_looking_for_the_nearest_miss(kit: Kit) -> None:
    source = ScriptLog()
    interests = [want(source, f"event_{n}", pattern={"table": [f"t_{n}_x"], "day": ["a day"]}) for n in range(20)]
    async with kit.group(*interests) as one, kit.group(*interests, name="another") as another:
        await _calls(kit, source, 0, unread=_READ_AT_ONCE)
        assert len(await one.misses()) == 20
        with _Calls("message", "explain") as calls:
            assert len(await another.misses()) == 20
        assert calls.of["message"] == 0, "made once for all who ask"
        assert calls.of["explain"] == 20, "of the nearest alone there are words"
        assert calls.all / 20 / MOST_KEPT < _MOST_CALLS_PER_MISS


async def test_memory_of_a_waiting_group() -> None:
    measured = await memory_per_group(groups=60)
    assert measured.beyond < _MOST_BYTES_PER_GROUP


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(lambda n: {"table": [f"t_{n:05}_x"], "day": ["a day"]}, id="exact"),
        pytest.param(lambda n: {"table": [f"t_{n:05}_x"], "rows": [{"numeric": ["<", n]}]}, id="exact and numeric"),
        pytest.param(lambda n: {"day": ["a day"], "table": [{"prefix": f"t_{n:05}_"}]}, id="prefix"),
    ],
)
async def test_looking_up_does_not_depend_on_how_many_patterns_there_are(
    pattern: Callable[[int], dict[str, Any]],
) -> None:
    document = {"table": "t_00003_x", "day": "a day", "rows": 1}

    def calls(count: int) -> int:
        index: PatternIndex[int] = PatternIndex()
        for number in range(count):
            index.add(pattern(number), number)
        with _Calls() as counted:
            index.matching(document)
        return counted.all

    assert calls(5_000) == calls(50)


async def test_what_is_found_of_many_is_asked_alone(kit: Kit) -> None:
    """The messages of one group cost the others nothing: neither a wake-up nor a look."""
    source = ScriptLog()
    async with (
        kit.group(want(source, pattern={"table": ["t_1"]}), name="one") as one,
        kit.group(want(source, pattern={"table": ["t_other"]}), name="other") as other,
    ):
        source.stream.feed.put_nowait([_message(number) for number in range(3)])
        (delivery,) = await soon(one.receive())
        assert delivery.message.offset == 1
        delivery.accept()
        assert other.waiting == 0
