"""The targets: what each is measured by, and what must hold.

A target is met when all its checks are. A check whose figures are missing has no value, and is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.report import NotMeasured, Report

__all__ = ["TARGETS", "Check", "Goal", "judged"]

KB = 1000.0
Value = Callable[[Report], float]


class Check(NamedTuple):
    """One number and its limit.

    :param name: what tells it from the other checks of its target.
    :param unit: shown behind the number.
    :param at_least: whether the number must not be below the limit; else it must not be above.
    :param strict: whether the limit itself is not good enough.
    """

    name: str
    value: Value
    limit: float
    unit: str = ""
    at_least: bool = False
    strict: bool = False

    @property
    def goal(self) -> str:
        """The limit in words."""
        sign = {(True, False): ">=", (True, True): ">", (False, False): "<=", (False, True): "<"}
        return f"{sign[self.at_least, self.strict]} {self.limit:g}{' ' if self.unit else ''}{self.unit}"

    def holds(self, value: float | None) -> bool:
        """Whether this number reaches the limit; what was not measured does not."""
        if value is None or value != value:
            return False
        if value == self.limit:
            return not self.strict
        return value > self.limit if self.at_least else value < self.limit

    def measured(self, report: Report) -> float | None:
        """The number; ``None`` when it was not measured."""
        try:
            return self.value(report)
        except (NotMeasured, ZeroDivisionError):
            return None


class Goal(NamedTuple):
    """One row of the table of targets."""

    key: str
    what: str
    checks: Sequence[Check]

    def as_json(self, report: Report) -> dict[str, Any]:
        """``value`` and ``goal`` (by check, where there are several), and whether it is ``met``."""
        values = {check.name: check.measured(report) for check in self.checks}
        met = all(check.holds(values[check.name]) for check in self.checks)
        goals = {check.name: check.goal for check in self.checks}
        if len(self.checks) == 1:
            return {
                "what": self.what,
                "value": next(iter(values.values())),
                "goal": next(iter(goals.values())),
                "met": met,
            }
        return {"what": self.what, "value": values, "goal": goals, "met": met}


def judged(report: Report) -> dict[str, dict[str, Any]]:
    """All targets as they stand in ``results.json``."""
    return {goal.key: goal.as_json(report) for goal in TARGETS}


def ratio(name: str, other: str, *, at: int | None = None, other_at: int | None = None) -> Value:
    """The median of a figure as a multiple of another's."""
    return lambda report: report.median(name, at) / report.median(other, other_at)


def difference(name: str, other: str, *, at: int | None = None, scale: float = 1.0) -> Value:
    """By how much the median of a figure is above another's."""
    return lambda report: (report.median(name, at) - report.median(other, at)) / scale


def median(name: str, at: int | None = None, *, scale: float = 1.0) -> Value:
    """The median of a figure."""
    return lambda report: report.median(name, at) / scale


MANY, MANY_EVENTS = 1000, 20_000

TARGETS: Sequence[Goal] = (
    Goal(
        "latency_one_group",
        "publish to marker success, one group",
        (
            Check("times the bare PATCH", ratio("marker kafka", "patch", at=1, other_at=1), 3, "times"),
            Check(
                "AwaitMessageSensor, best set, takes",
                ratio("await_best", "marker kafka", other_at=1),
                20,
                "times as long",
                at_least=True,
            ),
        ),
    ),
    Goal(
        "latency_1000_groups",
        "publish to marker success, 1,000 groups of 20 waiting",
        (
            Check(
                "times the one-group figure",
                ratio("marker kafka", "marker kafka", at=MANY, other_at=1),
                1.5,
                "times",
            ),
        ),
    ),
    Goal(
        "downstream_start",
        "last message to downstream start, beyond a marked task to its downstream",
        (Check("beyond", difference("downstream", "downstream of a PATCH"), 0.3, "s"),),
    ),
    Goal(
        "messages_ahead",
        "10,000 messages that do not match ahead of the one that does, in all",
        (Check("seconds", median("10000 ahead"), 1, "s", strict=True),),
    ),
    Goal(
        "worker_starts",
        "worker starts per wait",
        (Check("starts", lambda report: max(report.get("worker starts").values), 0),),
    ),
    Goal(
        "kafka_connections",
        "Kafka connections of a triggerer: 1,000 groups on 5 topics, beyond 1 group on 5 topics",
        (Check("more connections", lambda r: r.median("connections", MANY) - r.median("connections", 1), 0),),
    ),
    Goal(
        "memory_per_group",
        "memory per waiting group of 20 events, beyond Airflow's idle trigger",
        (Check("memory", difference("memory per wait", "memory per idle trigger", at=MANY, scale=KB), 40, "KB"),),
    ),
    Goal(
        "idle_cpu",
        "CPU of a triggerer with 1,000 idle groups, beyond 1,000 idle triggers of Airflow",
        (Check("share of a core", difference("cpu", "cpu of idle triggers", at=MANY, scale=0.01), 2, "%"),),
    ),
    Goal(
        "throughput",
        "messages per second while 20,000 events wait on one topic, against bare aiokafka with JSON decoding",
        (Check("of the bare client", median("hub of bare", MANY_EVENTS), 0.7, "times", at_least=True),),
    ),
    Goal(
        "marks_route",
        "20,000 marks of 1,000 runs through the plugin's route, against PATCHes one by one",
        (
            Check("times the PATCHes", ratio("marks route", "marks patch"), 30, "times", at_least=True),
            Check(
                "other requests",
                ratio("other requests meanwhile", "other requests idle"),
                2,
                "times their idle latency",
            ),
            Check("other requests that failed", median("other requests failed"), 0),
        ),
    ),
    Goal(
        "marks_public",
        "the same through the public API alone",
        (
            Check("times the PATCHes", ratio("marks public", "marks patch"), 1.6, "times", at_least=True),
            Check("answers 500", median("public errors"), 0),
            Check("slowest request", median("public slowest"), 10, "s"),
        ),
    ),
    Goal(
        "event_loop_lag",
        "event-loop lag p99 at 20,000 messages/s",
        (
            Check("p99", median("lag p99", scale=0.001), 50, "ms", strict=True),
            Check("rate reached", median("lag rate"), 19_000, "messages/s", at_least=True),
        ),
    ),
)
