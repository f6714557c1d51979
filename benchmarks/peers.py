"""Airflow's own sensors at the same work: one task waits for one message.

All are started together and wait; then each is sent its message, one after the other, and nothing else happens
meanwhile. What only looks now and then is sent its message at several moments spread over its pause, so that the median
is what a message finds that comes at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import plan, probes
from benchmarks.report import Report
from benchmarks.world import World
from servers.airflow_client import wait_for

__all__ = ["measure_await_costs", "measure_peers", "measure_reschedule"]

_TASK = "wait"
_READY = 120.0
_CONSUMING = 8.0
"""Seconds that a consumer is given to join its group after its trigger has started."""


class _Waiting(NamedTuple):
    kind: str
    run_id: str
    place: str
    """The topic or queue."""


def measure_peers(world: World, report: Report, *, each: int, sqs_default: int, ahead: int) -> None:
    """The deferrable sensors, at their defaults and set as well as they can be.

    :param each: how many of each kind.
    :param sqs_default: how many of the one that looks once a minute; 0 leaves it out.
    :param ahead: how many messages that do not match are sent ahead to AwaitMessageSensor at its defaults.
    """
    await_kinds = [("await_default", each), ("await_default ahead", 1 if ahead else 0), ("await_best", each)]
    numbers = iter(range(plan.AWAIT_CONNECTIONS))
    waiting = [_start_await(world, kind, next(numbers)) for kind, count in await_kinds for _ in range(count)]
    waiting += [
        _start_sqs(world, kind) for kind, n in (("sqs_default", sqs_default), ("sqs_best", each)) for _ in range(n)
    ]
    for one in waiting:
        world.database.wait_for_state(_dag(one.kind), one.run_id, _TASK, "deferred", timeout=_READY)
    time.sleep(_CONSUMING)
    slow = [one for one in waiting if one.kind == "sqs_default"]
    for one in waiting:
        if one.kind not in ("sqs_default", "await_default ahead"):
            report.add(one.kind, _send_and_wait(world, one), "s")
    for one in waiting:
        if one.kind == "await_default ahead":
            took = _send_and_wait(world, one, ahead=ahead) / ahead
            report.add("await_default, each message ahead", took, "s")
    _measure_slow(world, report, slow)
    for one in waiting:
        starts = world.database.worker_starts(_dag(one.kind), one.run_id, _TASK)
        report.add(f"worker starts {one.kind.split()[0]}", starts, "starts")


def _measure_slow(world: World, report: Report, slow: Sequence[_Waiting]) -> None:
    """Those that look once a minute: each is sent its message at another moment after its last look."""
    sent: dict[_Waiting, float] = {}
    for number, one in enumerate(slow):
        # They began together, and so they look.
        if number:
            time.sleep(60 / len(slow))
        sent[one] = time.time()
        world.send.sqs(one.place, plan.body_of(one.run_id, plan.EVENTS[0]))
    for one in slow:
        report.add(one.kind, _ended(world, one, timeout=100) - sent[one], "s")


def measure_reschedule(world: World, report: Report, *, runs: int) -> None:
    """A sensor that is started on a worker every 5 s; one at a time, since each start takes a second of a core.

    Airflow fails one now and then: that the worker before has ended is noticed when the task is queued again already,
    and counts as the end of a task that never ran. Another one is measured instead, and these are counted.
    """
    failed = measured = 0
    while measured < runs:
        one = _start_sqs(world, "reschedule")
        dag_id = _dag(one.kind)
        world.database.wait_for_state(dag_id, one.run_id, _TASK, "up_for_reschedule", timeout=_READY)
        time.sleep(5 * (measured + 0.5) / runs)
        began = time.time()
        world.send.sqs(one.place, plan.body_of(one.run_id, plan.EVENTS[0]))
        if world.database.wait_for_end(dag_id, one.run_id, _TASK) == "failed":
            failed += 1
            continue
        measured += 1
        report.add(one.kind, world.database.committed(dag_id, one.run_id, "success")[_TASK] - began, "s")
        report.add("worker starts reschedule", world.database.worker_starts(dag_id, one.run_id, _TASK), "starts")
    report.add("reschedule sensors that Airflow failed", failed, "sensors")


def measure_await_costs(world: World, report: Report, *, sensors: int = 20) -> None:
    """What one group of 20 costs when each event has an AwaitMessageSensor: memory and connections of the triggerer.

    One is started by Airflow, the others are copies of its rows; see :mod:`benchmarks.crowd`.
    """
    dag_id = plan.PEERS["await_best"]
    one = _start_await(world, "await_best", plan.AWAIT_CONNECTIONS - 1)
    world.database.wait_for_state(dag_id, one.run_id, _TASK, "deferred", timeout=_READY)
    time.sleep(_CONSUMING)
    before, connected = probes.anonymous_bytes(world.triggerer()), world.kafka_connections()
    world.database.copy_run(dag_id, one.run_id, "await-copy-", 1, sensors)
    wait_for(lambda: world.kafka_connections() >= connected + sensors, timeout=90, what="all consumers are connected")
    world.settle()
    report.add("memory of AwaitMessageSensors", probes.anonymous_bytes(world.triggerer()) - before, "bytes", at=sensors)
    report.add("connections of AwaitMessageSensors", world.kafka_connections() - connected, "connections", at=sensors)
    world.database.remove_runs(dag_id)
    world.settle()


# ---------------------------------------------------------------------- one


def _dag(kind: str) -> str:
    return plan.PEERS[kind.split()[0]]


def _start_await(world: World, kind: str, number: int) -> _Waiting:
    topic = f"bench-await-{number}"
    world.send.create_topics([topic])
    conf = {"topic": topic, "conn": plan.await_connection(number)}
    return _Waiting(kind, world.start_run(_dag(kind), conf), topic)


def _start_sqs(world: World, kind: str) -> _Waiting:
    queue = world.new_name("bench-peer")
    url = world.send.create_queue(queue)
    return _Waiting(kind, world.start_run(_dag(kind), {"queue": url}), queue)


def _send_and_wait(world: World, one: _Waiting, *, ahead: int = 0) -> float:
    """Seconds from the message (the first of those ahead of it) to the sensor's success."""
    body = plan.body_of(one.run_id, plan.EVENTS[0])
    began = time.time()
    if one.kind.startswith("await"):
        world.send.kafka(one.place, [*(plan.body_of("other", "none") for _ in range(ahead)), body])
    else:
        world.send.sqs(one.place, body)
    return _ended(world, one, timeout=60 + 6 * ahead) - began


def _ended(world: World, one: _Waiting, *, timeout: float) -> float:
    world.database.wait_for_state(_dag(one.kind), one.run_id, _TASK, "success", timeout=timeout)
    return world.database.committed(_dag(one.kind), one.run_id, "success")[_TASK]
