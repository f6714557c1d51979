"""The hub and queues: who gets a message, and when and how its broker is told."""

from __future__ import annotations

import asyncio

import pytest

from event_triggers import fanout, load
from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources.base import Outcome
from event_triggers.testing import MemoryQueue
from tests.unit.hub_kit import QUEUE, Kit, ScriptQueue, idle, names, numbers, scripted, soon, want

ACCEPTED, RELEASED, ABANDONED = Outcome.ACCEPTED, Outcome.RELEASED, Outcome.ABANDONED


async def test_a_message_is_acknowledged_only_after_it_is_recorded(kit: Kit) -> None:
    async with kit.group(want(QUEUE)) as group:
        kit.publish(1, to=QUEUE)
        (delivery,) = await kit.received(group, 1)
        assert kit.outcomes() == []
        settled = asyncio.create_task(group.settled())
        await idle()
        assert not settled.done()
        delivery.accept()
        await soon(settled)
        assert kit.outcomes() == [(1, ACCEPTED)]
        delivery.accept()
        delivery.abandon()
        await idle()
        assert kit.outcomes() == [(1, ACCEPTED)]
        assert kit.channel.unanswered == 0
        await soon(group.settled())


async def test_a_message_for_several_events_of_a_group_is_one_delivery(kit: Kit) -> None:
    async with kit.group(
        want(QUEUE, "all", count=2),
        want(QUEUE, "by pattern", pattern={"n": [1]}),
        want(QUEUE, "by callable", accepts=lambda message: message.json["n"] == 1),
        want(QUEUE, "another", pattern={"n": [2]}),
    ) as group:
        kit.publish(1, 2, to=QUEUE)
        deliveries = await kit.received(group, 2)
        assert names(deliveries) == [("all", "by pattern", "by callable"), ("all", "another")]
        assert kit.channel.unanswered == 2
        deliveries[0].accept()
        await soon(asyncio.sleep(0))
        await idle()
        assert kit.outcomes() == [(1, ACCEPTED)]
        assert kit.channel.unanswered == 1


async def test_a_message_for_several_groups_is_settled_once_after_all_have_answered(kit: Kit) -> None:
    async with kit.group(want(QUEUE), name="a") as one, kit.group(want(QUEUE), name="b") as two:
        kit.publish(1, to=QUEUE)
        first, second = (await kit.received(one, 1))[0], (await kit.received(two, 1))[0]
        assert first.message is second.message
        first.accept()
        await idle()
        assert kit.outcomes() == []
        await soon(one.settled())  # what the other group still holds is not this one's to wait for
        settled = asyncio.create_task(two.settled())
        await idle()
        assert not settled.done()
        second.accept()
        await soon(settled)
        assert kit.outcomes() == [(1, ACCEPTED)]
        assert kit.channel.handed_out == 1


async def test_declining_leaves_it_to_those_who_record_it(kit: Kit) -> None:
    async with kit.group(want(QUEUE), name="a") as one, kit.group(want(QUEUE, count=2), name="b") as two:
        kit.publish(1, 2, to=QUEUE)
        (first,) = await kit.received(one, 1)
        second, only = await kit.received(two, 2)
        second.accept()
        first.decline()
        only.decline()
        await idle()
        assert kit.outcomes() == [(1, ACCEPTED), (2, RELEASED)]


async def test_what_is_under_way_is_offered_to_those_who_come_later(kit: Kit) -> None:
    def even(message: Message) -> bool:
        return bool(message.json["n"] % 2 == 0)

    async with kit.group(want(QUEUE, count=2), name="a") as one:
        kit.publish(1, 2, to=QUEUE)
        first, second = await kit.received(one, 2)
        interests = [want(QUEUE, "even", accepts=even, count=9), want(QUEUE, "one", pattern={"n": [1]})]
        async with kit.group(*interests, name="b") as two:
            deliveries = await kit.take(two, 2)
            assert names(deliveries) == [("one",), ("even",)]
            assert numbers(deliveries) == [1, 2]
            first.decline()
            second.accept()
            await idle()
            assert kit.outcomes() == []
            for delivery in deliveries:
                delivery.accept()
            await soon(two.settled())
            assert kit.outcomes() == [(1, ACCEPTED), (2, ACCEPTED)]


async def test_what_has_been_settled_is_not_offered_to_those_who_come_later(kit: Kit) -> None:
    async with kit.group(want(QUEUE), name="a") as one:
        kit.publish(1, to=QUEUE)
        (await kit.received(one, 1))[0].accept()
        async with kit.group(want(QUEUE), want(QUEUE, "c", accepts=lambda _: True), name="b") as two:
            assert await kit.nothing(two)


@pytest.mark.parametrize("recorded_by", ["old", "new"])
async def test_a_group_that_starts_again_takes_over_what_it_had(kit: Kit, recorded_by: str) -> None:
    async with kit.group(want(QUEUE, count=2), name="group") as new, kit.group(want(QUEUE), name="other") as other:
        async with kit.group(want(QUEUE), name="group") as old:
            kit.publish(1, to=QUEUE)
            (await kit.received(other, 1))[0].accept()
            old_delivery, new_delivery = (await kit.received(old, 1))[0], (await kit.received(new, 1))[0]
            if recorded_by == "old":
                old_delivery.accept()
        await idle()
        assert kit.outcomes() == []
        if recorded_by == "old":
            new_delivery.abandon()
        else:
            new_delivery.accept()
        await soon(new.settled())
        assert kit.outcomes() == [(1, ACCEPTED)]


@pytest.mark.parametrize(("over", "outcome"), [(False, ABANDONED), (True, RELEASED)])
async def test_leaving_answers_what_is_open(kit: Kit, over: bool, outcome: Outcome) -> None:
    async with kit.group(want(QUEUE, count=3), name="a") as group:
        kit.publish(1, 2, to=QUEUE)
        await kit.received(group, 2)
        kit.publish(3, to=QUEUE)  # this one is not even received
        await idle()
        group.over = over
    assert kit.outcomes() == [(1, outcome), (2, outcome), (3, outcome)]


async def test_what_one_group_could_not_record_comes_again_for_it_alone(kit: Kit) -> None:
    async with kit.group(want(QUEUE, count=2), name="a") as one:
        async with kit.group(want(QUEUE), name="b") as two:
            kit.publish(1, to=QUEUE)
            (await kit.received(one, 1))[0].accept()
            await kit.received(two, 1)
        await idle()
        # It came again at once; nobody here wants it, and it must stay for the group that has moved.
        assert kit.outcomes() == [(1, ABANDONED), (1, RELEASED)]
        async with kit.group(want(QUEUE), name="b again") as two:
            kit.broker.redeliver("queue")
            (await kit.received(two, 1))[0].accept()
            await soon(two.settled())
        assert kit.outcomes()[2:] == [(1, ACCEPTED)]
        assert kit.broker.undelivered("queue") == 0


async def test_one_event_does_not_answer_for_another_of_its_group(kit: Kit) -> None:
    async with kit.group(want(QUEUE)) as other:
        kit.publish(1, to=QUEUE)
        (under_way,) = await kit.received(other, 1)
        async with kit.group(want(QUEUE, "recorded"), want(QUEUE, "left"), name="b") as group:
            (await kit.received(group, 2))[0].accept()
        under_way.accept()
        await idle()
        assert kit.outcomes()[0] == (1, ABANDONED)


async def test_what_nobody_wants_is_released(kit: Kit) -> None:
    async with kit.group(want(QUEUE, pattern={"n": [3]}), name="a") as group:
        kit.publish(1, 2, 3, to=QUEUE)
        assert numbers(await kit.received(group, 1)) == [3]
        assert kit.outcomes() == [(1, RELEASED), (2, RELEASED)]


async def test_what_cannot_be_read_is_rejected_and_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    async with kit.group(want(QUEUE, pattern={"n": [1]})):
        for _ in range(30):
            kit.broker.publish("queue", b"\xff")
        kit.broker.publish("queue", None)
        await idle()
    assert [one.outcome for one in kit.broker.settled("queue")] == [Outcome.REJECTED] * 30 + [RELEASED]
    lines = [record.getMessage() for record in caplog.records if "is not JSON" in record.getMessage()]
    assert len(lines) == 20
    assert "memory-queue queue: the message at 0 is not JSON" in lines[0]
    assert lines[-1].endswith("further ones are not logged")


async def test_what_patterns_cannot_read_others_may_want(kit: Kit) -> None:
    async with kit.group(want(QUEUE, "pattern", pattern={"n": [1]}), want(QUEUE, "any")) as group:
        kit.broker.publish("queue", b"\xff")
        (delivery,) = await kit.received(group, 1)
        assert delivery.events == ("any",)


async def test_unreadable_for_one_source_is_only_unwanted_on_another(kit: Kit) -> None:
    documents, pictures = MemoryQueue("documents", shared="one"), MemoryQueue("pictures", shared="one")
    never = want(pictures, "never", accepts=lambda _: False)
    async with kit.group(want(documents, pattern={"n": [1]}), want(pictures, count=1), never) as group:
        kit.broker.publish("pictures", b"\xff")
        (await kit.received(group, 1))[0].accept()
        kit.broker.publish("pictures", b"\xff")
        await idle()
        assert [one.outcome for one in kit.broker.settled("pictures")] == [ACCEPTED, RELEASED]


async def test_an_event_gets_as_many_as_it_asks_for(kit: Kit) -> None:
    async with kit.group(want(QUEUE, count=3)) as group:
        kit.publish(1, 2, 3, 4, to=QUEUE)
        assert numbers(await kit.received(group, 3)) == [1, 2, 3]
        assert kit.outcomes() == [(4, RELEASED)]


async def test_messages_stamped_before_since_do_not_count(kit: Kit) -> None:
    async with kit.group(want(QUEUE, since=kit.start)) as group:
        kit.publish(1, to=QUEUE, timestamp=kit.ago(1))
        kit.publish(2, to=QUEUE, timestamp=kit.start)
        assert numbers(await kit.received(group, 1)) == [2]


async def test_a_message_that_waits_already_finds_its_group(kit: Kit) -> None:
    kit.publish(1, to=QUEUE)
    async with kit.group(want(QUEUE), live=False) as group:
        assert numbers(await kit.received(group, 1)) == [1]


# ------------------------------------------------------------------ copies


async def test_a_copy_of_what_is_under_way_renews_its_receipt(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=2)) as group:
        feed = source.stream.feed
        feed.put_nowait([scripted(1, receipt="first")])
        (delivery,) = await kit.received(group, 1)
        feed.put_nowait([scripted(1, receipt="second")])
        assert await kit.nothing(group)
        assert source.stream.told == []
        delivery.accept()
        await soon(group.settled())
        assert source.stream.told == [("second", ACCEPTED)]


async def test_a_copy_of_what_was_acknowledged_is_acknowledged_and_seen_by_nobody(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=2), name="a") as one:
        source.stream.feed.put_nowait([scripted(1, receipt="first")])
        (await kit.received(one, 1))[0].accept()
        async with kit.group(want(source), want(source, "c", accepts=lambda _: True), name="b") as two:
            source.stream.feed.put_nowait([scripted(1, receipt="second")])
            assert await kit.nothing(one)
            assert await kit.nothing(two)
            assert source.stream.told == [("first", ACCEPTED), ("second", ACCEPTED)]


async def test_what_the_broker_stores_is_new_to_those_who_come_later(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=2), name="a") as one:
        source.stream.feed.put_nowait([scripted(1, stored=True)])
        (await kit.received(one, 1))[0].accept()
        async with kit.group(want(source), want(source, "c", accepts=lambda _: True), name="b") as two:
            assert source.stream.watched == [source, source], "asked once more for what is stored"
            source.stream.feed.put_nowait([scripted(1, stored=True)])
            assert names(await kit.take(two, 1)) == [("event", "c")]
            assert await kit.nothing(one)


async def test_what_a_group_recorded_before_it_came_is_acknowledged(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, recorded=frozenset({"0@1"})), name="a") as one:
        source.stream.feed.put_nowait([scripted(1)])
        assert await kit.nothing(one)
        assert source.stream.told == [("0@1", ACCEPTED)]


async def test_what_one_group_recorded_before_another_may_still_need(kit: Kit) -> None:
    # Both had it when their triggerer died, and only one had recorded it.
    source = ScriptQueue()
    has_it, needs_it = want(source, count=2, recorded=frozenset({"0@1"})), want(source)
    async with kit.group(has_it, name="a") as one, kit.group(needs_it, name="b") as two:
        source.stream.feed.put_nowait([scripted(1)])
        (delivery,) = await kit.received(two, 1)
        assert await kit.nothing(one)
        delivery.accept()
        await soon(two.settled())
        assert source.stream.told == [("0@1", ACCEPTED)]


async def test_old_recorded_messages_are_forgotten(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MOST_REMEMBERED", 2)
    source = ScriptQueue()
    async with kit.group(want(source, count=3), name="a") as group:
        source.stream.feed.put_nowait([scripted(1), scripted(2), scripted(3)])
        for delivery in await kit.received(group, 3):
            delivery.accept()
        async with kit.group(want(source, count=3), name="b") as late:
            source.stream.feed.put_nowait([scripted(1), scripted(2), scripted(3)])
            assert numbers(await kit.received(late, 1)) == [1], "2 and 3 are known still"


# ------------------------------------------------------------------ back-pressure


@pytest.mark.parametrize("limit", ["messages", "bytes"])
async def test_too_much_under_way_pauses_the_broker(kit: Kit, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    if limit == "messages":
        monkeypatch.setattr(load, "MOST_UNANSWERED", 3)
    else:
        monkeypatch.setattr(load, "MOST_UNANSWERED_BYTES", 3 * len(b'{"n":0}'))
    kit.broker.batch_size = 2
    async with kit.group(want(QUEUE, count=9)) as group:
        kit.publish(*range(9), to=QUEUE)
        first = await kit.received(group, 3)
        assert kit.broker.statistics().delivered == 4, "the batch that was pulled already, and no other"
        first[0].accept()
        (fourth,) = await kit.received(group, 1)
        assert kit.broker.statistics().delivered == 4
        for delivery in [*first[1:], fourth]:
            delivery.accept()
        assert numbers(await kit.received(group, 3)) == [4, 5, 6]
        assert kit.channel.unanswered == 3


async def test_a_message_larger_than_the_limit_passes_alone(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_UNANSWERED_BYTES", 10)
    async with kit.group(want(QUEUE, count=2)) as group:
        for _ in range(2):
            kit.broker.publish("queue", b"x" * 100)
        (await kit.received(group, 1))[0].accept()
        (await kit.received(group, 1))[0].accept()


async def test_what_the_broker_has_not_been_told_counts_too(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_UNANSWERED", 3)
    source = ScriptQueue()
    may_tell = asyncio.Event()

    async def wait() -> None:
        await may_tell.wait()

    async with kit.group(want(source, pattern={"n": [7]})) as group:
        source.stream.on_settle = wait
        for number in range(8):
            source.stream.feed.put_nowait([scripted(number)])
        await idle()
        assert source.stream.feed.qsize() == 5
        may_tell.set()
        assert numbers(await kit.received(group, 1)) == [7]


async def test_what_was_pulled_and_not_dispatched_is_given_back(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_UNANSWERED", 2)
    async with kit.group(want(QUEUE, count=9)) as group:
        kit.publish(*range(5), to=QUEUE)
        await kit.received(group, 2)
    assert sorted(kit.outcomes()) == [(number, ABANDONED) for number in range(5)]


async def test_a_queue_is_not_read_while_nobody_wants_anything(kit: Kit) -> None:
    async with kit.group(want(QUEUE, count=0, recorded=frozenset({"x"})), name="a"):
        kit.publish(1, 2, 3, to=QUEUE)
        await idle()
        assert kit.broker.statistics().delivered == 0
        kit.broker.batch_size = 1
        async with kit.group(want(QUEUE), name="b") as group:
            (await kit.received(group, 1))[0].accept()
            assert kit.broker.statistics().delivered == 1
            group.drop("event")
        await idle()
        assert kit.broker.statistics().delivered == 1


async def test_a_dropped_event_gets_nothing_more(kit: Kit) -> None:
    async with kit.group(want(QUEUE, "a"), want(QUEUE, "b")) as group:
        group.drop("a")
        kit.publish(1, 2, to=QUEUE)
        assert names(await kit.received(group, 1)) == [("b",)]


async def test_a_source_whose_routes_fail_costs_only_its_own_event(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(ScriptQueue):
        def routes(self, message: Message) -> bool:
            raise StreamError("oops")

    good, bad = ScriptQueue("shared"), Faulty("shared")
    async with kit.group(want(good), name="a") as group, kit.group(want(bad, "bad"), name="b") as other:
        stream = (good.streams or bad.streams)[0]
        stream.feed.put_nowait([scripted(1)])
        # Their classes differ, so each has its own connection.
        bad.stream.feed.put_nowait([scripted(1)])
        assert numbers(await kit.received(group, 1)) == [1]
        assert await kit.nothing(other)
        assert len(bad.streams) == 1
    assert "event bad: its source's routes() raised StreamError: oops for script script 0@1" in caplog.text
