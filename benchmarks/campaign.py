"""What is measured, in which order: short figures first, then more and more groups, then Airflow's own sensors.

The order saves time: each number of groups is built up once, and all that is measured with so many waiting is measured
then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.crowd import GROUPS, IDLE_TRIGGERS, Crowd
from benchmarks.floor import measure_floor
from benchmarks.latency import measure_downstream, measure_groups, measure_messages_ahead, warm_up
from benchmarks.midnight import measure_marking
from benchmarks.peers import measure_await_costs, measure_peers, measure_reschedule
from benchmarks.report import Report
from benchmarks.throughput import measure_lag, measure_throughput
from benchmarks.world import Brokers, World

__all__ = ["FULL", "PARTS", "QUICK", "WITH_AIRFLOW", "Sizes", "Step", "before_airflow", "with_airflow"]

WITH_AIRFLOW = ("latency", "waiting", "start", "peers", "marking")
PARTS = ("throughput", *WITH_AIRFLOW)


class Sizes(NamedTuple):
    """How much of everything."""

    crowds: tuple[int, ...]
    runs: int
    """How many runs of 20 messages are measured where one group waits."""
    crowd_runs: int
    pairs: int
    ahead: int
    peers: int
    sqs_default: int
    cpu_seconds: float
    messages: int
    rounds: int
    lag_seconds: float
    marked_runs: int
    marked_one_by_one: int


FULL = Sizes(
    crowds=(10, 100, 1000),
    runs=3,
    crowd_runs=2,
    pairs=10,
    ahead=10_000,
    peers=3,
    sqs_default=1,
    cpu_seconds=16,
    messages=80_000,
    rounds=3,
    lag_seconds=5,
    marked_runs=1000,
    marked_one_by_one=120,
)
QUICK = Sizes(
    crowds=(5, 20),
    runs=1,
    crowd_runs=1,
    pairs=2,
    ahead=1000,
    peers=1,
    sqs_default=0,
    cpu_seconds=5,
    messages=4000,
    rounds=1,
    lag_seconds=2,
    marked_runs=20,
    marked_one_by_one=20,
)


class Step(NamedTuple):
    """One thing to measure.

    :param parts: the step is done when one of these is wanted.
    :param usual: how many seconds it takes on two quiet cores; three times that, and half a minute, is its limit.
    :param optional: whether it only adds to a curve, so that it is left out where time gets short.
    """

    name: str
    parts: tuple[str, ...]
    usual: float
    run: Callable[[], object]
    optional: bool = False

    @property
    def limit(self) -> float:
        """Seconds after which it is given up."""
        return 3 * self.usual + 30


def before_airflow(brokers: Brokers, report: Report, sizes: Sizes) -> list[Step]:
    """What needs the brokers alone."""
    throughput = partial(measure_throughput, brokers, report, messages=sizes.messages, rounds=sizes.rounds)
    return [
        Step("throughput", ("throughput",), 35, throughput),
        Step("lag", ("throughput",), 15, partial(measure_lag, brokers, report, seconds=sizes.lag_seconds)),
        Step("bare clients", ("latency",), 8, partial(measure_floor, brokers, report, messages=20)),
    ]


def with_airflow(world: World, report: Report, sizes: Sizes) -> list[Step]:
    """What needs Airflow."""
    return [
        Step("first group", WITH_AIRFLOW, 15, partial(warm_up, world)),
        *_reschedule(world, report, sizes),
        *_alone(world, report, sizes),
        *_marking(world, report, sizes),
        *_peers(world, report, sizes),
        *_crowds(world, report, sizes),
        *_idle(world, report, sizes),
    ]


def _alone(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    def groups(broker: str, runs: int, patched: int) -> Callable[[], None]:
        return partial(measure_groups, world, report, broker, waiting=1, runs=runs, patched=patched)

    yield Step("latency: kafka", ("latency",), 14 * sizes.runs, groups("kafka", sizes.runs, sizes.runs))
    yield Step("latency: mqtt", ("latency",), 8, groups("mqtt", max(1, sizes.runs // 2), 0))
    yield Step("latency: sqs", ("latency",), 8, groups("sqs", max(1, sizes.runs // 2), 0))
    downstream = partial(measure_downstream, world, report, pairs=sizes.pairs)
    yield Step("downstream", ("latency",), 5 + 3 * sizes.pairs, downstream)
    yield Step("messages ahead", ("latency",), 10, partial(measure_messages_ahead, world, report, messages=sizes.ahead))


def _marking(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    marking = partial(measure_marking, world, report, runs=sizes.marked_runs, one_by_one=sizes.marked_one_by_one)
    yield Step("marking", ("marking",), 70, marking)


def _peers(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    ahead = 3 if sizes.peers > 1 else 1
    peers = partial(measure_peers, world, report, each=sizes.peers, sqs_default=sizes.sqs_default, ahead=ahead)
    yield Step("peers", ("peers",), 100 if sizes.sqs_default else 50, peers)
    yield Step("peers: costs", ("peers",), 20, partial(measure_await_costs, world, report), optional=True)


def _reschedule(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    """Early, where Airflow has little to do: behind the others its scheduler took over a minute to start one again."""
    reschedule = partial(measure_reschedule, world, report, runs=sizes.peers)
    yield Step("peers: reschedule", ("peers",), 10 * sizes.peers, reschedule, optional=True)


def _crowds(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    crowd = Crowd(world, report, GROUPS)
    wanted = ("latency", "waiting", "start")
    yield Step("crowd: the first", wanted, 20, partial(_afresh, world, crowd))
    yield Step("connections of 1", ("waiting",), 1, partial(_at, crowd, 1, crowd.measure_connections))
    for size in sizes.crowds:
        on_the_way = size < max(sizes.crowds)
        yield Step(f"start {size}", wanted, 5 + size / 20, partial(crowd.grow, size), on_the_way)
        connections = partial(_at, crowd, size, crowd.measure_connections)
        yield Step(f"connections {size}", ("waiting",), 1, connections, on_the_way)
        yield Step(f"memory {size}", ("waiting",), 2, partial(_at, crowd, size, crowd.measure_memory), on_the_way)
        yield _cpu_step(f"cpu {size}", crowd, size, sizes)
        runs = 1 if on_the_way else sizes.crowd_runs
        latency = partial(measure_groups, world, report, "kafka", waiting=size, runs=runs, patched=runs)
        latency_at = partial(_at, crowd, size, latency)
        yield Step(f"latency {size}", ("latency",), 5 + (10 + size / 100) * runs, latency_at, on_the_way)
    for size in reversed(sizes.crowds):
        recovery = partial(crowd.measure_recovery, size)
        yield Step(f"recovery {size}", ("start",), 30 + size / 16, recovery, size < max(sizes.crowds))
    yield Step("crowd: gone", wanted, 5, crowd.clear)


def _idle(world: World, report: Report, sizes: Sizes) -> Iterator[Step]:
    crowd = Crowd(world, report, IDLE_TRIGGERS)
    wanted = ("waiting", "start")
    yield Step("idle triggers: the first", wanted, 20, partial(_afresh, world, crowd))
    for size in sizes.crowds:
        on_the_way = size < max(sizes.crowds)
        yield Step(f"start of {size} idle triggers", wanted, 5 + size / 25, partial(crowd.grow, size), on_the_way)
        memory = partial(_at, crowd, size, crowd.measure_memory)
        yield Step(f"memory of {size} idle", ("waiting",), 2, memory, on_the_way)
        yield _cpu_step(f"cpu of {size} idle", crowd, size, sizes)
    yield Step("idle triggers: gone", wanted, 5, crowd.clear)


def _cpu_step(name: str, crowd: Crowd, size: int, sizes: Sizes) -> Step:
    on_the_way = size < max(sizes.crowds)
    seconds = sizes.cpu_seconds / 2 if on_the_way else sizes.cpu_seconds
    return Step(
        name, ("waiting",), seconds + 2, partial(_at, crowd, size, partial(crowd.measure_cpu, seconds)), on_the_way
    )


def _afresh(world: World, crowd: Crowd) -> None:
    """The first of a crowd, in a triggerer that has had nothing else to do than what is done once."""
    world.restart_triggerer()
    warm_up(world)
    crowd.begin()


def _at(crowd: Crowd, size: int, measure: Callable[[], object]) -> None:
    crowd.require(size)
    measure()
