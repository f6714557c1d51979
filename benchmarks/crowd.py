"""Many groups that wait: how long they take to start, what they cost, and how they come back after a crash.

The first one is a run that Airflow starts from the first step to the last. The others are copies of its rows in the
database, as a scheduler would have left them: a running run, a deferred sensor, markers, a new trigger that nobody has
taken yet. From there on it is all Airflow's triggerer and the package.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from benchmarks import plan, probes
from benchmarks.report import NotMeasured, Report
from benchmarks.world import CONNECTED, IDLING, World
from servers.airflow import TRIGGERER
from servers.airflow_client import wait_for

__all__ = ["GROUPS", "IDLE_TRIGGERS", "Crowd", "Kind"]


class Kind(NamedTuple):
    """What there are many of.

    :param said: what the log of each says when it waits.
    :param start: the figure of the time until all wait; and so on.
    """

    dag_id: str
    said: str
    start: str
    memory: str
    cpu: str


GROUPS = Kind(plan.CROWD, CONNECTED, "start", "memory per wait", "cpu")
IDLE_TRIGGERS = Kind(plan.IDLE, IDLING, "start of idle triggers", "memory per idle trigger", "cpu of idle triggers")


class Crowd:
    """The waits of one kind.

    :param world: where; its triggerer is a fresh one that has nothing else to do.
    """

    def __init__(self, world: World, report: Report, kind: Kind) -> None:
        self._world = world
        self._report = report
        self._kind = kind
        self._template = ""
        self._copies: list[str] = []
        self._least_memory = 0
        self._round = 0

    @property
    def size(self) -> int:
        """How many wait."""
        return len(self._copies) + bool(self._template)

    def require(self, size: int) -> None:
        """Only go on where so many wait.

        :raises NotMeasured: when they do not.
        """
        if self.size != size:
            raise NotMeasured(f"{self.size} of {self._kind.dag_id} wait, not {size}")

    def begin(self) -> None:
        """Start the first one, which the others are copies of."""
        world, kind = self._world, self._kind
        run_id = world.start_run(kind.dag_id)
        world.wait_said(kind.dag_id, [run_id], kind.said, timeout=120)
        self._template = run_id
        world.settle()
        self._least_memory = probes.anonymous_bytes(world.triggerer())

    def grow(self, size: int, *, timeout: float = 240) -> None:
        """Let so many wait, all but the first as new triggers that come at the same moment."""
        self.shrink(1)
        if not self._template:
            raise NotMeasured("the first one does not wait")
        self._round += 1
        prefix = f"copy-{self._round}-"
        world, kind = self._world, self._kind
        created = world.database.copy_run(kind.dag_id, self._template, prefix, 1, size - 1)
        copies = [f"{prefix}{number}" for number in range(1, size)]
        said = world.wait_said(kind.dag_id, copies, kind.said, timeout=timeout)
        self._copies = copies
        self._report.add(kind.start, max(said.values()) - created, "s", at=size)

    def measure_memory(self) -> None:
        """What each more of them takes in the triggerer's two processes."""
        self._world.settle()
        taken = probes.anonymous_bytes(self._world.triggerer()) - self._least_memory
        self._report.add(self._kind.memory, taken / (self.size - 1), "bytes", at=self.size)
        self._report.add(f"{self._kind.memory}, in all", taken, "bytes", at=self.size)

    def measure_cpu(self, seconds: float) -> None:
        """What the triggerer's processes take while nothing happens."""
        self._world.settle()
        self._report.add(self._kind.cpu, probes.cpu_share(self._world.triggerer(), seconds), "of a core", at=self.size)

    def measure_connections(self) -> None:
        """How many connections to Kafka the triggerer has."""
        self._report.add("connections", self._world.kafka_connections(), "connections", at=self.size)

    def measure_recovery(self, size: int, *, timeout: float = 240) -> None:
        """With so many waiting: kill the triggerer, start another at once, and look when all wait again.

        Airflow gives the waits away when the dead one has not been heard of for a while; that is told apart.
        """
        self.shrink(size)
        self.require(size)
        world, kind = self._world, self._kind
        killed = time.time()
        world.airflow.kill_component(TRIGGERER)
        world.airflow.start_component(TRIGGERER)
        assigned = wait_for(self._assigned, timeout=timeout, what="the waits have a triggerer again", pause=0.05)
        runs = [self._template, *self._copies]
        said = world.wait_said(kind.dag_id, runs, kind.said, timeout=timeout)
        self._report.add("recovery", max(said.values()) - killed, "s", at=self.size)
        self._report.add("recovery, from the first taken over", max(said.values()) - assigned, "s", at=self.size)

    def _assigned(self) -> float | None:
        statement = "SELECT 1 FROM trigger WHERE triggerer_id = %(job)s LIMIT 1"
        rows = self._world.database.rows(statement, job=self._world.airflow.jobs[TRIGGERER])
        return time.time() if rows else None

    def clear(self) -> None:
        """Remove them all."""
        self._world.database.remove_runs(self._kind.dag_id)
        self._copies, self._template = [], ""
        self._world.settle()

    def shrink(self, size: int) -> None:
        """Let no more than so many wait."""
        if self.size > size:
            self._copies = self._copies[: size - 1]
            self._world.database.remove_runs(self._kind.dag_id, but=[self._template, *self._copies])
            self._world.settle()
