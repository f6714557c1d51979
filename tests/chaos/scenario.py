"""One scenario: a plan is sent, faults strike at seeded places of it, and the witness looks at what became of it."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.faults import Fault, Strike
from tests.chaos.plan import make_plan
from tests.chaos.recovery import recovery_of
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

__all__ = ["COLUMNS", "Row", "Scenario", "play", "table"]

COLUMNS = ("fault", "times", "messages", "unwanted", "lost", "duplicated", "wrong", "left behind", "recovery", "took")

_FINDINGS = ("lost", "doubled", "wrong", "unfinished", "left", "gone")


@dataclass(frozen=True)
class Scenario:
    """What is done.

    :param prefix: a short name of letters and digits; the runs' ids begin with it.
    :param title: for the table.
    :param faults: in the order in which they strike.
    :param runs: how many runs; each awaits 20 messages, and 20 more are sent that nobody wants.
    :param rate: awaited messages a second, at most.
    :param thorough: whether the witness empties the queue, which can take a minute, or only counts.
    :param stalled: seconds without any progress after which what is missing is taken as lost.
    """

    prefix: str
    title: str
    faults: Sequence[Fault]
    runs: int
    rate: float = 12.0
    thorough: bool = True
    stalled: float = 600.0


@dataclass(frozen=True)
class Row:
    """What became of it."""

    scenario: Scenario
    report: dict[str, Any]
    strikes: Sequence[Strike]
    recoveries: Sequence[float]
    seconds: float

    @property
    def findings(self) -> list[str]:
        """Everything that should not be, one line each."""
        found = [f"{name}: {one}" for name in _FINDINGS for one in self.report[name]]
        return found + [complaint for strike in self.strikes for complaint in strike.complaints]

    @property
    def cells(self) -> tuple[str, ...]:
        """For the table, see :data:`COLUMNS`."""
        report = self.report
        recovery = "-"
        if self.recoveries:
            recovery = f"{statistics.median(self.recoveries):.1f} s (max {max(self.recoveries):.1f} s)"
        return (
            self.scenario.title,
            str(len(self.strikes)),
            str(report["awaited"]),
            str(report["unwanted"]),
            str(len(report["lost"]) + len(report["unfinished"])),
            str(len(report["doubled"])),
            str(len(report["wrong"])),
            str(len(report["left"]) + len(report["gone"])),
            recovery,
            f"{self.seconds:.0f} s",
        )


def play(world: World, scenario: Scenario, *, seed: int, folder: Path, tell: Callable[[str], None] = print) -> Row:
    """Send, break, wait for the end, and have the witness look.

    :param folder: takes the list of what was sent.
    """
    began = time.time()
    rng = random.Random(f"{seed} {scenario.prefix} faults")
    # Few enough at once that groups begin and end all the time.
    window = min(20, max(4, scenario.runs // 3))
    plan = make_plan(seed, scenario.prefix, scenario.runs, window=window)
    first, last = len(plan) // 20, len(plan) * 19 // 20
    places = sorted(rng.sample(range(first, last), len(scenario.faults)))
    manifest = folder / f"{scenario.prefix}.jsonl"
    strikes: list[Strike] = []
    with Traffic(world, plan, prefix=scenario.prefix, window=window, rate=scenario.rate, manifest=manifest) as traffic:
        for place, fault in zip(places, scenario.faults, strict=True):
            traffic.reach(place)
            # Anywhere between the arrival of the last message and its acknowledgement.
            time.sleep(rng.uniform(0, 0.4))
            for strike in fault(world, traffic, rng):
                strikes.append(strike)
                tell(f"{time.time() - began:6.1f} s  message {place}: {strike.what} ({len(strike.runs)} groups)")
        traffic.reach(len(plan))
    tell(f"{time.time() - began:6.1f} s  everything is sent")
    _wait_for_the_end(world, scenario)
    tell(f"{time.time() - began:6.1f} s  the groups have ended")
    report = _witness(world, scenario.prefix, manifest, folder, thorough=scenario.thorough)
    marks = world.marks(scenario.prefix)
    sensor_ends = {run: at for run, task, at in marks if task == "inputs.wait"}
    logs = world.airflow.home / "logs"
    recoveries = [recovery_of(strike, logs, marks, sensor_ends) for strike in strikes]
    seconds = time.time() - began
    return Row(scenario, report, strikes, [one for one in recoveries if one is not None], seconds)


def _wait_for_the_end(world: World, scenario: Scenario) -> None:
    """Return when all runs have ended, or nothing happens any more: the witness tells what is missing."""
    seen, since = -1, time.monotonic()
    while world.unfinished(scenario.prefix):
        marks = len(world.marks(scenario.prefix))
        if marks != seen:
            seen, since = marks, time.monotonic()
        if time.monotonic() - since > scenario.stalled:
            return
        time.sleep(0.5)


def _witness(world: World, prefix: str, manifest: Path, folder: Path, *, thorough: bool) -> dict[str, Any]:
    job = folder / f"{prefix}.json"
    job.write_text(json.dumps(world.witness_job(prefix, manifest, thorough=thorough)))
    program = Path(__file__).with_name("witness.py")
    # Isolated from this checkout: it cannot import the package, even by mistake.
    done = subprocess.run(
        [sys.executable, "-I", program, job], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode != 0:
        raise RuntimeError(f"the witness failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text, under :data:`COLUMNS`."""
    lines = [COLUMNS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])
