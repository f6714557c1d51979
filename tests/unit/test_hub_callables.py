"""The hub and match callables: users' code, which may do anything and must cost nobody else a message."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from event_triggers import callables
from event_triggers.message import Message
from event_triggers.sources.base import Outcome
from event_triggers.testing import MemoryQueue
from tests.unit.hub_kit import QUEUE, Kit, ScriptQueue, idle, names, numbers, scripted, soon, until, want


class Gate:
    """A callable that blocks until it may go on, and counts how often it was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.may_go_on = threading.Event()

    def __call__(self, message: Message) -> bool:
        self.threads.add(threading.current_thread())
        self.calls.append(message.json["n"])
        return self.may_go_on.wait(10)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.may_go_on.set()
    for thread in gate.threads:
        thread.join(5)


def even(message: Message) -> bool:
    return bool(message.json["n"] % 2 == 0)


async def test_a_callable_decides(kit: Kit) -> None:
    async with kit.group(want(QUEUE, accepts=even, count=9)) as group:
        kit.publish(1, 2, 3, 4, to=QUEUE)
        deliveries = await kit.take(group, 2)
        assert numbers(deliveries) == [2, 4]


def raises(message: Message) -> bool:
    raise ValueError("no such field")


def exits(message: Message) -> bool:
    sys.exit("bye")


def stops(message: Message) -> bool:
    return next(iter(()))


async def is_async(message: Message) -> bool:
    return True


class Undecided:
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


def is_undecided(message: Message) -> Undecided:
    return Undecided()


@pytest.mark.parametrize(
    ("accepts", "text"),
    [
        (raises, "its match callable raised ValueError: no such field"),
        (exits, "its match callable raised SystemExit: bye"),
        (stops, "its match callable raised StopIteration"),
        (is_async, "its match callable is an async function; make it a plain one"),
        (is_undecided, "its match callable raised RuntimeError: neither true nor false"),
    ],
)
async def test_a_callable_that_fails_costs_its_own_event_that_message(
    kit: Kit, caplog: pytest.LogCaptureFixture, accepts: Callable[[Message], bool], text: str
) -> None:
    async with kit.group(want(QUEUE, "faulty", accepts=accepts), want(QUEUE, "good", accepts=even)) as group:
        kit.publish(2, to=QUEUE)
        assert names(await soon(group.receive())) == [("good",)]
    assert f"event faulty: {text}" in caplog.text
    assert "for memory-queue queue 0; the message does not count for it" in caplog.text


async def test_a_callable_that_always_fails_does_not_fill_the_log(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    async with kit.group(want(QUEUE, accepts=raises), want(QUEUE, "last", pattern={"n": [29]})) as group:
        kit.publish(*range(30), to=QUEUE)
        assert numbers(await soon(group.receive())) == [29]
    lines = [record.getMessage() for record in caplog.records if "raised ValueError" in record.getMessage()]
    assert len(lines) == 20
    assert lines[-1].endswith("further failures are not logged")


async def test_a_callable_that_blocks_is_left_behind(
    kit: Kit, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callables, "CALLABLE_TIMEOUT", 0.02)
    blocked, free = want(QUEUE, "blocked", accepts=gate, count=9), want(QUEUE, "free", accepts=even, count=9)
    async with kit.group(blocked, name="a") as one, kit.group(free, name="b") as two:
        kit.publish(0, 2, 4, to=QUEUE)
        deliveries = await kit.take(two, 3)
        assert numbers(deliveries) == [0, 2, 4]
        assert gate.calls == [0], "one that does not return is not called again: it would cost a thread each time"
        assert all(thread.daemon for thread in gate.threads), "it must not keep the process from ending"
        gate.may_go_on.set()
        for thread in gate.threads:
            thread.join(5)
        kit.publish(6, to=QUEUE)
        assert numbers(await soon(one.receive())) == [6]
    assert "event blocked: its match callable took longer than 0.02 s for memory-queue queue 0" in caplog.text
    assert "event blocked: its match callable has not returned since an earlier message" in caplog.text


async def test_a_callable_that_blocks_on_one_stream_is_asked_about_others(
    kit: Kit, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callables, "CALLABLE_TIMEOUT", 0.02)
    other = MemoryQueue("other")

    def once(message: Message) -> bool:
        return gate(message) if message.stream == "queue" else True

    async with kit.group(want(QUEUE, "blocked", accepts=once), want(other, "free", accepts=once)) as group:
        kit.publish(1, to=QUEUE)
        await until(lambda: bool(gate.calls))
        kit.publish(2, to=other)
        assert names(await soon(group.receive())) == [("free",)]


async def test_nothing_is_kept_of_calls_that_have_returned(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callables, "CALLABLE_TIMEOUT", 0.01)
    asked = callables.Callables()
    assert await asked.ask(even, scripted(2))
    with pytest.raises(callables.CallableError, match="took longer"):
        await asked.ask(gate, scripted(1))
    assert list(asked._running) == [gate]
    gate.may_go_on.set()
    await until(lambda: not asked._running)


async def test_slow_callables_are_asked_side_by_side(kit: Kit) -> None:
    together = threading.Barrier(3, timeout=5)

    def one(message: Message) -> bool:
        return together.wait() >= 0

    def two(message: Message) -> bool:
        return together.wait() >= 0

    async with kit.group(want(QUEUE, "one", accepts=one), want(QUEUE, "two", accepts=two)) as group:
        kit.publish(1, to=QUEUE)
        await until(lambda: together.n_waiting == 2)
        together.wait()
        (delivery,) = await soon(group.receive())
        assert delivery.events == ("one", "two")


async def test_blocked_callables_do_not_use_up_the_time_of_others(
    kit: Kit, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callables, "CALLABLE_TIMEOUT", 0.05)
    kit.hub._callables = callables.Callables(most=1)
    blocked = [gate.__call__, lambda message: gate(message), lambda message: gate(message)]
    interests = [want(MemoryQueue(f"queue {n}"), accepts=accepts) for n, accepts in enumerate(blocked)]
    async with kit.group(*interests, name="a"), kit.group(want(QUEUE, accepts=even), name="b") as group:
        for interest in interests:
            kit.publish(0, to=interest.source)
        await until(lambda: bool(gate.calls))
        kit.publish(2, to=QUEUE)
        assert numbers(await soon(group.receive())) == [2]
        assert gate.calls == [0, 0, 0], "it had to wait for three of them"


async def test_not_too_many_callables_run_at_once(kit: Kit, gate: Gate) -> None:
    kit.hub._callables = callables.Callables(most=2)
    several = [gate.__call__, lambda message: gate(message), lambda message: gate(message)]
    interests = [want(QUEUE, str(number), accepts=accepts) for number, accepts in enumerate(several)]
    async with kit.group(*interests) as group:
        kit.publish(1, to=QUEUE)
        await until(lambda: len(gate.calls) == 2)
        await idle()
        assert len(gate.calls) == 2
        gate.may_go_on.set()
        assert names(await soon(group.receive())) == [("0", "1", "2")]


async def test_a_callable_is_asked_once_for_all_groups(kit: Kit, gate: Gate) -> None:
    gate.may_go_on.set()
    interests = [want(QUEUE, "a", accepts=gate), want(QUEUE, "b", accepts=gate)]
    async with kit.group(interests[0], name="a") as one, kit.group(*interests, name="b") as two:
        kit.publish(1, to=QUEUE)
        assert names(await soon(one.receive())) == [("a",)]
        assert names(await soon(two.receive())) == [("a", "b")]
        assert gate.calls == [1]


async def test_one_answer_serves_only_events_that_could_want_the_message(kit: Kit, gate: Gate) -> None:
    gate.may_go_on.set()
    always, recent = want(QUEUE, "always", accepts=gate), want(QUEUE, "recent", accepts=gate, since=kit.start)
    async with kit.group(always, recent) as group:
        kit.publish(1, to=QUEUE, timestamp=kit.ago(1))
        assert names(await soon(group.receive())) == [("always",)]


async def test_a_message_settled_while_a_late_callable_is_asked_is_gone(kit: Kit, gate: Gate) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=9), name="early") as early:
        source.stream.feed.put_nowait([scripted(1), scripted(2)])
        one, two = await kit.received(early, 2)
        async with kit.group(want(source, accepts=gate, count=9), name="late", live=False) as late:
            await until(lambda: bool(gate.calls))
            one.accept()
            await idle()
            assert source.stream.told == [("0@1", Outcome.ACCEPTED)]
            gate.may_go_on.set()
            assert numbers(await soon(late.receive())) == [2]
            two.accept()


async def test_a_copy_is_asked_about_again_by_those_who_did_not_want_it(kit: Kit) -> None:
    calls: list[Message] = []

    def second_time(message: Message) -> bool:
        calls.append(message)
        return len(calls) > 1

    source = ScriptQueue()
    async with kit.group(want(source, "any", count=9), want(source, "late", accepts=second_time)) as group:
        source.stream.feed.put_nowait([scripted(1, receipt="first")])
        one = await kit.take(group, 1)
        source.stream.feed.put_nowait([scripted(1, receipt="second")])
        two = await kit.take(group, 1)
        assert names(one + two) == [("any",), ("late",)]
        for delivery in one + two:
            delivery.accept()
        await soon(group.settled())
        assert source.stream.told == [("second", Outcome.ACCEPTED)]


async def test_an_event_dropped_while_its_callable_is_asked_gets_nothing(kit: Kit, gate: Gate) -> None:
    async with kit.group(want(QUEUE, "dropped", accepts=gate), want(QUEUE, "kept", accepts=gate)) as group:
        kit.publish(1, to=QUEUE)
        await until(lambda: bool(gate.calls))
        group.drop("dropped")
        gate.may_go_on.set()
        assert names(await soon(group.receive())) == [("kept",)]


async def test_a_group_may_leave_while_its_callable_is_asked(kit: Kit, gate: Gate) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, accepts=gate)):
        source.stream.feed.put_nowait([scripted(1)])
        await until(lambda: bool(gate.calls))
    assert [outcome.value for _, outcome in source.stream.told] == ["abandoned"]


async def test_an_event_that_has_enough_is_not_asked_again(kit: Kit, gate: Gate) -> None:
    gate.may_go_on.set()
    async with kit.group(want(QUEUE, accepts=gate), want(QUEUE, "any", count=2)) as group:
        kit.publish(1, 2, to=QUEUE)
        await kit.take(group, 2)
        assert gate.calls == [1]


async def test_only_messages_that_could_count_are_asked_about(kit: Kit, gate: Gate) -> None:
    gate.may_go_on.set()
    async with kit.group(want(QUEUE, accepts=gate, since=kit.start, recorded=frozenset({"queue:0@1"}))) as group:
        kit.publish(1, to=QUEUE, timestamp=kit.ago(1))
        kit.publish(2, 3, to=QUEUE)
        assert numbers(await soon(group.receive())) == [3]
        assert gate.calls == [3]
