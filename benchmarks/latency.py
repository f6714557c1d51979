"""From a message to its green marker, and from the last message to the start of what waits for the group.

A run of 20 events gives 20 times to a marker and one to the task behind the group. The floor under it is measured in
runs of the same DAG: the markers are marked there by one PATCH each, and no message is sent. Both end when the
transaction is committed in which the task became what is waited for.
"""

from __future__ import annotations

import random
import time
from typing import NamedTuple

from benchmarks import plan
from benchmarks.report import Report
from benchmarks.world import World

__all__ = ["measure_downstream", "measure_groups", "measure_messages_ahead", "warm_up"]

_AFTER = "after"
_GAP = 0.15
"""Seconds between two messages, at most: no message comes in step with the one before."""
_ROUND = 1.0
"""Seconds between two looks of Airflow's scheduler while nothing happens."""


class Times(NamedTuple):
    """What one run has shown, in seconds."""

    markers: list[float]
    downstream: float | None
    worker_starts: int = 0


def warm_up(world: World) -> None:
    """One group from its start to the task behind it: what is slow the first time only, is behind us then.

    (The first connection that a triggerer looks up takes it seconds, and so does the first task of an executor.)
    """
    run_id = world.start_group(plan.ONE, timeout=120)
    world.send.event("kafka", run_id, plan.EVENTS[0])
    world.database.wait_for_state(plan.ONE, run_id, _AFTER, "success", timeout=120)


def measure_groups(world: World, report: Report, broker: str, *, waiting: int, runs: int, patched: int) -> None:
    """Runs with messages, and runs of the same DAG with bare PATCHes, in turns.

    :param waiting: how many groups wait, with the one that is measured. Beside many the others may wait as well, so
        they are started together, which saves time.
    """
    dag_id = plan.GROUPS[broker]
    ready = world.start_groups(dag_id, runs + patched, timeout=120) if waiting > 1 else []
    for number in range(max(runs, patched)):
        if number < runs:
            times = _group(world, broker, _next(world, dag_id, ready), downstream=waiting == 1)
            report.add(f"marker {broker}", times.markers, "s", at=waiting)
            report.add("worker starts", times.worker_starts, "starts")
            if times.downstream is not None:
                report.add(f"after {broker}", times.downstream, "s", at=waiting)
        if number < patched:
            times = _patches(world, dag_id, _next(world, dag_id, ready), downstream=waiting == 1)
            report.add("patch", times.markers, "s", at=waiting)
            if times.downstream is not None:
                report.add("after patch", times.downstream, "s", at=waiting)


def _next(world: World, dag_id: str, ready: list[str]) -> str:
    return ready.pop() if ready else world.start_group(dag_id)


def _group(world: World, broker: str, run_id: str, *, downstream: bool) -> Times:
    dag_id = plan.GROUPS[broker]
    sent: dict[str, float] = {}
    for event in plan.EVENTS:
        time.sleep(random.uniform(0, _GAP))
        sent[event] = time.time()
        world.send.event(broker, run_id, event)
        world.database.wait_for_state(dag_id, run_id, f"inputs.{event}", "success")
    times = _times(world, dag_id, run_id, sent, downstream)
    starts = world.database.worker_starts(dag_id, run_id, "inputs.wait")
    return times._replace(worker_starts=starts)


def _patches(world: World, dag_id: str, run_id: str, *, downstream: bool) -> Times:
    sent: dict[str, float] = {}
    for event in plan.EVENTS:
        time.sleep(random.uniform(0, _GAP))
        sent[event] = _patch(world, dag_id, run_id, event)
    return _times(world, dag_id, run_id, sent, downstream)


def _patch(world: World, dag_id: str, run_id: str, event: str) -> float:
    """Mark one marker as the package's user does, and return when the request was sent."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/inputs.{event}"
    began = time.time()
    world.client.call("PATCH", path, json={"new_state": "success", "note": "marked by hand"})
    return began


def _times(world: World, dag_id: str, run_id: str, sent: dict[str, float], downstream: bool) -> Times:
    marked = world.database.committed(dag_id, run_id, "success")
    markers = [marked[f"inputs.{event}"] - at for event, at in sent.items()]
    if not downstream:
        return Times(markers, None)
    world.database.wait_for_state(dag_id, run_id, _AFTER, "success", timeout=90)
    started = world.database.committed(dag_id, run_id, "running")[_AFTER]
    return Times(markers, started - max(sent.values()))


# ---------------------------------------------------------------------- downstream


def measure_downstream(world: World, report: Report, *, pairs: int, name: str = "downstream") -> None:
    """Last message, or PATCH, to the start of the task behind, each in a run of one event of its own.

    Both of a pair come at the same moment, so that the scheduler is at the same point of its round for both: that makes
    up most of the time. What a PATCH itself takes is left out on its side: "what Airflow needs from any marked task to
    its downstream".
    """
    runs = world.start_groups(plan.ONE, 2 * pairs, timeout=120)
    event = plan.EVENTS[0]
    for ours, bare in zip(runs[:pairs], runs[pairs:], strict=True):
        time.sleep(random.uniform(0, _ROUND))
        began = time.time()
        world.send.event("kafka", ours, event)
        _patch(world, plan.ONE, bare, event)
        report.add(name, _started(world, ours) - began, "s")
        bare_started = _started(world, bare)
        marked = world.database.committed(plan.ONE, bare, "success")[f"inputs.{event}"]
        report.add(f"{name} of a PATCH", bare_started - marked, "s")


def _started(world: World, run_id: str) -> float:
    world.database.wait_for_state(plan.ONE, run_id, _AFTER, "success")
    return world.database.committed(plan.ONE, run_id, "running")[_AFTER]


# ---------------------------------------------------------------------- many that do not match


def measure_messages_ahead(world: World, report: Report, *, messages: int = 10_000, runs: int = 3) -> None:
    """A waiting group is sent so many messages that match nothing and then the one that it waits for.

    The time begins before the first of them is sent.
    """
    event = plan.EVENTS[0]
    for run_id in world.start_groups(plan.ONE, runs):
        others = [plan.body_of(f"other-{number}", event) for number in range(messages)]
        began = time.time()
        world.send.kafka(plan.TOPICS[0], [*others, plan.body_of(run_id, event)])
        world.database.wait_for_state(plan.ONE, run_id, f"inputs.{event}", "success")
        marked = world.database.committed(plan.ONE, run_id, "success")[f"inputs.{event}"]
        report.add(f"{messages} ahead", marked - began, "s")
