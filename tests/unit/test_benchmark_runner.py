"""A run of the benchmark goes on and ends whatever its steps do, and keeps what they have measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.campaign import FULL, PARTS, QUICK, Sizes, Step, before_airflow, with_airflow
from benchmarks.document import BEGIN, END, write_into
from benchmarks.pictures import draw
from benchmarks.report import Report
from benchmarks.runner import BUDGET, Runner
from benchmarks.world import Brokers, World
from tests.unit.test_benchmark_goals import good_report

ABOUT = {"at": "2026-01-02T03:04:05", "cores": 2, "python": "3.11", "airflow": "3.3", "seconds": 12.0}


def runner(budget: float = 600) -> Runner:
    return Runner(frozenset(PARTS), QUICK, budget)


def step(name: str, run: Callable[[], object], usual: float = 1, *, optional: bool = False) -> Step:
    return Step(name, ("latency",), usual, run, optional)


def fail() -> None:
    raise RuntimeError("the broker is away")


async def never() -> None:
    await asyncio.Event().wait()


def test_a_step_that_fails_does_not_stop_the_others() -> None:
    one = runner()
    one.take([step("first", fail), step("second", lambda: one.report.add("n", 1, "s"))])
    assert "the broker is away" in one.report.failures["first"]
    assert one.report.median("n") == 1


def test_a_step_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "limit", 0.05)
    one = runner()
    one.take([step("hangs", lambda: asyncio.run(never())), step("second", lambda: one.report.add("n", 1, "s"))])
    assert "did not end within" in one.report.failures["hangs"]
    assert one.report.median("n") == 1


def test_nothing_is_begun_when_the_time_is_up() -> None:
    one = runner(budget=0)
    one.take([step("late", fail)])
    assert "no time was left" in one.report.failures["late"]


def test_what_only_adds_to_a_curve_makes_room_for_the_targets() -> None:
    one = runner(budget=100)
    done: list[str] = []
    curve = step("curve", lambda: done.append("curve"), 10, optional=True)
    needed = step("needed", lambda: done.append("needed"), 95)
    one.take([curve], [needed])
    one.take([needed, curve])
    assert done == ["needed", "curve"]
    assert "left out" in one.report.failures["curve"]


def all_steps(sizes: Sizes) -> list[Step]:
    """Without brokers and without Airflow: nothing is done before a step is taken."""
    brokers, report = Brokers.__new__(Brokers), Report()
    world = World.__new__(World)
    return [*before_airflow(brokers, report, sizes), *with_airflow(world, report, sizes)]


def test_every_part_has_steps() -> None:
    steps = all_steps(QUICK)
    assert {part for one in steps for part in one.parts} == set(PARTS)
    assert len({one.name for one in steps}) == len(steps)


def test_what_the_targets_are_about_is_planned_within_the_time() -> None:
    assert sum(one.usual for one in all_steps(FULL) if not one.optional) < BUDGET - 100


def test_the_results_are_written_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report = good_report()
    with report.part("peers"):
        fail()
    write_into(document, report, ABOUT)
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "Measured on 2026-01-02 with 2 cores" in text
    assert "| met | worker starts per wait | 0 | <= 0 |" in text
    assert "Not measured in this run: peers." in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- results"):
        write_into(document, report, ABOUT)


def test_curves_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    report = Report()
    assert draw(report, tmp_path) == []
    for groups in (1, 10, 100):
        report.add("marker kafka", [0.05, 0.06], "s", at=groups)
    report.add("cpu", 0.01, "of a core", at=10)
    (drawn,) = draw(report, tmp_path)
    first = drawn.read_text()
    assert "<svg" in first
    assert draw(report, tmp_path)[0].read_text() == first
