"""Waits in which a message counts only together with others: in sequence, within a span, agreeing on a value."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from event_triggers.event import Event
from event_triggers.ledger import Received, facts_of
from event_triggers.terms import Terms
from event_triggers.testing import MemoryQueue
from event_triggers.verdict import Status
from tests.unit.hub_kit import idle
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


@dataclass(frozen=True)
class PrivateQueue(MemoryQueue):
    """A queue that only one group reads, as a durable MQTT session is."""

    private: ClassVar[bool] = True


def pair(kind: str = "log") -> dict[str, Event]:
    make: Any = from_log if kind == "log" else from_queue
    return {"orders": make("orders", channel=kind), "stock": make("stock", channel=kind)}


def private_pair() -> dict[str, Event]:
    return {name: Event(PrivateQueue("own"), match={"what": [name]}) for name in ("orders", "stock")}


AGREEING = Terms(correlate={"orders": "id", "stock": "order.id"})


def send(waits: WaitKit, what: str, value: Any, to: str = "log") -> str:
    fields = {"id": value} if what == "orders" else {"order": {"id": value}}
    return waits.send(what, to=to, **fields)


# ------------------------------------------------------------------ agreeing on a value


@pytest.mark.parametrize("kind", ["log", "queue"])
async def test_only_messages_that_agree_complete_the_group(waits: WaitKit, kind: str) -> None:
    async with waits.running(pair(kind), terms=AGREEING) as wait:
        send(waits, "orders", 17, kind)
        send(waits, "stock", 18, kind)
        await idle()
        assert (waits.states("orders", "stock"), wait.over) == ([None, None], False)
        order = send(waits, "orders", 18, kind)
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ids("orders") == [order]
    assert waits.ledger.payload(GROUP, "orders")["id"] == waits.ledger.payload(GROUP, "stock")["order"]["id"] == 18


async def test_values_agree_as_json_values(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=AGREEING) as wait:
        send(waits, "orders", 1)
        for other in ("1", True):
            send(waits, "stock", other)
        await idle()
        assert not wait.over
        send(waits, "stock", 1.0)
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_a_message_without_the_value_does_not_count_and_is_said(
    waits: WaitKit, caplog: pytest.LogCaptureFixture
) -> None:
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        waits.send("orders")
        waits.send("stock", order={"id": ["a", "list"]})
        await idle()
        assert not wait.over
    assert "has no 'id', so it cannot agree with the others" in caplog.text
    assert "holds a list at 'order.id'" in caplog.text


async def test_what_was_not_chosen_goes_back_to_a_queue_that_others_read(waits: WaitKit) -> None:
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        left = send(waits, "orders", 17, "queue")
        await idle()
        assert waits.told() == [], "until it is decided it stays unanswered"
        order, stock = (send(waits, what, 18, "queue") for what in ("orders", "stock"))
        await wait.verdict()
    told = dict(waits.told())
    assert (told[order], told[stock], told[left]) == ("accepted", "accepted", "released")


async def test_a_restart_finds_what_a_shared_queue_still_has(waits: WaitKit) -> None:
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        send(waits, "orders", 17, "queue")
        await idle()
        await wait.kill()
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        send(waits, "stock", 17, "queue")
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_a_candidate_of_a_queue_of_its_own_is_kept_before_it_is_acknowledged(waits: WaitKit) -> None:
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        order = send(waits, "orders", 17, "own")
        await idle()
        assert waits.told("own") == [(order, "accepted")]
        await wait.kill()
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        send(waits, "stock", 17, "own")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ids("orders") == [order]
    assert waits.ledger.payload(GROUP, "orders") == {"what": "orders", "id": 17}
    assert "orders" in str(waits.ledger.note(GROUP, "orders"))


async def test_what_was_kept_and_not_acknowledged_is_known_when_it_comes_again(waits: WaitKit) -> None:
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        order = send(waits, "orders", 17, "own")
        await idle()
        await wait.kill()
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        assert wait.wait._recorder is not None
        recorded = {one.name: one.recorded for one in wait.wait._recorder.interests()}
        assert recorded == {"orders": {order}, "stock": frozenset()}


async def test_it_is_not_acknowledged_while_it_cannot_be_kept(waits: WaitKit) -> None:
    async with waits.running(private_pair(), terms=AGREEING):
        waits.ledger.pause()
        send(waits, "orders", 17, "own")
        await idle()
        assert waits.told("own") == []
        waits.ledger.resume()
        await idle()
        assert [outcome for _, outcome in waits.told("own")] == ["accepted"]


async def test_what_an_earlier_round_kept_does_not_complete_a_new_one(waits: WaitKit) -> None:
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        send(waits, "orders", 17, "own")
        send(waits, "stock", 17, "own")
        await wait.verdict()
    for event in private_pair():
        waits.ledger.clear(GROUP, event)
    async with waits.running(private_pair(), terms=AGREEING) as wait:
        assert (waits.states("orders", "stock"), wait.over) == ([None, None], False)


async def test_a_restart_while_the_choice_is_recorded_ends_with_the_same_choice(waits: WaitKit) -> None:
    """One of the two was recorded: the other must agree with it, whatever else would."""
    async with waits.running(pair(), terms=AGREEING) as wait:
        send(waits, "orders", 17)
        waits.ledger.pause()
        send(waits, "stock", 17)
        await idle()
        await wait.kill()
    half = pair()
    waits.ledger.resume()
    async with waits.running({"orders": half["orders"]}, terms=Terms(correlate={"orders": "id"})) as wait:
        assert (await wait.verdict()).status is Status.COMPLETE
    send(waits, "orders", 18)
    send(waits, "stock", 18)
    async with waits.running(pair(), terms=AGREEING) as wait:
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ledger.payload(GROUP, "stock")["order"]["id"] == 17


async def test_a_person_may_still_say_that_one_need_not_come(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=AGREEING) as wait:
        send(waits, "orders", 17)
        waits.ledger.mark_by_hand(GROUP, "stock", "success")
        verdict = await wait.verdict()
    assert verdict.status is Status.COMPLETE
    assert waits.ledger.payload(GROUP, "orders")["id"] == 17


async def test_what_is_held_does_not_keep_the_broker_from_bringing_the_rest(
    waits: WaitKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("event_triggers.load.MOST_UNANSWERED", 3)
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        for value in range(10):
            send(waits, "orders", value, "queue")
            await idle()
        send(waits, "stock", 4, "queue")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert sorted(outcome for _, outcome in waits.told()) == ["accepted"] * 2 + ["released"] * 9


async def test_what_is_being_kept_when_the_time_is_up_has_come(waits: WaitKit) -> None:
    async with waits.running(private_pair(), terms=AGREEING, timeout=60) as wait:
        send(waits, "orders", 17, "own")
        await idle()
        waits.ledger.pause()
        send(waits, "stock", 17, "own")
        await waits.later(60)
        assert not wait.over
        waits.ledger.resume()
        assert (await wait.verdict()).status is Status.COMPLETE


async def test_a_message_of_which_the_ledger_holds_another_goes_back(waits: WaitKit) -> None:
    """Another wait of the group has chosen otherwise: what is not recorded is not acknowledged."""
    async with waits.running(pair("queue"), terms=AGREEING) as wait:
        order = send(waits, "orders", 17, "queue")
        await idle()
        waits.ledger.recorded(GROUP, "orders", facts_of([received("other")], 1, "1"))
        stock = send(waits, "stock", 17, "queue")
        await wait.verdict()
    assert dict(waits.told()) == {order: "released", stock: "accepted"}


# ------------------------------------------------------------------ in sequence


async def test_in_a_sequence_what_comes_too_early_does_not_count(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=Terms(sequence=True)) as wait:
        waits.send("stock", to="log")
        await waits.later(1)
        first = waits.send("orders", to="log")
        await idle()
        assert (waits.states("orders", "stock"), wait.over) == (["success", None], False), "green one by one"
        await waits.later(1)
        second = waits.send("stock", to="log")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert (waits.ids("orders"), waits.ids("stock")) == ([first], [second])


async def test_a_sequence_goes_on_after_a_restart(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=Terms(sequence=True)) as wait:
        waits.send("stock", to="log")
        await waits.later(1)
        waits.send("orders", to="log")
        await idle()
        await wait.kill()
    async with waits.running(pair(), terms=Terms(sequence=True)) as wait:
        assert (waits.states("orders", "stock"), wait.over) == (["success", None], False)
        await waits.later(1)
        second = waits.send("stock", to="log")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert waits.ids("stock") == [second]


# ------------------------------------------------------------------ within a span


async def test_messages_too_far_apart_do_not_go_together(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=Terms(within=60)) as wait:
        waits.send("orders", to="log")
        await waits.later(61)
        stock = waits.send("stock", to="log")
        await idle()
        assert (waits.states("orders", "stock"), wait.over) == ([None, None], False)
        await waits.later(30)
        orders = waits.send("orders", to="log")
        assert (await wait.verdict()).status is Status.COMPLETE
    assert (waits.ids("orders"), waits.ids("stock")) == ([orders], [stock])


async def test_the_time_is_up_although_candidates_are_there(waits: WaitKit) -> None:
    async with waits.running(pair(), terms=Terms(within=60), timeout=600) as wait:
        waits.send("orders", to="log")
        await waits.later(600)
        verdict = await wait.verdict()
    assert (verdict.status, list(verdict.missing)) == (Status.TIMEOUT, ["orders", "stock"])


async def test_several_messages_of_one_event_agree_too(waits: WaitKit) -> None:
    events = {"orders": from_log("orders", count=2), "stock": from_log("stock")}
    async with waits.running(events, terms=AGREEING) as wait:
        for what, value in [("orders", 1), ("orders", 2), ("stock", 1), ("stock", 2)]:
            send(waits, what, value)
        await idle()
        assert not wait.over
        send(waits, "orders", 2)
        assert (await wait.verdict()).status is Status.COMPLETE
    assert [one["id"] for one in waits.ledger.payload(GROUP, "orders")] == [2, 2]
    assert "(2 of 2)" in str(waits.ledger.note(GROUP, "orders"))


async def test_too_many_candidates_are_let_go_loudly(
    waits: WaitKit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("event_triggers.choosing.MOST_CANDIDATES", 3)
    async with waits.running(pair("queue"), terms=AGREEING):
        oldest = send(waits, "orders", 0, "queue")
        with caplog.at_level(logging.ERROR):
            for value in range(1, 4):
                send(waits, "orders", value, "queue")
            await idle()
        assert dict(waits.told()) == {oldest: "released"}
    assert "too many messages wait for others to go with; the oldest" in caplog.text


def received(identity: str) -> Received:
    return Received("memory-queue", "queue", identity, identity, None, "2030-01-01T00:00:00.000+00:00", value=17)
