"""Marks per second, when the markers of many runs are due together: midnight, for a thousand groups.

:mod:`benchmarks.marking` measures it, on the Airflow that runs here: one PATCH after the other, then the package's
client of the public API, then its ledger and the plugin's route; somebody else asks for a page meanwhile.
"""

from __future__ import annotations

from benchmarks import marking
from benchmarks.report import NotMeasured, Report
from benchmarks.world import World

__all__ = ["measure_marking"]


def measure_marking(world: World, report: Report, *, runs: int, one_by_one: int) -> None:
    """All ways, each on runs of its own.

    :param runs: how many runs of 20 markers the route marks.
    :param one_by_one: how many markers are marked by one PATCH each; the public API marks four times as many.
    :raises NotMeasured: when not all are marked in the end, whatever was answered.
    """
    markers = 20
    try:
        found = marking.measure(world.airflow, runs=runs, markers=markers, sequential=one_by_one, public=4 * one_by_one)
        wanted, marked = runs * markers + 5 * one_by_one, _marked(world)
    finally:
        world.database.remove_runs(marking.DAG_ID)
    if marked < wanted:
        raise NotMeasured(f"{marked} of {wanted} markers are marked")
    report.add("marks patch", found.sequential, "marks/s")
    report.add("marks public", found.public, "marks/s")
    report.add("marks route", found.route, "marks/s")
    report.add("public errors", found.public_errors, "answers")
    report.add("public slowest", found.public_slowest, "s")
    report.add("other requests idle", found.idle_latency, "s")
    report.add("other requests meanwhile", found.latency_meanwhile, "s")
    report.add("other requests failed", found.failures_meanwhile, "requests")


def _marked(world: World) -> int:
    statement = "SELECT count(*) FROM task_instance WHERE dag_id = %(dag)s AND state = 'success'"
    return int(world.database.rows(statement, dag=marking.DAG_ID)[0][0])
