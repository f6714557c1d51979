"""Waits whose condition can hold before all events have come: what is marked, skipped, failed then."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

import pytest

from event_triggers.condition import at_least
from event_triggers.event import Event
from event_triggers.ledger import GroupRef
from event_triggers.terms import Terms
from event_triggers.testing.ledger import _MemoryBook
from event_triggers.verdict import Status
from event_triggers.wait import FINISH_RECORDING, JOIN_AGAIN
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue

JOINED = "inputs.join"


def joined(condition: str) -> Terms:
    return Terms(condition=condition, join=JOINED)


async def hold_join(waits: WaitKit) -> None:
    """Let the time pass in which the join is marked again."""
    for seconds in JOIN_AGAIN:
        await waits.later(seconds)


def three() -> dict[str, Event]:
    return {name: from_log(name) for name in ("orders", "stock", "override")}


@pytest.mark.parametrize(
    ("condition", "come"),
    [
        ("any", ["stock"]),
        (at_least(2), ["override", "orders"]),
        ("(orders and stock) or override", ["override"]),
        ("(orders and stock) or override", ["stock", "orders"]),
    ],
)
async def test_it_is_complete_when_the_condition_holds(waits: WaitKit, condition: str, come: list[str]) -> None:
    async with waits.running(three(), terms=joined(condition)) as running:
        for what in come:
            assert not running.over, f"before {what}"
            waits.send(what, to="log")
            await idle()
        verdict = await running.verdict()
    assert verdict.status is Status.COMPLETE
    assert sorted(verdict.received) == sorted(come)
    states = dict(zip(three(), waits.states(*three()), strict=True))
    assert states == {name: "success" if name in come else "skipped" for name in three()}
    assert waits.ledger.state(GROUP, JOINED) == "success"


async def test_the_join_is_marked_before_anything_is_skipped(waits: WaitKit) -> None:
    async with waits.running(three(), terms=joined("any")) as running:
        waits.send("orders", to="log")
        await running.verdict()
    marks = [(entry.event, entry.what) for entry in waits.ledger.history if entry.kind == "marked"]
    assert marks[:2] == [("orders", "success"), (JOINED, "success")]
    assert sorted(marks[2:]) == [("override", "skipped"), ("stock", "skipped")]


async def test_nothing_is_decided_before_the_others_are_skipped(waits: WaitKit) -> None:
    """An open marker behind a sensor that is through would run, and look as if its event had come."""
    async with waits.running(three(), terms=joined("any"), timeout=600) as running:
        waits.send("orders", to="log")
        await soon(waits.ledger.wait_for_recorded())
        waits.ledger.pause()
        await idle()
        await waits.later(900)
        assert not running.over
        waits.ledger.resume()
        assert (await running.verdict()).status is Status.COMPLETE
    assert waits.states("stock", "override") == ["skipped", "skipped"]


async def test_nothing_that_happens_meanwhile_decides_before_the_others_are_skipped(
    waits: WaitKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the markers finds the condition holding, too, while the first is about to skip the rest."""
    may_end = asyncio.Event()
    end = _MemoryBook.end

    async def slow_end(book: _MemoryBook, event: str, state: str, note: str) -> None:
        await may_end.wait()
        await end(book, event, state, note)

    monkeypatch.setattr(_MemoryBook, "end", slow_end)
    async with waits.running(three(), terms=joined("any")) as running:
        waits.send("orders", to="log")
        await idle()
        waits.ledger.mark_by_hand(GROUP, "orders", "success")
        await idle()
        assert not running.over
        may_end.set()
        assert (await running.verdict()).status is Status.COMPLETE
    assert waits.states("stock", "override") == ["skipped", "skipped"]


async def test_what_has_come_with_it_is_recorded_too(waits: WaitKit) -> None:
    waits.send("orders", to="log")
    waits.send("stock", to="log")
    async with waits.running(three(), terms=joined("any")) as running:
        verdict = await running.verdict()
    assert sorted(verdict.received) == ["orders", "stock"]
    assert waits.states("orders", "stock", "override") == ["success", "success", "skipped"]


async def test_optional_events_are_shown_and_not_waited_for(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "extra": replace(from_log("extra"), required=False)}
    async with waits.running(events, terms=joined("all")) as running:
        waits.send("extra", to="log")
        await idle()
        assert (waits.states("extra"), running.over) == (["success"], False)
        waits.send("orders", to="log")
        assert (await running.verdict()).status is Status.COMPLETE


async def test_what_is_missing_names_no_optional_event(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "extra": replace(from_log("extra"), required=False)}
    async with waits.running(events, terms=joined("all"), timeout=60) as running:
        await waits.later(60)
        verdict = await running.verdict()
    assert (verdict.status, list(verdict.missing)) == (Status.TIMEOUT, ["orders"])


async def test_a_restart_between_join_and_skips_does_them_again(waits: WaitKit) -> None:
    async with waits.running(three(), terms=joined("any")) as running:
        waits.send("orders", to="log")
        await soon(waits.ledger.wait_for_recorded())
        waits.ledger.pause()
        await idle()
        await running.kill()
        waits.ledger.resume()
    async with waits.running(three(), terms=joined("any")) as running:
        assert (await running.verdict()).status is Status.COMPLETE
    assert waits.states("orders", "stock", "override") == ["success", "skipped", "skipped"]


async def test_its_own_skips_are_not_taken_for_marks_by_hand(waits: WaitKit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with waits.running(three(), terms=joined("any")) as running:
            waits.send("orders", to="log")
            verdict = await running.verdict()
    assert list(verdict.received) == ["orders"]
    assert "by hand" not in caplog.text


async def test_a_marker_failed_by_hand_fails_only_what_cannot_do_without(waits: WaitKit) -> None:
    async with waits.running(three(), terms=joined("(orders and stock) or override")) as running:
        waits.ledger.mark_by_hand(GROUP, "stock", "failed")
        await idle()
        assert not running.over
        waits.send("override", to="log")
        await hold_join(waits)
        verdict = await running.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.states("orders", "stock", "override") == ["skipped", "failed", "success"]
    assert waits.ledger.state(GROUP, JOINED) == "success"


async def test_when_the_condition_can_hold_no_longer_the_group_fails(waits: WaitKit) -> None:
    async with waits.running(three(), terms=joined("(orders and stock) or override")) as running:
        waits.ledger.mark_by_hand(GROUP, "stock", "failed")
        waits.ledger.mark_by_hand(GROUP, "override", "failed")
        verdict = await running.verdict()
    assert verdict.status is Status.FAILED
    assert "without that '(orders and stock) or override' cannot hold" in verdict.text
    assert waits.ledger.state(GROUP, JOINED) is None


# ------------------------------------------------------------------ an event's own time


async def test_an_event_that_is_late_fails_and_the_group_with_it(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, timeout=600) as running:
        await waits.later(59)
        assert not running.over
        await waits.later(1)
        verdict = await running.verdict()
    assert verdict.status is Status.LATE
    assert verdict.text == "orders has not come in its own time"
    assert list(verdict.missing) == ["stock"]
    assert waits.states("orders", "stock") == ["failed", None]


async def test_the_group_goes_on_without_a_late_event_that_it_can_do_without(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, terms=joined("any"), timeout=600) as running:
        await waits.later(60)
        assert (waits.states("orders"), running.over) == (["failed"], False)
        waits.send("orders", to="log")
        await idle()
        assert waits.states("orders") == ["failed"], "what comes late does not count"
        waits.send("stock", to="log")
        await hold_join(waits)
        verdict = await running.verdict()
    assert verdict.status is Status.COMPLETE
    assert list(verdict.received) == ["stock"]
    assert waits.ledger.state(GROUP, JOINED) == "success"


@pytest.mark.parametrize("seconds", JOIN_AGAIN)
async def test_a_scheduler_that_fails_the_join_behind_the_mark_is_overruled(waits: WaitKit, seconds: float) -> None:
    """It looked before the join was marked, saw the failed marker, and writes what it made of that afterwards."""
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, terms=joined("any"), timeout=600) as running:
        await waits.later(60)
        waits.send("stock", to="log")
        await idle()
        assert waits.ledger.state(GROUP, JOINED) == "success", "what follows need not wait for it"
        for pause in JOIN_AGAIN:
            assert not running.over
            if pause == seconds:
                waits.ledger.mark_by_hand(GROUP, JOINED, "upstream_failed")
            await waits.later(pause)
            assert waits.ledger.state(GROUP, JOINED) == "success"
        assert (await running.verdict()).status is Status.COMPLETE


async def test_an_event_in_time_is_not_failed(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, timeout=600) as running:
        waits.send("orders", to="log")
        await idle()
        await waits.later(120)
        assert (waits.states("orders"), running.over) == (["success"], False)


async def test_what_is_being_recorded_when_its_time_is_up_has_come(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, timeout=600) as running:
        waits.ledger.pause()
        waits.send("orders", to="log")
        await idle()
        await waits.later(60)
        waits.ledger.resume()
        await idle()
        assert (waits.states("orders"), running.over) == (["success"], False)


async def test_events_of_the_same_time_fail_together_while_their_broker_is_away(waits: WaitKit) -> None:
    events = {name: replace(from_log(name), timeout=60) for name in ("orders", "stock")}
    events["override"] = from_log("override", channel="other")
    waits.broker.fail_next_open(OSError("away"), name="log", times=1000)
    async with waits.running(events, terms=joined("any"), timeout=600):
        await waits.later(60)
        assert waits.states("orders", "stock") == [None, None], "what came in time may still be read"
        await waits.later(FINISH_RECORDING)
        assert waits.states("orders", "stock") == ["failed", "failed"]


async def test_what_is_stamped_after_its_own_time_does_not_count_while_it_is_caught_up_with(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock", channel="other")}
    waits.broker.fail_next_open(OSError("away"), name="other", times=1000)
    async with waits.running(events, terms=joined("any"), timeout=600):
        await waits.later(61)
        waits.send("orders", to="log")
        await idle()
        assert waits.states("orders") == [None]
        await waits.later(FINISH_RECORDING)
        assert waits.states("orders") == ["failed"]


async def test_a_restart_after_its_time_finds_it_late(waits: WaitKit) -> None:
    events = {"orders": replace(from_log("orders"), timeout=60), "stock": from_log("stock")}
    async with waits.running(events, terms=joined("any"), timeout=600) as running:
        await waits.later(60)
        await running.kill()
    async with waits.running(events, terms=joined("any"), timeout=600) as running:
        assert not running.over
        waits.send("stock", to="log")
        await hold_join(waits)
        verdict = await running.verdict()
    assert dict(verdict.received).keys() == {"stock"}, "no mark by hand"


# ------------------------------------------------------------------ telling what is missing


async def test_it_warns_once_when_something_is_missing(waits: WaitKit) -> None:
    terms = Terms(warn_after=60)
    async with waits.running(three(), terms=terms, timeout=600) as running:
        waits.send("orders", to="log")
        await waits.later(60)
        verdict = await running.verdict()
    assert (verdict.status, list(verdict.missing)) == (Status.WARNING, ["stock", "override"])
    async with waits.running(three(), terms=terms, timeout=600, warned=True) as running:
        await waits.later(60)
        assert not running.over


async def test_no_warning_when_all_is_there(waits: WaitKit) -> None:
    async with waits.running(three(), terms=Terms(warn_after=60), timeout=600) as running:
        for what in three():
            waits.send(what, to="log")
        assert (await running.verdict()).status is Status.COMPLETE


async def test_a_warning_keeps_what_the_brokers_have_for_the_group(waits: WaitKit) -> None:
    events = {"orders": from_queue("orders")}
    async with waits.running(events, terms=Terms(warn_after=60), timeout=600) as running:
        await waits.later(60)
        verdict = await running.verdict()
    assert not verdict.final


# ------------------------------------------------------------------ until


async def test_what_is_stamped_later_does_not_count(waits: WaitKit) -> None:
    until = (waits.start + timedelta(seconds=100)).isoformat()
    events = {"orders": replace(from_log("orders"), until=until)}
    async with waits.running(events, timeout=600) as running:
        await waits.later(101)
        waits.send("orders", to="log")
        await idle()
        assert waits.states("orders") == [None]
        await waits.later(500)
        assert (await running.verdict()).status is Status.TIMEOUT


async def test_two_groups_keep_their_own_conditions(waits: WaitKit) -> None:
    other = GroupRef("daily", "manual__2", "inputs.wait")
    async with (
        waits.running(three(), terms=joined("any")) as first,
        waits.running(three(), terms=joined(at_least(2)), group=other) as second,
    ):
        waits.send("orders", to="log")
        assert (await first.verdict()).status is Status.COMPLETE
        await idle()
        assert not second.over
        waits.send("stock", to="log")
        assert (await second.verdict()).status is Status.COMPLETE
    assert waits.states(*three(), group=other) == ["success", "success", "skipped"]
