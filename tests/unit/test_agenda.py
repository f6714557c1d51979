"""The agenda of a wait, its flags, and patterns kept as text."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from event_triggers.agenda import Agenda
from event_triggers.flag import Flag
from event_triggers.matching import PackedPattern
from event_triggers.testing import ManualClock
from tests.unit.hub_kit import idle, soon


class Diary:
    """An agenda whose entries write down that they were begun."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.agenda = Agenda(self.clock)
        self.begun: list[str] = []

    def note(self, seconds: float, name: str) -> None:
        async def work() -> None:
            self.begun.append(name)

        self.agenda.note(seconds, name, work)


async def test_what_is_due_is_begun_in_its_order() -> None:
    diary = Diary()
    diary.note(20, "later")
    diary.note(10, "sooner")
    diary.note(-5, "overdue")
    async with anyio.create_task_group() as group:
        with diary.agenda.kept_in(group):
            await idle()
            assert diary.begun == ["overdue"]
            assert diary.clock.sleepers == [10.0], "one timer, however much there is"
            diary.note(5, "soonest")
            await idle()
            assert diary.clock.sleepers == [5.0]
            diary.clock.advance(10)
            await idle()
            assert diary.begun == ["overdue", "soonest", "sooner"]
        assert diary.clock.sleepers == []
        diary.clock.advance(100)
        await idle()
    assert diary.begun == ["overdue", "soonest", "sooner"]


async def test_an_agenda_that_is_closed_starts_nothing_more() -> None:
    diary = Diary()
    diary.note(10, "late")
    async with anyio.create_task_group() as group:
        with diary.agenda.kept_in(group):
            diary.agenda.close()
            diary.note(0, "later still")
            diary.clock.advance(100)
            await idle()
    assert diary.begun == []
    assert diary.clock.sleepers == []


async def test_an_empty_agenda_waits_for_what_is_noted() -> None:
    diary = Diary()
    async with anyio.create_task_group() as group:
        with diary.agenda.kept_in(group):
            await idle()
            diary.note(0, "now")
            await idle()
            assert diary.begun == ["now"]


async def test_a_flag_wakes_all_who_wait_even_if_it_is_cleared_at_once() -> None:
    flag = Flag()
    waiting = [asyncio.ensure_future(flag.wait()) for _ in range(3)]
    await idle()
    waiting[0].cancel()
    flag.set()
    flag.clear()
    await soon(asyncio.wait(waiting))
    assert [one.cancelled() for one in waiting] == [True, False, False]
    assert not flag.is_set()
    flag.set()
    await soon(flag.wait())


def test_a_packed_pattern_is_the_pattern() -> None:
    pattern = {"a": ["x", 1, None, {"prefix": "y"}], "b": {"c": [True, 10**30]}}
    packed = PackedPattern(pattern)
    assert packed == pattern
    assert (list(packed), len(packed), packed["b"], repr(packed)) == (["a", "b"], 2, pattern["b"], repr(pattern))
    with pytest.raises(TypeError):
        PackedPattern({"a": [object()]})
