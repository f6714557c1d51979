"""What people do to markers while a group waits, and before."""

from __future__ import annotations

import pytest

from event_triggers.verdict import Status
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


@pytest.mark.parametrize("state", ["success", "skipped", "removed"])
@pytest.mark.parametrize("before", [True, False], ids=["before the wait", "during the wait"])
async def test_a_marker_marked_by_hand_counts(waits: WaitKit, state: str, before: bool) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock")}
    if before:
        waits.ledger.mark_by_hand(GROUP, "stock", state)
    async with waits.running(events) as wait:
        if not before:
            waits.ledger.mark_by_hand(GROUP, "stock", state)
            await idle()
        waits.send("orders", to="log")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert verdict.received["stock"] == {"marked_by_hand": state, "messages": []}
    assert verdict.received["orders"]["source"] == "memory-log"
    assert verdict.arrivals == {"orders": 1}


@pytest.mark.parametrize("before", [True, False], ids=["before the wait", "during the wait"])
async def test_a_marker_marked_failed_fails_the_group(waits: WaitKit, before: bool) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock", per_group=True)}
    if before:
        waits.ledger.mark_by_hand(GROUP, "stock", "failed")
    async with waits.running(events) as wait:
        if not before:
            waits.ledger.mark_by_hand(GROUP, "stock", "failed")
        verdict = await wait.verdict()
    assert verdict.status is Status.FAILED
    assert verdict.text == "the marker of stock was marked failed; clear it together with the sensor to wait again"
    assert verdict.missing == ["orders"]
    assert waits.broker.sessions("queue") == set()


async def test_a_green_marker_marked_failed_fails_the_group(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock")}
    async with waits.running(events) as wait:
        waits.send("orders", to="log")
        await idle()
        waits.ledger.mark_by_hand(GROUP, "orders", "failed")
        assert (await wait.verdict()).status is Status.FAILED


async def test_the_last_marker_by_hand_completes_the_group(waits: WaitKit) -> None:
    async with waits.running({"orders": from_log("orders")}) as wait:
        waits.ledger.mark_by_hand(GROUP, "orders", "success")
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_messages_of_an_event_marked_by_hand_are_given_back(waits: WaitKit) -> None:
    async with waits.running({"orders": from_log("orders"), "stock": from_queue("stock")}):
        waits.ledger.mark_by_hand(GROUP, "stock", "success")
        await idle()
        waits.broker.publish("queue", {"what": "stock"})
        await idle()
        assert waits.ids("stock") == []
        assert [outcome for _, outcome in waits.told()] in ([], ["released"])
        assert waits.broker.undelivered("queue") == 1


async def test_marked_by_hand_while_its_message_is_recorded(waits: WaitKit) -> None:
    """The message wins: it is there, and the marker would have been marked in the same moment."""
    async with waits.running({"stock": from_queue("stock"), "orders": from_log("orders")}) as wait:
        waits.ledger.pause()
        identity = waits.send("stock")
        await soon(waits.ledger.wait_for_waiting())
        waits.ledger.mark_by_hand(GROUP, "stock", "failed")
        await idle()
        assert not wait.over
        waits.ledger.resume()
        await idle()
        assert waits.states("stock") == ["success"]
        waits.send("orders", to="log")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert verdict.received["stock"]["id"] == identity


async def test_marked_by_hand_while_one_of_several_messages_is_recorded(waits: WaitKit) -> None:
    async with waits.running({"shifts": from_queue(count=3)}) as wait:
        waits.ledger.pause()
        identity = waits.send("shift")
        await soon(waits.ledger.wait_for_waiting())
        waits.ledger.mark_by_hand(GROUP, "shifts", "success")
        await idle()
        waits.ledger.resume()
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert verdict.received["shifts"]["marked_by_hand"] == "success"
    assert [facts["id"] for facts in verdict.received["shifts"]["messages"]] == [identity]
    assert waits.told() == [(identity, "accepted")]


async def test_marked_by_hand_with_some_of_its_messages_before_a_restart(waits: WaitKit) -> None:
    events = {"shifts": from_queue(count=3), "orders": from_log("orders")}
    async with waits.running(events):
        identity = waits.send("shift")
        await idle()
    waits.ledger.mark_by_hand(GROUP, "shifts", "success")
    async with waits.running(events) as wait:
        waits.send("orders", to="log")
        received = (await wait.verdict()).received["shifts"]
    assert received["marked_by_hand"] == "success"
    assert [facts["id"] for facts in received["messages"]] == [identity]


async def test_a_marker_marked_by_hand_in_a_new_round_has_no_message(waits: WaitKit) -> None:
    events = {"stock": from_queue("stock"), "orders": from_log("orders")}
    async with waits.running(events):
        waits.send("stock")
        await idle()
    waits.ledger.clear(GROUP, "stock")
    waits.ledger.mark_by_hand(GROUP, "stock", "success")
    async with waits.running(events) as wait:
        waits.send("orders", to="log")
        verdict = await wait.verdict()
    assert verdict.received["stock"] == {"marked_by_hand": "success", "messages": []}


async def test_a_marker_that_is_upstream_failed_is_waited_for(waits: WaitKit) -> None:
    """As when the sensor is cleared after a timeout, and its markers are not."""
    waits.ledger.marker(GROUP, "stock").state = "upstream_failed"
    async with waits.running({"stock": from_queue("stock")}) as wait:
        waits.send("stock")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.states("stock") == ["success"]
