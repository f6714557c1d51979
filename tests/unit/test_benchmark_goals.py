"""What the benchmark says of its targets: nothing that failed is met, and every limit points the right way."""

from __future__ import annotations

import pytest

from benchmarks.goals import TARGETS, Check, Goal, judged
from benchmarks.report import NotMeasured, Report
from benchmarks.table import as_json, as_text, met


def check(**how: bool) -> Check:
    return Check("n", lambda report: report.median("n"), 10, "s", **how)


@pytest.mark.parametrize(
    ("how", "below", "at", "above"),
    [
        ({}, True, True, False),
        ({"strict": True}, True, False, False),
        ({"at_least": True}, False, True, True),
        ({"at_least": True, "strict": True}, False, False, True),
    ],
)
def test_a_limit_points_its_way(how: dict[str, bool], below: bool, at: bool, above: bool) -> None:
    one = check(**how)
    assert (one.holds(9.9), one.holds(10), one.holds(10.1)) == (below, at, above)


@pytest.mark.parametrize("how", [{}, {"at_least": True}, {"strict": True}])
def test_what_is_no_number_reaches_no_limit(how: dict[str, bool]) -> None:
    assert not check(**how).holds(None)
    assert not check(**how).holds(float("nan"))


def test_nothing_is_met_where_nothing_was_measured() -> None:
    targets = judged(Report())
    assert len(targets) == 12
    assert met(targets.values()) == (0, 12)
    for target in targets.values():
        values = target["value"].values() if isinstance(target["value"], dict) else [target["value"]]
        assert set(values) == {None}


def test_a_part_that_fails_takes_its_target_along_and_no_other() -> None:
    report = Report()
    with report.part("fails"):
        report.add("10000 ahead", 0.5, "s")
        raise RuntimeError("the broker is away")
    with report.part("throughput"):
        report.add("hub of bare", 0.9, "times", at=20_000)
    assert list(report.failures) == ["fails"]
    assert "the broker is away" in report.failures["fails"]
    targets = judged(report)
    assert targets["throughput"]["met"]
    assert not targets["latency_one_group"]["met"]


def test_a_target_of_several_checks_needs_all() -> None:
    goal = Goal("both", "both", (check(), check(at_least=True)._replace(name="m")))
    report = Report()
    report.add("n", 9, "s")
    assert goal.as_json(report) == {
        "what": "both",
        "value": {"n": 9.0, "m": 9.0},
        "goal": {"n": "<= 10 s", "m": ">= 10 s"},
        "met": False,
    }
    report.add("n", 11, "s")  # the median is the limit of both
    assert goal.as_json(report)["met"]


def good_report() -> Report:
    """Figures that reach every target just so."""
    report = Report()
    for name, at, value in [
        ("marker kafka", 1, 0.06),
        ("patch", 1, 0.02),
        ("await_best", None, 1.2),
        ("marker kafka", 1000, 0.09),
        ("downstream", None, 1.29),
        ("downstream of a PATCH", None, 1.0),
        ("10000 ahead", None, 0.99),
        ("worker starts", None, 0),
        ("connections", 1, 7),
        ("connections", 1000, 7),
        ("memory per wait", 1000, 60_000),
        ("memory per idle trigger", 1000, 20_000),
        ("cpu", 1000, 0.03),
        ("cpu of idle triggers", 1000, 0.0125),
        ("hub of bare", 20_000, 0.7),
        ("marks route", None, 900),
        ("marks public", None, 48),
        ("marks patch", None, 30),
        ("other requests meanwhile", None, 0.02),
        ("other requests idle", None, 0.01),
        ("public errors", None, 0),
        ("public slowest", None, 5),
        ("other requests failed", None, 0),
        ("lag p99", None, 0.049),
        ("lag rate", None, 20_000),
    ]:
        report.add(name, value, "", at=at)
    return report


def test_figures_that_are_good_enough_reach_every_target() -> None:
    targets = judged(good_report())
    assert {key for key, target in targets.items() if not target["met"]} == set()


@pytest.mark.parametrize(
    ("name", "at", "value", "target"),
    [
        ("marker kafka", 1, 0.2, "latency_one_group"),
        ("await_best", None, 0.5, "latency_one_group"),
        ("marker kafka", 1000, 1.0, "latency_1000_groups"),
        ("downstream", None, 3.0, "downstream_start"),
        ("10000 ahead", None, 1.5, "messages_ahead"),
        ("worker starts", None, 1, "worker_starts"),
        ("connections", 1000, 9, "kafka_connections"),
        ("memory per wait", 1000, 90_000, "memory_per_group"),
        ("cpu", 1000, 0.06, "idle_cpu"),
        ("hub of bare", 20_000, 0.5, "throughput"),
        ("marks route", None, 800, "marks_route"),
        ("other requests meanwhile", None, 0.05, "marks_route"),
        ("marks public", None, 40, "marks_public"),
        ("public errors", None, 1, "marks_public"),
        ("public slowest", None, 30, "marks_public"),
        ("other requests failed", None, 1, "marks_route"),
        ("lag p99", None, 0.2, "event_loop_lag"),
        ("lag rate", None, 5_000, "event_loop_lag"),
    ],
)
def test_one_figure_that_is_worse_misses_its_target(name: str, at: int | None, value: float, target: str) -> None:
    report = good_report()
    del report.figures[name, at]
    assert not judged(report)[target]["met"]
    report.add(name, value, "", at=at)
    assert not judged(report)[target]["met"]


def test_a_single_start_of_a_worker_among_many_waits_is_seen() -> None:
    report = good_report()
    report.add("worker starts", [0, 0, 0, 1, 0, 0], "starts")
    assert not judged(report)["worker_starts"]["met"]


def test_targets_have_keys_of_their_own() -> None:
    assert len({goal.key for goal in TARGETS}) == len(TARGETS) == 12


def test_the_spread_of_values_is_kept() -> None:
    report = Report()
    report.add("n", [3, 1], "s", at=5)
    report.add("n", 2, "s", at=5)
    figure = report.get("n", 5)
    assert figure.values == (3, 1, 2)
    assert figure.as_json() == {
        "name": "n",
        "at": 5,
        "unit": "s",
        "count": 3,
        "median": 2,
        "p10": pytest.approx(1.2),
        "p90": pytest.approx(2.8),
        "least": 1,
        "most": 3,
    }
    with pytest.raises(NotMeasured, match="n at 6"):
        report.get("n", 6)
    with pytest.raises(ValueError, match="has no values"):
        report.add("none", [], "s")


def test_a_curve_is_in_the_order_of_what_waited() -> None:
    report = Report()
    for at in (100, 9, 1000):
        report.add("n", at, "s", at=at)
    report.add("n", 1, "s")
    assert [figure.at for figure in report.curve("n")] == [9, 100, 1000]


def test_the_text_names_what_is_missed_and_what_failed() -> None:
    report = good_report()
    report.add("hub of bare", [0.1, 0.1, 0.1], "times", at=20_000)
    del report.figures["10000 ahead", None]
    with report.part("messages ahead"):
        raise RuntimeError("boom")
    lines = as_text(report).splitlines()
    assert any(line.startswith("MISSED") and "messages per second" in line for line in lines)
    assert any(line.startswith("NOT MEASURED") and "10,000 messages" in line for line in lines)
    assert any("messages ahead: RuntimeError: boom" in line for line in lines)


def test_the_document_holds_targets_figures_and_failures() -> None:
    report = good_report()
    document = as_json(report, {"quick": False})
    assert document["targets"]["idle_cpu"]["met"] is True
    assert document["targets"]["idle_cpu"]["goal"] == "<= 2 %"
    assert {"name", "at", "unit", "count", "median", "p10", "p90"} <= set(document["figures"][0])
    assert document["failures"] == {}
