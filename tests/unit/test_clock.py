"""The machine's clock, the clock that tests turn, and reading moments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import anyio
import pytest

from event_triggers.clock import Clock, SystemClock, move_on_after, parse_datetime
from event_triggers.testing import ManualClock


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2030-01-02T03:04:05Z", utc(2030, 1, 2, 3, 4, 5)),
        ("2030-01-02T03:04:05z", utc(2030, 1, 2, 3, 4, 5)),
        (" 2030-01-02T03:04:05+02:00 ", utc(2030, 1, 2, 1, 4, 5)),
        ("2030-01-02T03:04:05.678000+00:00", utc(2030, 1, 2, 3, 4, 5, 678000)),
        ("2030-01-02 03:04:05", utc(2030, 1, 2, 3, 4, 5)),
        ("2030-01-02", utc(2030, 1, 2)),
        (datetime(2030, 1, 2), utc(2030, 1, 2)),
        (datetime(2030, 1, 2, tzinfo=timezone(timedelta(hours=-5))), utc(2030, 1, 2, 5)),
    ],
)
def test_parse_datetime(value: str | datetime, expected: datetime) -> None:
    parsed = parse_datetime(value)
    assert parsed == expected
    assert parsed.utcoffset() == timedelta()


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_where_the_machine_stands_does_not_matter() -> None:
    assert datetime(2030, 1, 2).astimezone().utcoffset() == timedelta(hours=9), "the fixture works"
    assert parse_datetime("2030-01-02T03:04:05") == utc(2030, 1, 2, 3, 4, 5)
    assert SystemClock().now().utcoffset() == timedelta()


@pytest.mark.parametrize("value", ["", "soon", "2030-13-01", "12:00", "{{ ts }}"])
def test_parse_datetime_refuses(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_datetime(value)


async def test_system_clock() -> None:
    clock: Clock = SystemClock()
    before, started = clock.now(), clock.monotonic()
    assert before.utcoffset() == timedelta()
    assert abs(before.timestamp() - time.time()) < 5
    await clock.sleep(0.01)
    assert clock.monotonic() - started >= 0.009
    assert clock.now() >= before


@pytest.mark.parametrize("make", [SystemClock, ManualClock])
@pytest.mark.parametrize("seconds", [0, -5])
async def test_no_time_to_sleep_still_lets_others_run(make: type[SystemClock | ManualClock], seconds: float) -> None:
    ran: list[str] = []
    asyncio.get_running_loop().call_soon(ran.append, "other")
    with anyio.fail_after(5):
        await make().sleep(seconds)
    assert ran == ["other"]


async def test_manual_clock_stands_still() -> None:
    clock: Clock = ManualClock(utc(2031, 5, 6))
    assert clock.now() == utc(2031, 5, 6)
    assert clock.now() == clock.now()
    assert clock.monotonic() == clock.monotonic() == 0


async def test_advance_moves_both_times() -> None:
    clock = ManualClock(utc(2031, 5, 6))
    clock.advance(1.5)
    clock.advance(timedelta(hours=1))
    assert clock.now() == utc(2031, 5, 6, 1, 0, 1, 500000)
    assert clock.monotonic() == 3601.5
    clock.advance(0)
    assert clock.monotonic() == 3601.5


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2030, 1, 1))


async def test_sleepers_wake_in_the_order_of_their_time() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2, 1.5, 10)]
    with anyio.fail_after(5):
        await clock.wait_for_sleepers(5)
        assert clock.sleepers == [1, 1.5, 2, 3, 10]
        clock.advance(0.5)
        assert clock.sleepers == [0.5, 1, 1.5, 2.5, 9.5]
        clock.advance(2.5)
        await asyncio.gather(*tasks[:4])
        assert woken == [1, 1.5, 2, 3]
        assert clock.sleepers == [7]
        clock.advance(7)
        await tasks[4]
    assert woken[-1] == 10


async def test_equal_times_wake_in_the_order_of_falling_asleep() -> None:
    clock = ManualClock()
    woken: list[int] = []

    async def sleeper(number: int) -> None:
        await clock.sleep(1)
        woken.append(number)

    tasks = [asyncio.create_task(sleeper(number)) for number in range(5)]
    with anyio.fail_after(5):
        await clock.wait_for_sleepers(5)
        clock.advance(1)
        await asyncio.gather(*tasks)
    assert woken == [0, 1, 2, 3, 4]


async def test_waits_for_who_sleeps_again() -> None:
    """Whoever was woken does not count as asleep, so a test can follow a loop step by step."""
    clock = ManualClock()
    moments: list[float] = []

    async def ticker() -> None:
        for _ in range(3):
            await clock.sleep(10)
            moments.append(clock.monotonic())

    task = asyncio.create_task(ticker())
    with anyio.fail_after(5):
        for _ in range(3):
            await clock.wait_for_sleepers()
            clock.advance(10)
        await task
    assert moments == [10, 20, 30]


async def test_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    tasks = [asyncio.create_task(clock.sleep(seconds)) for seconds in (1, 2, 3)]
    with anyio.fail_after(5):
        await clock.wait_for_sleepers(3)
        tasks[0].cancel()
        await asyncio.wait({tasks[0]})
        assert tasks[0].cancelled()
        assert clock.sleepers == [2, 3]
        clock.advance(3)
        await asyncio.gather(*tasks[1:])
    assert clock.sleepers == []


async def test_sleeper_cancelled_in_the_moment_it_wakes() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    with anyio.fail_after(5):
        await clock.wait_for_sleepers()
        task.cancel()
        clock.advance(1)
        await asyncio.wait({task})
    assert task.cancelled()
    assert clock.sleepers == []


async def test_waiting_for_sleepers_can_be_cancelled() -> None:
    clock = ManualClock()
    with anyio.move_on_after(0) as scope:
        await clock.wait_for_sleepers(2)
    assert scope.cancelled_caught
    task = asyncio.create_task(clock.sleep(1))
    with anyio.fail_after(5):
        await clock.wait_for_sleepers(1)
    clock.advance(1)
    await task


async def test_what_takes_too_long_is_given_up_silently() -> None:
    clock = ManualClock()

    async def wait() -> str:
        async with move_on_after(clock, 10):
            await asyncio.Event().wait()
        return "given up"

    waiting = asyncio.ensure_future(wait())
    with anyio.fail_after(5):
        await clock.wait_for_sleepers()
        clock.advance(9)
        await asyncio.sleep(0)
        assert not waiting.done()
        clock.advance(1)
        assert await waiting == "given up"


async def test_what_is_done_in_time_leaves_no_sleeper() -> None:
    clock = ManualClock()
    async with move_on_after(clock, 10):
        await asyncio.sleep(0)
    assert clock.sleepers == []
