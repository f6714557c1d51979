"""With a handler of arrivals: each message is handed over once, across all resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from event_triggers.event import Event
from event_triggers.verdict import Status, Verdict
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


async def resume(waits: WaitKit, events: Mapping[str, Event], handled: Mapping[str, int], **options: Any) -> Verdict:
    """What the next wait, with what was handed over so far, ends with."""
    async with waits.running(events, handled=handled, **options) as wait:
        return await wait.verdict()


async def test_each_arrival_ends_a_wait_and_the_next_goes_on(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "shifts": from_queue(count=2, per_group=True)}
    async with waits.running(events, handled={}) as wait:
        await idle()
        assert not wait.over
        waits.send("shift")
        verdict = await wait.verdict()
    assert (verdict.status, verdict.arrivals) == (Status.ARRIVALS, {"shifts": 1})
    assert verdict.missing == ["orders", "shifts (1 of 2)"]
    assert waits.broker.sessions("queue") == {GROUP.identity}, "there is more to come"

    async with waits.running(events, handled=verdict.arrivals) as wait:
        await idle()
        assert not wait.over
        waits.send("orders", to="log")
        verdict = await wait.verdict()
    assert (verdict.status, verdict.arrivals) == (Status.ARRIVALS, {"orders": 1, "shifts": 1})

    async with waits.running(events, handled=verdict.arrivals) as wait:
        await idle()
        waits.send("shift")
        verdict = await wait.verdict()
    assert (verdict.status, verdict.arrivals) == (Status.COMPLETE, {"orders": 1, "shifts": 2})
    assert waits.broker.sessions("queue") == set()


async def test_nothing_is_lost_between_two_waits(waits: WaitKit) -> None:
    events = {"shifts": from_queue(count=5), "ticks": from_log(count=3)}
    handled: Mapping[str, int] = {}
    for sent in range(8):
        waits.send("shift", n=sent)
        waits.send("tick", n=sent, to="log")
        verdict = await resume(waits, events, handled)
        assert sum(verdict.arrivals.values()) > sum(handled.values())
        handled = verdict.arrivals
        if verdict.status is Status.COMPLETE:
            break
    assert handled == {"shifts": 5, "ticks": 3}
    assert [payload["n"] for payload in waits.ledger.payload(GROUP, "shifts")] == [0, 1, 2, 3, 4]


async def test_what_was_recorded_before_a_restart_is_handed_over_at_once(waits: WaitKit) -> None:
    """The verdict was lost with its triggerer: the same arguments begin again."""
    events = {"orders": from_log("orders"), "shifts": from_queue(count=3)}
    async with waits.running(events, handled={}) as wait:
        waits.send("shift")
        waits.send("orders", to="log")
        first = await wait.verdict()
    assert await resume(waits, events, {}) == first
    assert first.arrivals


async def test_a_restart_does_not_hand_over_again_what_was_processed(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock")}
    async with waits.running(events, handled={}) as wait:
        waits.send("orders", to="log")
        handled = (await wait.verdict()).arrivals
    async with waits.running(events, handled=handled) as wait:
        await idle()
        assert not wait.over


async def test_messages_that_came_together_are_handed_over_together(waits: WaitKit) -> None:
    async with waits.running({"shifts": from_queue(count=5)}, handled={}) as wait:
        waits.ledger.pause()
        waits.send("shift")
        await soon(waits.ledger.wait_for_waiting())
        waits.send("shift")
        waits.send("shift")
        await idle()
        waits.ledger.resume()
        verdict = await wait.verdict()
    assert verdict.arrivals == {"shifts": 3}
    assert {outcome for _, outcome in waits.told()} == {"accepted"}


async def test_a_mark_by_hand_is_no_arrival(waits: WaitKit) -> None:
    async with waits.running({"orders": from_log("orders"), "stock": from_queue("stock")}, handled={}) as wait:
        waits.ledger.mark_by_hand(GROUP, "orders", "success")
        await idle()
        assert not wait.over
        waits.send("stock")
        verdict = await wait.verdict()
    assert (verdict.status, verdict.arrivals) == (Status.COMPLETE, {"stock": 1})


async def test_the_deadline_hands_over_what_is_left(waits: WaitKit) -> None:
    """A resume that comes back after the deadline: what has come meanwhile is in the verdict."""
    events = {"ticks": from_log(count=3)}
    waits.send("tick", to="log")
    waits.clock.advance(100)
    verdict = await resume(waits, events, {}, timeout=60)
    assert verdict.arrivals == {"ticks": 1}
    verdict = await resume(waits, events, verdict.arrivals, timeout=60)
    assert (verdict.status, verdict.missing) == (Status.TIMEOUT, ["ticks (1 of 3)"])


async def test_a_failed_marker_hands_over_what_is_left(waits: WaitKit) -> None:
    events = {"ticks": from_log(count=3), "stock": from_queue("stock")}
    async with waits.running(events):
        waits.send("tick", to="log")
        await idle()
    waits.ledger.mark_by_hand(GROUP, "stock", "failed")
    verdict = await resume(waits, events, {})
    assert (verdict.status, verdict.arrivals) == (Status.FAILED, {"ticks": 1})
