"""Load: a burst that matches nothing, on a real Kafka, while many groups wait in one event loop.

``python -m tests.chaos.burst`` prints one row of the table: what was sent, what was lost, how late the event loop came
back; ``make chaos`` begins with it. Every group awaits some of its messages before, some in and some after the burst.
The bodies come from another process, so that what is measured is the triggerer's work alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from event_triggers import Event, KafkaTopic
from event_triggers.clock import SystemClock
from event_triggers.garbage import calm_collector
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.sources.base import BrokerConnection
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryLedger
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait
from servers.kafka import KafkaCluster
from tests.chaos.scenario import table
from tests.integration.kafka_support import create_topic

__all__ = ["MOST_GROWTH", "Burst", "Report", "long_form", "run"]

MOST_LAG = 0.1
"""Seconds that the event loop may come back late, at the 99th percentile."""
MOST_GROWTH = 150.0
"""MiB that may be added: what the client fetches ahead, and what 500 groups hold, is far less."""
_LOOK_EVERY = 0.005
_WITHIN = 600.0


@dataclass(frozen=True)
class Burst:
    """What is done.

    :param messages: how many messages the burst has that nobody wants.
    :param groups: how many groups wait.
    :param events: how many events each group has; a third of them get their message in the burst.
    """

    messages: int = 200_000
    groups: int = 500
    events: int = 6
    seed: int = 7


@dataclass
class Report:
    """What became of it. Times in seconds, memory in MiB."""

    burst: Burst
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    """How much later than it should the event loop came back to somebody who slept, while the burst was read."""
    holds: list[float] = field(default_factory=list)
    """Of these, the CPU time of the event loop's own thread: what is left when the machine is busy with others."""
    seconds: float = 0.0
    """How long the burst took to be read."""
    memory_before: float = 0.0
    memory_most: float = 0.0
    unanswered_most: int = 0

    def lag(self, share: float = 0.99) -> float:
        """A percentile of the lags."""
        return _percentile(self.lags, share)

    def hold(self, share: float = 0.99) -> float:
        """A percentile of the holds."""
        return _percentile(self.holds, share)

    @property
    def findings(self) -> list[str]:
        """Everything that should not be, one line each."""
        named = {"lost": self.lost, "doubled": self.duplicated, "wrong": self.wrong}
        found = [f"{name}: {one}" for name, ones in named.items() for one in ones]
        if self.lag() > MOST_LAG:
            found.append(f"slow: the event loop came back {self.lag() * 1e3:.0f} ms late, at the 99th percentile")
        if self.memory_most - self.memory_before > MOST_GROWTH:
            found.append(f"large: {self.memory_most - self.memory_before:.0f} MiB were added")
        return found

    @property
    def cells(self) -> tuple[str, ...]:
        """For the table of all faults; where that has the time of recovery, how late the event loop came back."""
        return (
            f"burst, {self.burst.groups} groups wait",
            "1",
            str(self.burst.groups * self.burst.events),
            str(self.burst.messages),
            str(len(self.lost)),
            str(len(self.duplicated)),
            str(len(self.wrong)),
            "-",
            f"lag p99 {self.lag() * 1e3:.0f} ms",
            f"{self.seconds:.0f} s",
        )

    @property
    def measured(self) -> str:
        """All that was measured, on one line."""
        return (
            f"lag p50 {self.lag(0.5) * 1e3:.0f} p99 {self.lag() * 1e3:.0f} max {self.lag(1) * 1e3:.0f} ms "
            f"(CPU p99 {self.hold() * 1e3:.0f} max {self.hold(1) * 1e3:.0f} ms), "
            f"{self.memory_before:.0f} -> {self.memory_most:.0f} MiB, {self.unanswered_most} under way, "
            f"{self.seconds:.1f} s"
        )


async def run(burst: Burst, bootstrap: str, topic: str) -> Report:
    """Wait with all groups, send, and compare what every marker holds with what was sent for it.

    :param topic: exists, and is empty.
    """
    plan = _Plan(burst)
    report = Report(burst)
    calm_collector()  # as a triggerer does
    hub, ledger, clock = Hub(_connection_to(bootstrap)), MemoryLedger(), SystemClock()
    since, timeline = clock.now().isoformat(), Timeline.of(Terms(), {}, clock.now(), _WITHIN)
    waits: dict[str, asyncio.Task[Verdict]] = {}
    with tempfile.TemporaryDirectory(prefix="event-triggers-burst-") as folder:
        for ref in plan.groups:
            events = {name: Event(KafkaTopic(topic), match=plan.pattern(ref, name), since=since) for name in plan.names}
            wait = GroupWait(
                ref, events, {n: n for n in events}, hub=hub, ledger=ledger, clock=clock, timeline=timeline
            )
            waits[ref.run_id] = asyncio.get_running_loop().create_task(wait.run())
        try:
            with anyio.fail_after(_WITHIN):
                await _until(lambda: _entries(hub) == burst.groups * burst.events)
                await _send(bootstrap, topic, plan.bodies("before"), Path(folder))
                await _until(lambda: _entries(hub) == sum(burst.groups for n in plan.names if plan.part(n) != "before"))
                producer = await _prepare(bootstrap, topic, plan.bodies("in"), Path(folder))
                async with _measuring(hub, report):
                    read = _messages(hub)
                    async with anyio.create_task_group() as group:
                        group.start_soon(producer)
                        await _until(lambda: _messages(hub) - read >= len(plan.bodies("in")))
                await _send(bootstrap, topic, plan.bodies("after"), Path(folder))
                await asyncio.wait(waits.values(), timeout=60)
        finally:
            for task in waits.values():
                task.cancel()
            await asyncio.wait(waits.values())
    _compare(plan, ledger, waits, report)
    return report


class _Plan:
    """Who waits for what, and what is sent when. All of it follows from the seed."""

    def __init__(self, burst: Burst) -> None:
        self.names = [f"event_{number}" for number in range(burst.events)]
        self.groups = [GroupRef("load", f"run-{number}", "wait") for number in range(burst.groups)]
        rng = random.Random(burst.seed)
        self._bodies: dict[str, list[bytes]] = {
            part: [_json(self.body(ref, name)) for ref in self.groups for name in self.names if self.part(name) == part]
            for part in ("before", "in", "after")
        }
        self._bodies["in"] += [_nobodys(rng, number, burst) for number in range(burst.messages)]
        rng.shuffle(self._bodies["in"])

    def part(self, name: str) -> str:
        """When the message of this event is sent."""
        return ("before", "in", "after")[self.names.index(name) % 3]

    def pattern(self, ref: GroupRef, name: str) -> dict[str, Any]:
        """What the event waits for: like what is sent in masses, but for the values."""
        return {"run": [ref.run_id], "detail": {"event": [name], "status": ["complete", "done"]}}

    def body(self, ref: GroupRef, name: str) -> dict[str, Any]:
        """The one message that it waits for."""
        return {"id": f"{ref.run_id} {name}", "run": ref.run_id, "detail": {"event": name, "status": "done"}}

    def bodies(self, part: str) -> Sequence[bytes]:
        """What is sent then, in order."""
        return self._bodies[part]


def _nobodys(rng: random.Random, number: int, burst: Burst) -> bytes:
    """A message that almost fits, or one that is no JSON."""
    if number % 50 == 0:
        return rng.randbytes(60).replace(b"\n", b" ")
    near = {"event": f"event_{rng.randrange(burst.events)}", "status": rng.choice(["failed", "running"])}
    run = f"run-{rng.randrange(2 * burst.groups)}"
    return _json({"id": number, "run": run, "detail": near, "more": ["x" * 20] * rng.randrange(12)})


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _connection_to(bootstrap: str) -> Any:
    async def connection(conn_id: str) -> BrokerConnection:
        return BrokerConnection(conn_id, "kafka", extra={"bootstrap.servers": bootstrap})

    return connection


async def _send(bootstrap: str, topic: str, bodies: Sequence[bytes], folder: Path) -> None:
    producer = await _prepare(bootstrap, topic, bodies, folder)
    await producer()


async def _prepare(
    bootstrap: str, topic: str, bodies: Sequence[bytes], folder: Path
) -> Callable[[], Coroutine[Any, Any, object]]:
    """What sends them: the bodies are written beforehand, since joining megabytes holds the event loop, too."""
    file = folder / "bodies"
    await anyio.to_thread.run_sync(file.write_bytes, b"\n".join(bodies))
    command = [sys.executable, "-m", "tests.chaos.burst_producer", bootstrap, topic, str(file)]
    return partial(anyio.run_process, command, cwd=Path(__file__).parents[2])


async def _until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - nobody tells when it does
        await asyncio.sleep(0.02)


def _memory() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _entries(hub: Hub) -> int:
    return sum(channel.entries for channel in hub.statistics().channels)


def _messages(hub: Hub) -> int:
    return sum(channel.messages for channel in hub.statistics().channels)


@asynccontextmanager
async def _measuring(hub: Hub, report: Report) -> AsyncIterator[None]:
    """Look at the event loop and at memory while the context is open."""
    report.memory_before = report.memory_most = _memory()
    began = time.monotonic()

    async def sleep_and_look() -> None:
        while True:
            then, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(_LOOK_EVERY)
            lag = time.monotonic() - then - _LOOK_EVERY
            report.lags.append(lag)
            report.holds.append(min(lag, time.thread_time() - worked))

    async def look_at_memory() -> None:
        while True:
            report.memory_most = max(report.memory_most, _memory())
            unanswered = sum(channel.unanswered for channel in hub.statistics().channels)
            report.unanswered_most = max(report.unanswered_most, unanswered)
            await asyncio.sleep(0.05)

    async with anyio.create_task_group() as group:
        group.start_soon(sleep_and_look)
        group.start_soon(look_at_memory)
        yield
        group.cancel_scope.cancel()
    report.seconds = time.monotonic() - began


def _compare(plan: _Plan, ledger: MemoryLedger, waits: dict[str, asyncio.Task[Verdict]], report: Report) -> None:
    recorded = Counter((one.group, one.event) for one in ledger.history if one.kind == "marked")
    for ref in plan.groups:
        task = waits[ref.run_id]
        if task.cancelled() or task.result().status is not Status.COMPLETE:
            report.lost.append(f"{ref.run_id} is not complete")
        for name in plan.names:
            label, expected = f"{ref.run_id} {name}", plan.body(ref, name)
            payload = ledger.payload(ref, name)
            if payload is None:
                report.lost.append(label)
            elif payload != expected:
                report.wrong.append(f"{label} holds {payload!r}")
            if recorded[ref, name] > 1:
                report.duplicated.append(f"{label} was marked {recorded[ref, name]} times")


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def main() -> int:
    """Run it on a Kafka of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.burst", description=__doc__)
    parser.add_argument("--messages", type=int, default=Burst.messages, help="that nobody wants")
    parser.add_argument("--groups", type=int, default=Burst.groups)
    parser.add_argument("--events", type=int, default=Burst.events, help="of each group")
    parser.add_argument("--seed", type=int, default=Burst.seed)
    options = parser.parse_args()
    burst = Burst(options.messages, options.groups, options.events, options.seed)
    report = long_form(burst)
    print(f"{table([report.cells])}\n{report.measured}", flush=True)
    for finding in report.findings[:20]:
        print(f"  {finding}")
    return 1 if report.findings else 0


def long_form(burst: Burst) -> Report:
    """Run it on a Kafka of its own, in an event loop of its own."""
    with KafkaCluster() as kafka:
        return asyncio.run(_on(kafka.bootstrap, burst))


async def _on(bootstrap: str, burst: Burst) -> Report:
    await create_topic(bootstrap, "burst", partitions=3)
    return await run(burst, bootstrap, "burst")


if __name__ == "__main__":
    sys.exit(main())
