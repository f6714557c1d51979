"""The nearest miss: what is said to a group that waits in vain."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest

from event_triggers.channel import Channel
from event_triggers.entry import Entry, Missed
from event_triggers.event import Event
from event_triggers.message import Message
from event_triggers.testing import MemoryLog, MemoryQueue
from event_triggers.verdict import Status
from tests.unit.hub_kit import Kit, ScriptLog, idle, scripted, want
from tests.unit.wait_kit import WaitKit, from_log


def orders(date: str = "2030-01-02", *, count: int = 1) -> Event:
    return Event(
        MemoryLog("log"), match={"table": ["orders"], "date": [date]}, count=count, since="2030-01-01T00:00:00Z"
    )


def send(waits: WaitKit, table: str, date: str) -> str:
    return waits.broker.publish("log", {"table": table, "date": date})


async def text_at_the_deadline(waits: WaitKit, event: Event, *messages: tuple[str, str]) -> str:
    async with waits.running({"orders": event}, timeout=30) as wait:
        for table, date in messages:
            send(waits, table, date)
        await waits.later(30)
        verdict = await wait.verdict()
    assert verdict.status is Status.TIMEOUT
    return verdict.text


async def test_the_error_names_the_nearest_message_and_what_it_differed_in(waits: WaitKit) -> None:
    messages = [("stock", "2030-01-01"), ("orders", "2030-01-01"), ("shifts", "2030-01-03")]
    text = await text_at_the_deadline(waits, orders(), *messages)
    assert text == (
        "3 messages seen on memory-log log, none matched orders; the closest of the last ones, 0@1, differed in "
        "date: got '2030-01-01', wanted '2030-01-02'"
    )


async def test_what_was_seen_before_it_joined_is_not_counted(waits: WaitKit) -> None:
    async with waits.running({"orders": orders("2030-01-07")}):
        for _ in range(3):
            send(waits, "orders", "2030-01-05")
        await idle()
        late = replace(orders(), since=waits.clock.now().isoformat())
        waits.clock.advance(1)
        late = replace(late, since=waits.clock.now().isoformat())
        text = await text_at_the_deadline(waits, late, ("orders", "2030-01-04"))
    assert text.startswith("1 message seen on memory-log log, none matched orders; ")


async def test_what_was_read_from_the_past_is_counted(waits: WaitKit) -> None:
    async with waits.running({"other": from_log("other")}):
        send(waits, "orders", "2030-01-05")
        await idle()
        text = await text_at_the_deadline(waits, orders(), ("orders", "2030-01-04"))
    assert text.startswith("2 messages seen on memory-log log")


async def test_nothing_is_said_where_nothing_was_seen(waits: WaitKit) -> None:
    assert await text_at_the_deadline(waits, orders()) == ""


async def test_what_counts_already_is_said_too(waits: WaitKit) -> None:
    text = await text_at_the_deadline(waits, orders(count=2), ("orders", "2030-01-02"), ("orders", "2030-01-09"))
    assert text.startswith("2 messages seen on memory-log log, 1 matched orders; the closest of the last ones, 0@1, d")


async def test_a_message_out_of_time_says_so(waits: WaitKit) -> None:
    event = replace(orders(), until="2030-01-01T00:00:10Z")
    async with waits.running({"orders": event}, timeout=30) as wait:
        await waits.later(20)
        send(waits, "orders", "2030-01-02")
        await waits.later(10)
        verdict = await wait.verdict()
    assert "0@0, is stamped 2030-01-01T00:00:20.000+00:00" in verdict.text


def nobody(message: Message) -> bool:
    return False


async def test_a_callable_is_named_as_the_reason(waits: WaitKit) -> None:
    event = Event(MemoryLog("log"), match=f"{__name__}.nobody", since="2030-01-01T00:00:00Z")
    text = await text_at_the_deadline(waits, event, ("orders", "2030-01-02"))
    assert text.endswith("0@0, was not taken by the match callable")


async def test_it_is_said_now_and_then_while_waiting(waits: WaitKit, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> int:
        return sum("messages seen on" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO, logger="event_triggers"):
        async with waits.running({"orders": orders()}, timeout=86_400):
            for _ in range(2):
                send(waits, "orders", "2030-01-05")
            await idle()
            counts = []
            for seconds in (59, 1, 599, 1, 3599, 1):
                await waits.later(seconds)
                counts.append(told())
    assert counts == [0, 1, 1, 2, 2, 3]


async def test_of_many_the_nearest_are_told_while_waiting_and_all_at_the_deadline(
    waits: WaitKit, caplog: pytest.LogCaptureFixture
) -> None:
    events = {f"event_{n}": orders(f"2030-01-{n + 10}") for n in range(6)}
    events["stock"] = replace(orders(), match={"table": ["stock"], "date": ["2030-01-01"]})
    with caplog.at_level(logging.INFO, logger="event_triggers"):
        async with waits.running(events, timeout=100) as wait:
            send(waits, "shifts", "2030-01-01")
            await waits.later(60)
            told = [record.getMessage() for record in caplog.records if "none matched" in record.getMessage()]
            more = [record.getMessage() for record in caplog.records if " more" in record.getMessage()]
            caplog.clear()
            await waits.later(40)
            verdict = await wait.verdict()
    assert ["none matched stock" in one for one in told] == [True, False, False, False, False]
    assert more == ["so it is with 2 more; at the deadline each is told"]
    assert sum("none matched" in record.getMessage() for record in caplog.records) == 7
    assert verdict.text.startswith("1 message seen on memory-log log, none matched stock; ")
    assert verdict.text.endswith("and 2 more in the log")


async def test_a_message_that_a_queue_gives_again_counts_once(waits: WaitKit) -> None:
    event = Event(MemoryQueue("queue"), match={"table": ["orders"]})
    async with waits.running({"orders": event}, timeout=600) as wait:
        waits.broker.publish("queue", {"table": "stock"})
        for _ in range(5):
            await waits.later(100)
        await waits.later(100)
        verdict = await wait.verdict()
    assert verdict.text.startswith("1 message seen on memory-queue queue, none matched orders; ")


async def test_what_a_message_holds_cannot_forge_the_log(waits: WaitKit) -> None:
    text = await text_at_the_deadline(waits, orders(), ("orders", "x\nERROR forged \x1b[31m"))
    assert text.isprintable()


async def test_groups_that_ask_together_are_answered_one_after_the_other(kit: Kit) -> None:
    """So a turn of the event loop is as long as comparing takes for one event, however many groups ask."""
    source = ScriptLog()
    interests = [want(source, f"event_{n}", pattern={"n": [-n - 1]}) for n in range(3)]
    async with AsyncExitStack() as stack:
        groups = [await stack.enter_async_context(kit.group(*interests, name=f"group {n}")) for n in range(5)]
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        compared: list[tuple[str, int]] = []
        turn = 0

        async def count_turns() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        def seen(channel: Channel, entry: Entry) -> Missed:
            compared.append((entry.subscription.group, turn))
            return miss(channel, entry)

        miss = Channel.miss
        with patch.object(Channel, "miss", seen):
            counting = asyncio.create_task(count_turns())
            assert [len(one) for one in await asyncio.gather(*(group.misses() for group in groups))] == [3] * 5
            counting.cancel()
        turns = [turn for _, turn in compared]
        assert all(later - one >= 1 for one, later in pairwise(turns))
        assert [name for name, _ in compared] == [f"group {n}" for n in range(5) for _ in range(3)]
