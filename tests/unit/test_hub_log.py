"""The hub and logs: everybody gets exactly what lies at or behind his ``since``, in order, whoever came before him."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from event_triggers import load
from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources.base import Opening
from event_triggers.testing import MemoryLog
from tests.unit.hub_kit import LOG, Kit, ScriptLog, UnreadLog, idle, names, numbers, scripted, soon, until, want


async def test_without_since_a_group_sees_what_comes_after_it(kit: Kit) -> None:
    kit.publish(1, 2)
    async with kit.group(want(LOG, count=9)) as group:
        kit.publish(3, 4)
        assert numbers(await kit.received(group, 2)) == [3, 4]
    assert kit.broker.settled("log") == []


async def test_with_since_a_late_group_reads_what_it_missed_and_goes_on_live(kit: Kit) -> None:
    async with kit.group(want(LOG, count=99), name="early") as early:
        for number in range(1, 5):
            kit.clock.advance(10)
            kit.publish(number)
        await kit.received(early, 4)
        async with kit.group(want(LOG, count=99, since=kit.ago(20)), name="late") as late:
            assert kit.broker.statistics().open_streams == 1, "the past has been read, its stream is closed"
            kit.publish(5)
            assert numbers(await kit.received(late, 3 + 1)) == [2, 3, 4, 5]
        assert numbers(await kit.received(early, 1)) == [5]
        assert kit.broker.statistics().opened == 2


async def test_a_group_that_missed_nothing_opens_no_second_stream(kit: Kit) -> None:
    kit.publish(1)
    kit.clock.advance(1)
    async with kit.group(want(LOG, since=kit.clock.now())) as group:
        kit.publish(2)
        assert numbers(await kit.received(group, 1)) == [2]
    assert kit.broker.statistics().opened == 1


async def test_without_since_nothing_is_missed_beside_events_that_have_one(kit: Kit) -> None:
    kit.publish(1)
    async with kit.group(want(LOG, count=99), name="early"):
        kit.publish(2)
        await idle()
        interests = [want(LOG, "all", since=kit.start, count=9), want(LOG, "new", count=9)]
        async with kit.group(*interests, name="late") as late:
            kit.publish(3)
            assert names(await kit.received(late, 3)) == [("all",), ("all",), ("all", "new")]


async def test_messages_stamped_before_since_never_count(kit: Kit) -> None:
    kit.publish(1)
    kit.publish(2, timestamp=kit.ago(60))
    async with kit.group(want(LOG, count=99, since=kit.start)) as group:
        kit.publish(3, timestamp=kit.ago(60))
        kit.publish(4)
        assert numbers(await kit.received(group, 2)) == [1, 4]


async def test_what_was_recorded_is_not_read_again(kit: Kit) -> None:
    one, two = kit.broker.publish("log", {"n": 1}), kit.broker.publish("log", {"n": 2})
    assert one != two
    async with kit.group(want(LOG, count=2, since=kit.start, recorded=frozenset({one}))) as group:
        kit.publish(3)
        assert numbers(await kit.received(group, 2)) == [2, 3]


async def test_keys_choose_among_the_messages_of_one_stream(kit: Kit) -> None:
    async with kit.group(want(MemoryLog("log", keys=("x",)), "x"), want(MemoryLog("log", keys=("y",)), "y")) as group:
        kit.publish(1, key="x")
        kit.publish(2, key="y")
        kit.publish(3, key="z")
        assert names(await kit.received(group, 2)) == [("x",), ("y",)]


async def test_live_messages_wait_for_the_past(kit: Kit) -> None:
    source = ScriptLog()
    may_read = asyncio.Event()

    async def hesitate(opening: Opening) -> None:
        if opening.start is not None:
            await may_read.wait()

    source.on_open = hesitate
    async with kit.group(want(source, count=99), name="early"):
        live = source.stream
        live.feed.put_nowait([scripted(0), scripted(1)])
        await idle()
        interests = [want(source, "a", count=5, since=kit.start), want(source, "b", count=2, since=kit.start)]
        async with kit.group(*interests, name="late", live=False) as late:
            await idle()
            live.feed.put_nowait([scripted(2), scripted(3)])
            assert await kit.nothing(late)
            waiting = asyncio.create_task(late.live())
            may_read.set()
            await idle()
            assert not waiting.done()
            assert source.stream.opening.start == {"0": 0}
            source.stream.feed.put_nowait([scripted(0)])
            assert numbers(await kit.received(late, 1)) == [0]
            source.stream.feed.put_nowait([scripted(1)])
            deliveries = await kit.received(late, 3)
            assert numbers(deliveries) == [1, 2, 3]
            assert names(deliveries) == [("a", "b"), ("a",), ("a",)]
            await soon(waiting)
            assert source.stream.closed
            live.feed.put_nowait([scripted(4)])
            assert numbers(await kit.received(late, 1)) == [4]


async def test_a_held_message_for_several_events_is_one_delivery(kit: Kit) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        live = source.stream
        live.feed.put_nowait([scripted(0)])
        await idle()
        interests = [
            want(source, "odd", count=9, since=kit.start, accepts=lambda message: message.json["n"] % 2 == 1),
            want(source, "any", count=9, since=kit.start),
        ]
        async with kit.group(*interests, name="late", live=False) as late:
            await idle()
            live.feed.put_nowait([scripted(1), scripted(2), scripted(3)])
            await until(lambda: [entry.held for entry in late.entries] == [2, 3])
            source.stream.feed.put_nowait([scripted(0)])
            deliveries = await kit.received(late, 4)
            assert numbers(deliveries) == [0, 1, 2, 3]
            assert [set(one) for one in names(deliveries)] == [{"any"}, {"odd", "any"}, {"any"}, {"odd", "any"}]


async def test_no_more_is_held_than_is_wanted(kit: Kit) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        live = source.stream
        live.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, count=2, since=kit.start), name="late", live=False) as late:
            await idle()
            live.feed.put_nowait([scripted(number) for number in range(1, 9)])
            await idle()
            (entry,) = late.entries
            assert entry.held == 2
            source.stream.feed.put_nowait([scripted(0)])
            assert numbers(await kit.received(late, 2)) == [0, 1]


# ------------------------------------------------------------------ joining at awkward moments


async def test_joining_while_a_batch_is_half_dispatched(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_UNANSWERED", 3)
    async with kit.group(want(LOG, count=99), name="early") as early:
        kit.publish(*range(6))
        await idle()
        assert kit.channel.messages == 3
        async with kit.group(want(LOG, count=99, since=kit.start), name="late", live=False) as late:
            await idle()
            async with kit.collecting(early, late) as (by_early, by_late):
                await soon(late.live())
                kit.publish(6)
                await idle()
                assert by_early == list(range(7))
                assert by_late == list(range(7))


@pytest.mark.parametrize("partition", ["0", "new"])
async def test_joining_while_a_message_is_being_asked_about(kit: Kit, partition: str) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hesitate(message: Message) -> bool:
        asked.set()
        return may_answer.wait(5)

    source = ScriptLog()
    async with kit.group(want(source, accepts=hesitate), name="early") as early:
        source.stream.located[partition] = 0
        source.stream.feed.put_nowait([scripted(0, partition=partition), scripted(1, partition=partition)])
        await until(asked.is_set)
        same = want(source, "same", accepts=hesitate, since=kit.start)
        another = want(source, "another", accepts=lambda message: True, since=kit.start)
        plain = want(source, "plain", since=kit.start)
        async with kit.group(same, another, plain, name="late") as late:
            assert len(source.streams) == 1, "nothing was dispatched yet, so nothing was missed"
            may_answer.set()
            assert numbers([(await soon(early.receive()))[0]]) == [0]
            (delivery,) = await soon(late.receive())
            assert numbers([delivery]) == [0]
            assert set(delivery.events) == {"same", "another", "plain"}


async def test_joining_while_the_connection_is_away(kit: Kit) -> None:
    async with kit.group(want(LOG, count=99), name="early") as early:
        kit.publish(1)
        kit.broker.fail_next_open(StreamError("not now"), times=2)
        kit.broker.cut()
        await idle()
        kit.publish(2)
        async with kit.group(want(LOG, count=99, since=kit.start), name="late", live=False) as late:
            live = asyncio.create_task(late.live())
            for _ in range(3):
                assert not live.done()
                await kit.later()
            await soon(live)
            kit.publish(3)
            assert numbers(await kit.received(late, 3)) == [1, 2, 3]
            assert numbers(await kit.received(early, 3)) == [1, 2, 3]


async def test_joining_again_after_looking_up_the_past_has_failed(kit: Kit) -> None:
    source = ScriptLog()

    async def fail() -> None:
        raise StreamError("no answer")

    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        source.stream.on_locate = fail
        async with kit.group(want(source, since=kit.start), name="late", live=False) as late:
            await kit.later()
            live, past = source.streams[1:]
            assert live.opening.start == {"0": 1}
            past.feed.put_nowait([scripted(0)])
            assert numbers(await kit.received(late, 1)) == [0]


async def test_leaving_while_the_past_is_looked_up(kit: Kit) -> None:
    source = ScriptLog()
    looking, may_go_on = asyncio.Event(), asyncio.Event()

    async def hesitate() -> None:
        looking.set()
        await may_go_on.wait()

    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        source.stream.on_locate = hesitate
        async with kit.group(want(source, since=kit.start), name="late", live=False):
            await soon(looking.wait())
        may_go_on.set()
        await idle()
        assert len(source.streams) == 1, "nobody wants the past any more"


async def test_leaving_while_the_past_is_read(kit: Kit) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=99), name="early"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, since=kit.start), name="late", live=False):
            await idle()
            assert not source.stream.closed
        await kit.later(1)
        assert [stream.closed for stream in source.streams] == [False, True]


async def test_who_asks_for_the_recent_past_does_not_wait_for_the_others(kit: Kit) -> None:
    async with AsyncExitStack() as stack:
        source = ScriptLog()
        await stack.enter_async_context(kit.group(want(source, count=99), name="early"))
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        for number in range(4):
            interest = want(source, since=kit.ago(3600))
            await stack.enter_async_context(kit.group(interest, name=f"old {number}", live=False))
            await idle()
        assert len(source.streams) == 1 + 2, "not all at once"
        recent = await stack.enter_async_context(kit.group(want(source, since=kit.ago(60)), name="r", live=False))
        await idle()
        source.stream.feed.put_nowait([scripted(0)])
        assert numbers(await kit.received(recent, 1)) == [0]


async def test_a_long_batch_lets_others_run(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LONGEST_HOLD", -1.0)  # seconds: every message takes long
    source = ScriptLog()
    async with kit.group(want(source, count=9)) as group:
        source.stream.feed.put_nowait([scripted(n) for n in range(3)])
        assert numbers(await soon(group.receive())) == [0]
        assert numbers(await kit.take(group, 2)) == [1, 2]


async def test_a_batch_that_wakes_many_groups_lets_them_run(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is: the hundred groups that it wakes would otherwise all run in one turn."""
    monkeypatch.setattr(load, "LONGEST_HOLD", 3600.0)
    source = ScriptLog()
    async with AsyncExitStack() as stack:
        groups = [
            await stack.enter_async_context(kit.group(want(source, pattern={"n": [number]}), name=str(number)))
            for number in range(100)
        ]
        source.stream.feed.put_nowait([scripted(number) for number in range(100)])
        assert numbers(await soon(groups[0].receive())) == [0]
        assert kit.channel.messages == load.MOST_WOKEN
        assert numbers(await soon(groups[99].receive())) == [99]


async def test_who_comes_in_the_middle_of_a_batch_gets_what_was_passed_over(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one partition all is passed over; the first message of the other one must be answered before the next."""
    monkeypatch.setattr(load, "MOST_UNANSWERED", 1)
    log = UnreadLog("log")
    kit.broker.partitions("log", 2)
    async with kit.group(want(log, pattern={"n": [10, 11]}, count=2), name="early") as early:
        kit.publish(1, 2, to=log, partition=0)
        kit.publish(10, 11, to=log, partition=1)
        (first,) = await kit.take(early, 1)
        wanted = want(log, pattern={"n": [1, 10, 11]}, count=9, since=kit.start)
        async with kit.group(wanted, name="late", live=False) as late:
            await idle()
            async with kit.collecting(early, late) as collected:
                first.accept()
                await until(lambda: len(collected[0]) == 1 and len(collected[1]) == 3)
    assert collected[0] == [11]
    assert sorted(collected[1]) == [1, 10, 11]
