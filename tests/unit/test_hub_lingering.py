"""What a group recorded and nobody knows to be acknowledged: the hub waits for its copy, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import pytest

from event_triggers.connecting import opened
from event_triggers.errors import StreamError
from event_triggers.event import Event
from event_triggers.ledger import Received, facts_of
from event_triggers.message import Message
from event_triggers.settling import MOST_TRIES
from event_triggers.sources.base import Opening, Outcome, Settlement, Stream
from event_triggers.testing import MemoryQueue
from event_triggers.verdict import Status
from tests.unit.hub_kit import QUEUE, Kit, ScriptQueue, idle, numbers, scripted, soon, want
from tests.unit.wait_kit import GROUP, WaitKit

ACCEPTED, RELEASED, ABANDONED = Outcome.ACCEPTED, Outcome.RELEASED, Outcome.ABANDONED


class _Everything(Stream):
    """Delivers what its queue has, watched or not."""

    def __init__(self, inner: Stream) -> None:
        self._inner = inner

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self._inner.__aiter__()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._inner.settle(settlements)


@dataclass(frozen=True)
class ComesAgain(MemoryQueue):
    """A queue that delivers again within a minute what was not acknowledged."""

    @property
    def redelivery(self) -> float:
        return 60.0

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        async with super().open(opening) as stream:
            await stream.watch(self)
            yield _Everything(stream)


COMES_AGAIN = ComesAgain("queue")


@asynccontextmanager
async def hidden(kit: Kit, number: int) -> AsyncIterator[str]:
    """A message that a dead triggerer took along, until the end of the context; its id."""
    identity = kit.broker.publish("queue", {"n": number})
    async with opened(QUEUE, Opening()) as stream:
        await stream.watch(QUEUE)
        with anyio.fail_after(5):
            async for batch in stream:
                assert [message.id for message in batch] == [identity]
                break
        yield identity


async def test_a_copy_that_comes_after_the_group_has_ended_is_acknowledged(kit: Kit) -> None:
    async with hidden(kit, 1) as identity:
        interest = want(COMES_AGAIN, count=1, recorded=frozenset({identity}))
        async with kit.group(interest) as group:
            assert kit.channel.owed == 1
            kit.publish(2, to=QUEUE)
            (await kit.received(group, 1))[0].accept()
            await soon(group.settled())
            group.over = True
        assert (kit.channel.lingering, kit.channel.owed, kit.channel.entries) == (True, 1, 0)
        kit.publish(3, to=QUEUE)
        await idle()
        assert kit.outcomes() == [(2, ACCEPTED), (3, RELEASED)], "what nobody wants is given back"
    await idle()
    assert kit.outcomes()[2:] == [(1, ACCEPTED)]
    assert kit.hub.statistics().channels == (), "it is over as soon as all is acknowledged"


async def test_lingering_ends_when_no_copy_can_come_any_more(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    await kit.later(59)
    assert kit.channel.lingering
    await kit.later(2)
    assert kit.hub.statistics().channels == ()


async def test_time_in_which_the_queue_was_read_counts(kit: Kit) -> None:
    """Also while the group wants nothing more from this queue, but waits for something else."""
    async with hidden(kit, 1) as early, hidden(kit, 2) as late:
        recorded = frozenset({early, late})
        async with kit.group(want(COMES_AGAIN, count=0, recorded=recorded), want(MemoryQueue("other"))) as group:
            await kit.later(30)
            kit.broker.redeliver("queue", in_flight=True)
            await idle()
            assert {outcome for _, outcome in kit.outcomes()} == {ACCEPTED}
            assert len(kit.outcomes()) == 2
            kit.publish(3, to=QUEUE)
            await kit.later(31)
            assert kit.outcomes()[2:] == [], "nothing is owed any more, so the queue is not read"
            group.over = True
    assert kit.hub.statistics().channels == ()


async def test_a_copy_is_acknowledged_while_the_group_waits_for_something_else(kit: Kit) -> None:
    """The queue was not asked for more when the message was recorded; it must be again, over a new connection, too."""
    kit.broker.fail_next_settle(StreamError("no"), times=MOST_TRIES)
    async with kit.group(want(COMES_AGAIN), want(MemoryQueue("other"))) as group:
        kit.publish(1, to=QUEUE)
        (delivery,) = await kit.received(group, 1)
        await idle()
        delivery.accept()
        for _ in range(MOST_TRIES):
            await kit.later(10)
        assert kit.outcomes() == []
        kit.broker.redeliver("queue", in_flight=True)
        await idle()
        assert kit.outcomes() == [(1, ACCEPTED)]
        group.over = True


async def test_a_group_that_only_moves_leaves_nothing_behind(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=1, recorded=frozenset({"queue:0@7"}))):
        kit.publish(1, to=QUEUE)
        await idle()
    assert kit.hub.statistics().channels == ()
    assert set(kit.outcomes()) == {(1, ABANDONED)}


async def test_an_acknowledgement_that_was_given_up_is_made_good(kit: Kit) -> None:
    kit.broker.fail_next_settle(StreamError("no"), times=MOST_TRIES)
    async with kit.group(want(COMES_AGAIN)) as group:
        kit.publish(1, to=QUEUE)
        (await kit.received(group, 1))[0].accept()
        settled = asyncio.create_task(group.settled())
        for _ in range(MOST_TRIES):
            await kit.later(10)
        await soon(settled)
        assert kit.outcomes() == []
        group.over = True
    assert kit.channel.lingering
    kit.broker.redeliver("queue", in_flight=True)
    await idle()
    assert kit.outcomes() == [(1, ACCEPTED)]
    assert kit.hub.statistics().channels == ()


async def test_an_acknowledgement_that_may_not_have_been_heard_is_made_good(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def passes_over(self: _Everything, settlements: Sequence[Settlement]) -> list[str]:
        return [one.message.id for one in settlements]

    with monkeypatch.context() as patch:
        patch.setattr(_Everything, "settle", passes_over)
        async with kit.group(want(COMES_AGAIN)) as group:
            kit.publish(1, to=QUEUE)
            (await kit.received(group, 1))[0].accept()
            await soon(group.settled())
            assert kit.channel.owed == 1
            group.over = True
    assert kit.channel.lingering
    kit.broker.redeliver("queue", in_flight=True)
    await idle()
    assert kit.outcomes() == [(1, ACCEPTED)]
    assert kit.hub.statistics().channels == ()


async def test_what_was_acknowledged_leaves_nothing_to_wait_for(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN)) as group:
        kit.publish(1, to=QUEUE)
        (await kit.received(group, 1))[0].accept()
        group.over = True  # it leaves before the broker was told, and is told while it leaves
    assert kit.outcomes() == [(1, ACCEPTED)]
    await idle()
    assert kit.hub.statistics().channels == ()


async def test_a_group_that_comes_back_owes_nothing_of_what_was_acknowledged(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=2)) as group:
        kit.publish(1, to=QUEUE)
        (delivery,) = await kit.received(group, 1)
        delivery.accept()
    assert kit.hub.statistics().channels == ()
    message = delivery.message
    async with kit.group(want(COMES_AGAIN, recorded=frozenset({message.id}), recalled=(message,))) as group:
        assert kit.channel.owed == 0
        await soon(group.repaid())
        group.over = True
    assert kit.outcomes() == [(1, ACCEPTED)], "nor is it acknowledged again"
    assert kit.hub.statistics().channels == ()


async def test_a_group_that_comes_back_owes_what_could_not_be_acknowledged(kit: Kit) -> None:
    kit.broker.fail_next_settle(StreamError("no"), times=99)
    async with kit.group(want(COMES_AGAIN, count=2)) as group:
        kit.publish(1, to=QUEUE)
        (delivery,) = await kit.received(group, 1)
        delivery.accept()
    kit.broker.fail_next_settle(StreamError("no"), times=0)
    async with kit.group(want(COMES_AGAIN, recorded=frozenset({delivery.message.id}))):
        assert kit.channel.owed == 1


class ScriptedAgain(ScriptQueue):
    """The same, with what the test feeds."""

    @property
    def redelivery(self) -> float:
        return 60.0


async def test_a_copy_that_cannot_be_acknowledged_is_owed_though_its_message_was(kit: Kit) -> None:
    """The copy says that the broker has not heard the first time."""
    source = ScriptedAgain()
    message = scripted(1)

    async def refuses() -> None:
        raise StreamError("no")

    async with kit.group(want(source, count=2)) as group:
        source.stream.feed.put_nowait([message])
        (await kit.received(group, 1))[0].accept()
        await soon(group.settled())
        assert kit.channel.owed == 0
        source.stream.on_settle = refuses
        source.stream.feed.put_nowait([scripted(1)])
        for _ in range(MOST_TRIES):
            await idle()
            await kit.later(10)
        assert kit.channel.owed == 1
    async with kit.group(want(source, recorded=frozenset({message.id}))):
        assert kit.channel.owed == 1, "nor does the next group take it for told"


async def test_a_group_that_comes_back_while_the_broker_is_being_told(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = asyncio.Event()
    settle = _Everything.settle

    async def slowly(self: _Everything, settlements: Sequence[Settlement]) -> None:
        await heard.wait()
        await settle(self, settlements)

    monkeypatch.setattr(_Everything, "settle", slowly)
    identity = kit.broker.publish("queue", {"n": 1})

    async def come_and_go() -> None:
        async with kit.group(want(COMES_AGAIN, count=2)) as group:
            (await kit.take(group, 1))[0].accept()

    leaving = asyncio.create_task(come_and_go())
    await idle()
    assert kit.hub.statistics().channels == ()
    async with kit.group(want(COMES_AGAIN, recorded=frozenset({identity})), live=False) as group:
        assert not leaving.done()
        assert kit.channel.owed == 1, "nobody knows yet"
        heard.set()
        await soon(group.live())
        assert kit.channel.owed == 0
    await soon(leaving)


async def test_what_was_acknowledged_long_ago_is_expected_again(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded."""
    monkeypatch.setattr("event_triggers.told.MOST_TOLD", 2)
    async with kit.group(want(COMES_AGAIN, count=4)) as group:
        kit.publish(1, 2, 3, to=QUEUE)
        deliveries = await kit.received(group, 3)
        for delivery in deliveries:
            delivery.accept()
    recorded = frozenset(delivery.message.id for delivery in deliveries)
    async with kit.group(want(COMES_AGAIN, count=0, recorded=recorded)):
        assert kit.channel.owed == 1


async def test_queues_are_told_apart(kit: Kit) -> None:
    """Ids are their queue's own."""
    async with kit.group(want(COMES_AGAIN)) as group:
        kit.publish(1, to=QUEUE)
        (delivery,) = await kit.received(group, 1)
        delivery.accept()
    async with kit.group(want(ComesAgain("other"), recorded=frozenset({delivery.message.id}))):
        assert kit.channel.owed == 1


async def test_brokers_that_send_nothing_again_are_not_waited_for(kit: Kit) -> None:
    async with kit.group(want(QUEUE, recorded=frozenset({"queue:0@7"}))) as group:
        assert kit.channel.owed == 0
        group.over = True
    assert kit.hub.statistics().channels == ()


async def test_a_new_group_joins_what_lingers(kit: Kit) -> None:
    async with hidden(kit, 1) as identity:
        async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({identity}))) as group:
            group.over = True
        async with kit.group(want(COMES_AGAIN), name="next") as group:
            kit.publish(2, to=QUEUE)
            deliveries = await kit.received(group, 1)
            assert numbers(deliveries) == [2]
            deliveries[0].accept()
            await soon(group.settled())
        assert kit.channel.lingering, "the next group's leaving changes nothing for the first one's message"
    await idle()
    assert kit.outcomes() == [(2, ACCEPTED), (1, ACCEPTED)]
    assert kit.broker.statistics().opened == 2  # one of them is the dead triggerer's
    assert kit.hub.statistics().channels == ()


async def test_lingering_is_bounded_while_the_broker_is_away(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    kit.broker.fail_next_open(StreamError("away"), times=99)
    kit.broker.cut()
    for _ in range(61):
        await kit.later(1)
    assert kit.hub.statistics().channels == ()


async def test_broken_connections_do_not_prolong_it(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    for _ in range(31):
        kit.broker.cut()
        await kit.later(2)
    assert kit.broker.statistics().opened > 5
    assert kit.hub.statistics().channels == ()


async def test_time_without_a_connection_does_not_count_while_the_group_is_there(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, recorded=frozenset({"queue:0@7"}))) as group:
        kit.broker.fail_next_open(StreamError("away"), times=9)
        kit.broker.cut()
        for _ in range(9):
            await kit.later(30)
            assert kit.channel.owed == 1
        await kit.later(30)
        assert kit.channel.connected
        group.over = True
    assert kit.channel.lingering
    await kit.later(61)
    assert kit.hub.statistics().channels == ()


async def test_a_session_that_is_removed_is_not_waited_for(kit: Kit) -> None:
    source = replace(COMES_AGAIN, per_group=True)
    async with kit.group(want(source, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    assert kit.channel.lingering
    await soon(kit.hub.forget("group", [source]))
    assert kit.hub.statistics().channels == ()
    assert kit.broker.sessions("queue") == set()


async def test_removing_what_others_linger_for_changes_nothing(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    await soon(kit.hub.forget("group", [COMES_AGAIN]))
    assert kit.channel.lingering
    await kit.later(61)


async def test_a_loop_that_ends_does_not_wait(kit: Kit) -> None:
    async with kit.group(want(COMES_AGAIN, count=0, recorded=frozenset({"queue:0@7"}))) as group:
        group.over = True
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await soon(asyncio.wait(tasks))
    kit.hub._channels.clear()


@pytest.mark.parametrize("gone", [False, True], ids=["matches something", "its callable is gone"])
async def test_a_wait_that_was_interrupted_ends_when_its_queue_is_clean(waits: WaitKit, gone: bool) -> None:
    """Recorded just before a crash, not acknowledged: the marker is green, and only the sensor waits for the copy."""
    match = "no.longer.there" if gone else None
    again = hidden(waits, 1)
    identity = await again.__aenter__()
    facts = facts_of([received(identity)], 1, "1")
    waits.ledger.recorded(GROUP, "stock", facts)
    waits.ledger.marked(GROUP, "stock")
    async with waits.running({"stock": Event(COMES_AGAIN, match=match)}) as wait:
        assert not wait.over
        await again.__aexit__(None, None, None)
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.told() == [(identity, "accepted")]


async def test_a_wait_does_not_wait_for_a_copy_that_cannot_come(waits: WaitKit) -> None:
    waits.ledger.recorded(GROUP, "stock", facts_of([received("gone")], 1, "1"))
    waits.ledger.marked(GROUP, "stock")
    async with waits.running({"stock": Event(COMES_AGAIN)}) as wait:
        await waits.later(59)
        assert not wait.over
        await waits.later(1)
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_a_wait_that_comes_back_ends_with_its_last_message(waits: WaitKit) -> None:
    """As after arrivals were handed over, a retry or a clear: the broker was told while the process stayed."""
    events = {
        "stock": Event(COMES_AGAIN, match={"n": [1]}),
        "orders": Event(COMES_AGAIN, match={"n": [2]}),
    }
    first = waits.broker.publish("queue", {"n": 1})
    async with waits.running(events):
        await idle()
        assert waits.states("stock", "orders") == ["success", None]
    async with waits.running(events) as wait:
        second = waits.broker.publish("queue", {"n": 2})
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.told() == [(first, "accepted"), (second, "accepted")]


async def test_a_wait_that_was_not_interrupted_ends_at_once(waits: WaitKit) -> None:
    async with waits.running({"stock": Event(COMES_AGAIN)}) as wait:
        identity = waits.broker.publish("queue", {"n": 1})
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.told() == [(identity, "accepted")]


def received(identity: str) -> Received:
    return Received("memory-queue", "queue", identity, identity, None, "2030-01-01T00:00:00.000+00:00")


async def test_what_another_wait_recorded_is_owed_too(waits: WaitKit) -> None:
    """Two run the same wait; the other one records, and dies before it acknowledges."""
    async with waits.running(
        {"stock": Event(COMES_AGAIN, match={"n": [2]}), "more": Event(COMES_AGAIN, match={"n": [9]})}
    ):
        again = hidden(waits, 1)
        identity = await again.__aenter__()
        waits.ledger.recorded(GROUP, "stock", facts_of([received(identity)], 1, "1"))
        waits.ledger.marked(GROUP, "stock")
        await idle()
        assert waits.channel.owed == 1
        await again.__aexit__(None, None, None)
        await idle()
        assert (identity, "accepted") in waits.told()
