"""A wait from beginning to end: what is recorded, with what facts, and when the broker is told."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.sources.base import Source
from event_triggers.testing import MemoryLog, MemoryQueue
from event_triggers.verdict import Status, Verdict
from tests.unit.hub_kit import idle
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


async def test_one_message_after_the_other(waits: WaitKit) -> None:
    events = {"orders": from_log("orders"), "stock": from_queue("stock")}
    async with waits.running(events) as wait:
        assert waits.states("orders", "stock") == [None, None]
        order = waits.send("orders", to="log")
        await idle()
        assert waits.states("orders", "stock") == ["success", None]
        assert not wait.over
        waits.send("something else")
        stock = waits.send("stock")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert verdict.missing == []
    assert set(verdict.received) == {"orders", "stock"}
    assert waits.states("orders", "stock") == ["success", "success"]
    assert (waits.ids("orders"), waits.ids("stock")) == ([order], [stock])


async def test_facts_say_what_came_from_where_and_when(waits: WaitKit) -> None:
    sent = waits.start + timedelta(seconds=90)
    async with waits.running({"orders": from_log("orders")}) as wait:
        waits.clock.advance(100)
        identity = waits.broker.publish("log", {"what": "orders", "n": 1}, timestamp=sent)
        verdict = await wait.verdict()
    assert verdict.received == {
        "orders": {
            "source": "memory-log",
            "stream": "log",
            "position": "0@0",
            "id": identity,
            "timestamp": "2030-01-01T00:01:30.000+00:00",
            "received_at": "2030-01-01T00:01:40.000+00:00",
        }
    }
    assert verdict.arrivals == {"orders": 1}
    assert waits.ledger.payload(GROUP, "orders") == {"what": "orders", "n": 1}
    assert waits.ledger.facts(GROUP, "orders") == {
        "wanted": 1,
        "round": "1",
        "messages": [verdict.received["orders"]],
    }
    note = waits.ledger.note(GROUP, "orders")
    assert note == 'memory-log log 0@0, 2030-01-01T00:01:30.000+00:00\n{"what":"orders","n":1}'


async def test_acknowledged_only_after_it_is_recorded(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue()}) as wait:
        waits.ledger.pause()
        waits.send("stock")
        await waits.ledger.wait_for_waiting()
        await idle()
        assert waits.told() == []
        assert waits.states("stock") == [None]
        waits.ledger.resume()
        assert (await wait.verdict()).status is Status.COMPLETE
    assert [outcome for _, outcome in waits.told()] == ["accepted"]


async def test_messages_that_come_while_others_are_recorded(waits: WaitKit) -> None:
    async with waits.running({"a": from_queue("a"), "b": from_queue("b"), "c": from_log("c")}) as wait:
        waits.ledger.pause()
        waits.send("a")
        await waits.ledger.wait_for_waiting()
        waits.send("b")
        waits.send("c", to="log")
        await idle()
        waits.ledger.resume()
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.states("a", "b", "c") == ["success"] * 3
    recorded = [entry.event for entry in waits.ledger.history if entry.kind == "recorded"]
    assert recorded[0] == "a"
    assert sorted(recorded) == ["a", "b", "c"]


async def test_one_message_for_several_events_of_the_group(waits: WaitKit) -> None:
    async with waits.running({"any": from_queue(), "stock": from_queue("stock")}) as wait:
        identity = waits.send("stock")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ids("any") == waits.ids("stock") == [identity]
    assert waits.told() == [(identity, "accepted")]


async def test_one_message_for_several_groups(waits: WaitKit) -> None:
    other = GroupRef("daily", "manual__2", "inputs.wait")
    async with (
        waits.running({"stock": from_queue("stock")}) as first,
        waits.running({"stock": from_queue("stock")}, group=other) as second,
    ):
        identity = waits.send("stock")
        assert (await first.verdict()).status is Status.COMPLETE
        assert (await second.verdict()).status is Status.COMPLETE
    assert waits.ids("stock") == waits.ids("stock", group=other) == [identity]
    assert waits.told() == [(identity, "accepted")]


async def test_what_nobody_wants_is_released(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue("stock")}):
        identity = waits.send("something else")
        await idle()
        assert waits.told() == [(identity, "released")]


async def test_what_cannot_be_decoded_counts_only_where_everything_does(
    waits: WaitKit, caplog: pytest.LogCaptureFixture
) -> None:
    async with waits.running({"raw": from_log(channel="raw"), "stock": from_queue("stock")}) as wait:
        rejected = waits.broker.publish("queue", b"not \xff json")
        waits.broker.publish("raw", b"not \xff json")
        await idle()
        assert waits.told() == [(rejected, "rejected")]
        waits.send("stock")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ledger.payload(GROUP, "raw") == {"base64": "bm90IP8ganNvbg=="}
    assert "not JSON" in caplog.text


async def test_a_tombstone_is_a_message_without_payload(waits: WaitKit) -> None:
    async with waits.running({"gone": from_log()}) as wait:
        waits.broker.publish("log", None, key="order-1")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ledger.payload(GROUP, "gone") is None
    assert "(no body)" in str(waits.ledger.note(GROUP, "gone"))


async def test_a_payload_over_the_limit_becomes_a_reference(waits: WaitKit) -> None:
    async with waits.running({"large": from_log()}, payload_limit=1000) as wait:
        waits.broker.publish("log", {"text": "x" * 1000})
        assert (await wait.verdict()).status is Status.COMPLETE
    payload = waits.ledger.payload(GROUP, "large")
    assert payload["truncated"] is True
    assert payload["size"] > 1000
    assert (payload["source"], payload["stream"], payload["position"]) == ("memory-log", "log", "0@0")
    assert payload["view"].startswith('{"text":"xxx')


async def test_sessions_are_removed_when_the_group_is_over(waits: WaitKit) -> None:
    async with waits.running({"shift": from_queue(per_group=True)}) as wait:
        assert waits.broker.sessions("queue") == {GROUP.identity}
        waits.send("shift")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.broker.sessions("queue") == set()


@pytest.mark.parametrize(
    ("status", "final"),
    [
        (Status.COMPLETE, True),
        (Status.TIMEOUT, True),
        (Status.FAILED, True),
        (Status.ARRIVALS, False),
        (Status.ERROR, False),
    ],
)
def test_which_verdicts_are_final(status: Status, final: bool) -> None:
    assert Verdict(status).final is final


async def test_a_stopped_wait_gives_its_messages_back_and_keeps_its_sessions(
    waits: WaitKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[object] = []
    monkeypatch.setattr(Hub, "forget", lambda *args: forgotten.append(args))
    async with waits.running({"shift": from_queue(per_group=True), "stock": from_queue(channel="stock")}) as wait:
        waits.ledger.pause()
        identity = waits.send("stock", to="stock")
        shift = waits.send("shift")
        await waits.ledger.wait_for_waiting()
        await wait.kill()
        assert wait.task.cancelled()
    assert waits.told("stock") == [(identity, "abandoned")]
    assert waits.told() == [(shift, "abandoned")]
    assert waits.broker.undelivered("stock") == 1
    assert waits.broker.undelivered("queue", group=GROUP.identity) == 1
    assert forgotten == []


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (MemoryQueue("queue", broker="nowhere"), "there is no memory broker 'nowhere'"),
        (MemoryLog("log", broker="nowhere"), "there is no memory broker 'nowhere'"),
    ],
)
async def test_what_waiting_cannot_mend_ends_the_wait(waits: WaitKit, source: Source, text: str) -> None:
    event = Event(source, since="2030-01-01T00:00:00Z")
    async with waits.running({"bad": event, "stock": from_queue(per_group=True)}) as wait:
        verdict = await wait.verdict()
    assert verdict.status is Status.ERROR
    assert verdict.text.startswith("ConfigurationError: ")
    assert text in verdict.text
    assert waits.broker.sessions("queue") == {GROUP.identity}, "a retry goes on with the session"


async def test_a_callable_that_cannot_be_imported_ends_the_wait(waits: WaitKit) -> None:
    async with waits.running({"bad": Event(MemoryQueue("queue"), match="no.such.function")}) as wait:
        verdict = await wait.verdict()
    assert verdict.status is Status.ERROR
    assert "match='no.such.function' cannot be imported here" in verdict.text


async def test_a_broken_stream_is_waited_for(waits: WaitKit) -> None:
    async with waits.running({"stock": from_queue("stock")}) as wait:
        waits.broker.cut()
        await idle()
        waits.send("stock")
        await waits.later(60)
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_the_log_tells_the_story(waits: WaitKit, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="event_triggers")
    async with waits.running({"orders": from_log("orders"), "shifts": from_queue(count=2)}) as wait:
        await idle()
        waits.send("orders", to="log")
        await idle()
        waits.send("one")
        await idle()
        waits.send("two")
        await wait.verdict()
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for orders, shifts (0 of 2) until 2030-01-01T00:10:00+00:00",
        "every source is connected, and nothing that is sent from now on is missed",
        "event orders: memory-log log 0@0; missing: shifts (0 of 2)",
        "event shifts (1 of 2): memory-queue queue 0; missing: shifts (1 of 2)",
        "event shifts (2 of 2): memory-queue queue 1; complete",
    ]


async def test_the_verdict_comes_after_the_broker_was_told(waits: WaitKit) -> None:
    other = GroupRef("daily", "manual__2", "inputs.wait")
    async with (
        waits.running({"other": from_queue("other")}, group=other),  # keeps the connection open
        waits.running({"stock": from_queue("stock")}) as wait,
    ):
        waits.broker.fail_next_settle(OSError("busy"))
        identity = waits.send("stock")
        await idle()
        assert waits.states("stock") == ["success"]
        assert not wait.over
        waits.clock.advance(5)
        assert (await wait.verdict()).status is Status.COMPLETE
        assert waits.told() == [(identity, "accepted")]
