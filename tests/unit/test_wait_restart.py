"""A wait that is stopped and started again: nothing lost, nothing counted twice; and two of one group at once."""

from __future__ import annotations

from collections.abc import Mapping

from event_triggers.event import Event
from event_triggers.verdict import Status
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


async def test_it_counts_on_from_where_it_was(waits: WaitKit) -> None:
    events = {"shifts": from_queue(count=3), "ticks": from_log(count=3)}
    async with waits.running(events):
        first = [waits.send("shift", n=n) for n in range(2)]
        tick = waits.send("tick", to="log", n=0)
        await idle()
    assert (waits.ids("shifts"), waits.ids("ticks")) == (first, [tick])
    assert waits.ledger.payload(GROUP, "shifts") == [{"what": "shift", "n": 0}, {"what": "shift", "n": 1}]
    ticks = [waits.send("tick", to="log", n=n) for n in (1, 2)]
    async with waits.running(events) as wait:
        last = waits.send("shift", n=2)
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ids("shifts") == [*first, last]
    assert waits.ids("ticks") == [tick, *ticks]
    assert [payload["n"] for payload in waits.ledger.payload(GROUP, "ticks")] == [0, 1, 2]
    assert [facts["id"] for facts in verdict.received["ticks"]] == [tick, *ticks]
    assert verdict.arrivals == {"shifts": 3, "ticks": 3}
    assert sorted(waits.told()) == [(identity, "accepted") for identity in sorted([*first, last])]


async def stopped_after_recording(waits: WaitKit, events: Mapping[str, Event]) -> str:
    """A message is recorded, and its wait stopped before it could acknowledge it; gives its id."""
    async with waits.running(events) as wait:
        recorded = len(waits.ledger.history)
        identity = waits.send("shift")
        await soon(waits.ledger.wait_for_recorded(recorded + 1))
        waits.ledger.pause()
        await wait.kill()
    waits.ledger.resume()
    assert set(waits.told()) == {(identity, "abandoned")}
    return identity


async def test_a_message_recorded_but_not_acknowledged_does_not_count_twice(waits: WaitKit) -> None:
    events = {"shifts": from_queue(count=2)}
    first = await stopped_after_recording(waits, events)
    async with waits.running(events) as wait:
        assert waits.ids("shifts") == [first]
        assert waits.told()[-1] == (first, "accepted")
        second = waits.send("shift")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ids("shifts") == [first, second]


async def test_a_message_recorded_but_not_marked_is_recorded_again_to_the_same_effect(waits: WaitKit) -> None:
    events = {"one": from_queue()}
    first = await stopped_after_recording(waits, events)
    async with waits.running(events) as wait:
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ids("one") == [first]
    assert waits.told()[-1] == (first, "accepted")


async def test_a_copy_of_what_a_green_marker_holds_is_acknowledged(waits: WaitKit) -> None:
    events = {"stock": from_queue("shift"), "orders": from_queue("orders")}
    stock = await stopped_after_recording(waits, events)
    waits.ledger.marked(GROUP, "stock")  # Airflow had taken the mark, but nobody heard of it
    async with waits.running(events) as wait:
        assert waits.told()[-1] == (stock, "accepted")
        waits.send("orders")
        verdict = await wait.verdict()
    assert verdict.received["stock"]["id"] == stock


async def test_everything_was_received_already(waits: WaitKit) -> None:
    events = {"stock": from_queue(), "ticks": from_log(count=2)}
    async with waits.running(events) as wait:
        waits.send("stock")
        waits.send("tick", to="log")
        waits.send("tick", to="log")
        first = await wait.verdict()
    opened = waits.broker.statistics().opened
    async with waits.running(events) as wait:
        assert await wait.verdict() == first
    assert waits.broker.statistics().opened == opened, "there is nothing to listen for"


async def test_stopped_between_recording_and_marking(waits: WaitKit) -> None:
    events = {"shifts": from_queue(count=2), "one": from_log("one")}
    async with waits.running(events) as wait:
        first = waits.send("shift")
        await idle()
        second = waits.send("shift")
        await soon(waits.ledger.wait_for_recorded(2))
        waits.ledger.pause()
        await wait.kill()
    assert waits.ids("shifts") == [first, second]
    assert waits.states("shifts") == [None]
    waits.ledger.resume()
    async with waits.running(events) as wait:
        assert waits.states("shifts") == ["success"]
        waits.send("one", to="log")
        assert (await wait.verdict()).arrivals == {"shifts": 2, "one": 1}
    assert waits.ids("shifts") == [first, second]


async def test_a_cleared_marker_begins_anew(waits: WaitKit) -> None:
    """Facts of the round before are complete: they do not count in this one."""
    events = {"shifts": from_queue(count=2), "stock": from_queue("stock", channel="stock")}
    async with waits.running(events) as wait:
        old = [waits.send("shift"), waits.send("shift")]
        waits.send("stock", to="stock")
        assert (await wait.verdict()).status is Status.COMPLETE
    for event in events:
        waits.ledger.clear(GROUP, event)
    async with waits.running(events) as wait:
        assert waits.states("shifts", "stock") == [None, None]
        new = [waits.send("shift"), waits.send("shift")]
        stock = waits.send("stock", to="stock")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ids("shifts") == new != old
    assert waits.ids("stock") == [stock]


async def test_an_incomplete_marker_that_is_cleared_goes_on(waits: WaitKit) -> None:
    """After a timeout the sensor is cleared with what is upstream_failed: what has come is not asked for again."""
    events = {"shifts": from_queue(count=2)}
    async with waits.running(events, timeout=10) as wait:
        first = waits.send("shift")
        await waits.later(10)
        assert (await wait.verdict()).missing == ["shifts (1 of 2)"]
    waits.ledger.clear(GROUP, "shifts")
    async with waits.running(events) as wait:
        second = waits.send("shift")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ids("shifts") == [first, second]


async def test_two_waits_of_one_group_share_a_queue(waits: WaitKit) -> None:
    """A triggerer that was given up still lives: each gets some of the messages, and together they complete it."""
    events = {"shifts": from_queue(count=4)}
    async with waits.running(events):
        sent = [waits.send("shift", n=0)]
        await idle()
        async with waits.running(events) as second:
            sent += [waits.send("shift", n=n) for n in (1, 2, 3)]
            verdict = await second.verdict()
    assert verdict.status is Status.COMPLETE
    assert sorted(waits.ids("shifts")) == sorted(sent)
    assert sorted(payload["n"] for payload in waits.ledger.payload(GROUP, "shifts")) == [0, 1, 2, 3]


async def test_two_waits_that_record_different_messages_at_the_same_time(waits: WaitKit) -> None:
    # Two queues stand for one queue whose messages two triggerers share out.
    one = {"shifts": from_queue(count=2, channel="left")}
    other = {"shifts": from_queue(count=2, channel="right")}
    async with waits.running(one) as first, waits.running(other) as second:
        waits.ledger.pause()
        sent = {waits.send("shift", to="left"), waits.send("shift", to="right")}
        await idle()
        waits.ledger.resume()
        assert (await first.verdict()).status is Status.COMPLETE
        assert (await second.verdict()).status is Status.COMPLETE
    assert set(waits.ids("shifts")) == sent
    assert [waits.told("left")[0][1], waits.told("right")[0][1]] == ["accepted", "accepted"]


async def test_two_waits_and_only_one_place_left(waits: WaitKit) -> None:
    one, other = {"stock": from_queue(channel="left")}, {"stock": from_queue(channel="right")}
    async with waits.running(one) as first, waits.running(other) as second:
        waits.ledger.pause()
        waits.send("a", to="left")
        waits.send("b", to="right")
        await idle()
        waits.ledger.resume()
        left, right = await first.verdict(), await second.verdict()
    assert left.received == right.received, "both say what the marker holds"
    assert len(waits.ids("stock")) == 1
    outcomes = sorted([waits.told("left")[0][1], waits.told("right")[0][1]])
    assert outcomes == ["accepted", "released"], "what the marker does not hold goes back to its broker"


async def test_what_the_other_wait_recorded_was_not_marked_by_hand(waits: WaitKit) -> None:
    one = {"a": from_queue(channel="left"), "b": from_log("b")}
    other = {"a": from_queue(channel="right"), "b": from_log("b")}
    async with waits.running(one) as first, waits.running(other) as second:
        identity = waits.send("a", to="left")
        await idle()
        waits.send("b", to="log")
        assert (await first.verdict()).received == (await second.verdict()).received
    assert waits.ids("a") == [identity]
    assert (await second.verdict()).received["a"]["id"] == identity
