"""The hub and logs whose connections break, or whose end is hard to see: still nothing is lost or comes twice."""

from __future__ import annotations

import asyncio
import threading

import pytest

from event_triggers import load
from event_triggers.errors import StreamError
from event_triggers.message import Message
from tests.unit.hub_kit import LOG, Kit, ScriptLog, idle, numbers, scripted, soon, until, want


async def test_nothing_is_lost_or_comes_twice_when_the_connection_breaks(kit: Kit) -> None:
    kit.broker.batch_size = 2
    kit.broker.partitions("log", 3)
    async with kit.group(want(LOG, count=99)) as group, kit.collecting(group) as (collected,):
        for number in range(0, 20, 2):
            kit.publish(number, partition=number % 3)
            kit.broker.cut()
            kit.publish(number + 1, partition=number % 3)
            await kit.later()
    assert sorted(collected) == list(range(20))


async def test_what_was_not_dispatched_when_the_connection_broke_comes_again(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MOST_UNANSWERED", 2)
    source = ScriptLog()

    async def fail() -> None:
        raise StreamError("no answer")

    async with kit.group(want(source, count=99)) as group:
        source.stream.feed.put_nowait([scripted(number) for number in range(5)])
        await kit.received(group, 2)
        source.stream.on_locate = fail
        async with kit.group(want(source, since=kit.start), name="breaks it", live=False):
            await kit.later()
            assert source.streams[1].opening.start == {"0": 2}


async def test_a_message_is_asked_about_again_when_the_connection_broke_meanwhile(kit: Kit) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hesitate(message: Message) -> bool:
        asked.set()
        return may_answer.wait(5)

    source = ScriptLog()
    async with kit.group(want(source, accepts=hesitate)) as group:
        source.stream.feed.put_nowait([scripted(0)])
        await until(asked.is_set)

        async def fail(_: object) -> None:
            raise StreamError("gone")

        source.stream.on_watch = fail
        other = ScriptLog(source.shared)
        async with kit.group(want(other), name="breaks it", live=False):
            await kit.later()
            assert source.stream.opening.start == {"0": 0}
            source.stream.feed.put_nowait([scripted(0)])
            assert await kit.nothing(group)
            may_answer.set()
            assert numbers([(await soon(group.receive()))[0]]) == [0]


async def test_reading_the_past_goes_on_where_it_broke(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(number) for number in range(4)])
        await idle()
        async with kit.group(want(source, count=99, since=kit.start), name="late", live=False) as late:
            await idle()
            source.stream.feed.put_nowait([scripted(0), scripted(1)])
            source.stream.feed.put_nowait(StreamError("gone"))
            await kit.later()
            assert [stream.opening.start for stream in source.streams] == [None, {"0": 0}, {"0": 2}]
            assert caplog.text.count("reading what was missed failed (StreamError: gone)") == 1, "only who missed it"
            source.stream.feed.put_nowait([scripted(2), scripted(3), scripted(4)])
            await soon(late.live())
            assert numbers(await kit.received(late, 4)) == [0, 1, 2, 3], "4 comes over the live stream"


async def test_the_past_may_end_with_records_nobody_is_shown(kit: Kit) -> None:
    async with kit.group(want(LOG, count=99), name="early"):
        kit.publish(1)
        kit.broker.skip("log", 3)
        kit.publish(2)
        await idle()
        kit.broker.skip("log", 3)
        async with kit.group(want(LOG, count=99, since=kit.start), name="late", live=False) as late:
            assert numbers(await kit.received(late, 2)) == [1, 2]
            await kit.later(1)
            await soon(late.live())


async def test_the_end_of_the_past_is_seen_by_a_position_that_moves_in_silence(kit: Kit) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        source.stream.place["0"] = 5
        source.stream.feed.put_nowait([])
        await idle()
        async with kit.group(want(source, count=99, since=kit.start), name="late", live=False) as late:
            await idle()
            source.stream.feed.put_nowait([scripted(0)])
            assert numbers(await kit.received(late, 1)) == [0]
            live = asyncio.create_task(late.live())
            await kit.later(1)
            assert not live.done()
            source.stream.place["0"] = 5
            await kit.later(1)
            await soon(live)


async def test_the_last_message_of_the_past_is_not_lost_while_it_is_asked_about(kit: Kit) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hesitate(message: Message) -> bool:
        asked.set()
        return may_answer.wait(5)

    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, accepts=hesitate, since=kit.start), name="late", live=False) as late:
            await idle()
            source.stream.feed.put_nowait([scripted(0)])
            await until(asked.is_set)
            await kit.later(1)
            may_answer.set()
            (delivery,) = await soon(late.receive())
            assert numbers([delivery]) == [0]


async def test_a_new_partition_is_read_from_its_beginning(kit: Kit) -> None:
    async with kit.group(want(LOG, count=99), name="early") as early:
        kit.publish(1, partition=0)
        await idle()
        kit.publish(2, 3, partition=1)
        kit.broker.cut()
        kit.publish(4, partition=2)
        async with kit.group(want(LOG, count=99, since=kit.start), name="late", live=False) as late:
            await kit.later()
            assert sorted(numbers(await kit.received(early, 4))) == [1, 2, 3, 4]
            assert sorted(numbers(await kit.received(late, 4))) == [1, 2, 3, 4]
