"""The deadline: what it names, what it still lets in, and what it does not wait for."""

from __future__ import annotations

from datetime import timedelta

from event_triggers.testing import MemoryBroker
from event_triggers.verdict import Status
from event_triggers.wait import FINISH_RECORDING, FINISH_SETTLING
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


async def test_it_names_what_is_missing(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock"), "shifts": from_queue(channel="x", count=3)}
    async with waits.running(events, timeout=60) as wait:
        identity = waits.send("orders", to="log")
        waits.send("shift", to="x")
        await waits.later(59)
        assert not wait.over
        await waits.later(1)
        verdict = await wait.verdict()
    assert verdict.status is Status.TIMEOUT
    assert verdict.missing == ["stock", "shifts (1 of 3)"]
    assert verdict.text == ""
    assert verdict.arrivals == {"orders": 1, "shifts": 1}
    assert verdict.received["orders"]["id"] == identity
    assert waits.states("orders", "stock", "shifts") == ["success", None, None]


async def test_what_is_being_recorded_is_finished(waits: WaitKit) -> None:
    async with waits.running({"orders": from_log("orders"), "stock": from_queue("stock")}, timeout=60) as wait:
        waits.ledger.pause()
        waits.send("orders", to="log")
        await soon(waits.ledger.wait_for_waiting())
        await waits.later(60)
        assert not wait.over
        waits.ledger.resume()
        verdict = await wait.verdict()
    assert verdict.status is Status.TIMEOUT
    assert verdict.missing == ["stock"]
    assert waits.states("orders") == ["success"]


async def test_the_last_message_in_the_last_moment_completes_the_group(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue("stock")}, timeout=60) as wait:
        waits.ledger.pause()
        waits.send("stock")
        await soon(waits.ledger.wait_for_waiting())
        await waits.later(60)
        waits.ledger.resume()
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert [outcome for _, outcome in waits.told()] == ["accepted"]


async def test_a_broker_that_is_not_told_does_not_hold_the_verdict_up(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue("stock")}, timeout=600) as wait:
        waits.broker.fail_next_settle(OSError("gone"), times=1000)
        waits.send("stock")
        await idle()
        waits.clock.advance(FINISH_SETTLING)
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE


async def test_when_airflow_does_not_take_it_the_reason_is_named(waits: WaitKit) -> None:
    events = {"stock": from_queue("stock", per_group=True), "orders": from_log("orders")}
    async with waits.running(events, timeout=60) as wait:
        waits.ledger.pause("Airflow answered 403")
        identity = waits.send("stock")
        await soon(waits.ledger.wait_for_waiting())
        await waits.later(60)
        assert not wait.over
        await waits.later(FINISH_RECORDING)
        verdict = await wait.verdict()
    assert verdict.status is Status.TIMEOUT
    assert verdict.text == "Airflow answered 403"
    assert verdict.missing == ["stock, came but not recorded yet", "orders"]
    assert verdict.arrivals == {}
    assert waits.told() == [(identity, "abandoned")]
    assert waits.broker.sessions("queue") == {GROUP.identity}, "a retry still finds the message"


async def test_when_the_ledger_cannot_be_opened_the_reason_is_named(waits: WaitKit) -> None:
    waits.ledger.pause("no credentials for Airflow's API")
    async with waits.running({"stock": from_queue("stock")}, timeout=60) as wait:
        await waits.later(60)
        await waits.later(FINISH_RECORDING)
        verdict = await wait.verdict()
    assert (verdict.status, verdict.missing) == (Status.TIMEOUT, ["stock"])
    assert verdict.text == "no credentials for Airflow's API"


async def test_a_broker_that_is_away_does_not_hold_the_deadline_up_for_long(waits: WaitKit) -> None:
    waits.broker.fail_next_open(OSError("refused"), times=1000)
    async with waits.running({"stock": from_queue("stock")}, timeout=60) as wait:
        await waits.later(60)
        await waits.later(FINISH_RECORDING)
        assert (await wait.verdict()).status is Status.TIMEOUT


async def test_a_wait_that_starts_after_its_deadline_knows_what_was_received(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock")}
    async with waits.running(events, timeout=60):
        waits.send("orders", to="log")
        await idle()
    waits.clock.advance(100)
    async with waits.running(events, timeout=60) as wait:
        verdict = await wait.verdict()
    assert (verdict.status, verdict.missing) == (Status.TIMEOUT, ["stock"])


async def test_a_wait_that_starts_after_its_deadline_is_complete_when_all_was_received(waits: WaitKit) -> None:
    async with waits.running({"orders": from_log("orders")}) as wait:
        waits.send("orders", to="log")
        await wait.verdict()
    waits.clock.advance(1000)
    async with waits.running({"orders": from_log("orders")}, timeout=60) as wait:
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert verdict.received["orders"]["id"] == waits.ids("orders")[0]


async def test_a_wait_that_starts_after_its_deadline_still_reads_what_came_in_time(waits: WaitKit) -> None:
    """Its triggerer was away when the message came, and when the time was up."""
    in_time, too_late = waits.start + timedelta(seconds=50), waits.start + timedelta(seconds=70)
    waits.broker.publish("log", {"what": "orders"}, timestamp=in_time)
    waits.broker.publish("log", {"what": "stock"}, timestamp=too_late)
    waits.clock.advance(100)
    async with waits.running({"orders": from_log("orders"), "stock": from_log("stock")}, timeout=60) as wait:
        verdict = await wait.verdict()
    assert (verdict.status, verdict.missing) == (Status.TIMEOUT, ["stock"])
    assert waits.states("orders", "stock") == ["success", None]


async def test_nothing_is_counted_after_the_verdict(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue("stock")}, timeout=60) as wait:
        await waits.later(60)
        assert (await wait.verdict()).status is Status.TIMEOUT
    waits.send("stock")
    await idle()
    assert MemoryBroker.named().statistics().open_streams == 0
    assert waits.ids("stock") == []
