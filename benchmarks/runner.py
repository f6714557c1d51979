"""``python -m benchmarks``: measure everything in one run, print the table, keep ``benchmarks/results.json``.

Flow: the brokers are started, the bare clients and the hub are measured; then Airflow beside them, and everything that
needs it; at the end the table, the JSON and the pictures. ``--only`` leaves parts out, ``--quick`` takes a fraction of
the groups and few samples, for whoever changes the benchmark.

Invariants: a step that fails, or does not end in its time, loses its own figures, and the others go on. Where time gets
short, first the curves lose points; when it is up no further step is begun. So the command ends, and what it has
measured is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.campaign import FULL, PARTS, QUICK, WITH_AIRFLOW, Sizes, Step, before_airflow, with_airflow
from benchmarks.document import write_into
from benchmarks.pictures import draw
from benchmarks.report import NotMeasured, Report
from benchmarks.table import as_json, as_text, met
from benchmarks.world import Brokers, World

__all__ = ["BUDGET", "Runner", "main"]

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results.json"
IMAGES = ROOT / "docs" / "images"
DOCUMENT = ROOT / "docs" / "performance.md"
BUDGET = 860.0
"""Seconds after which no step goes on: 15 minutes, less what it takes to end everything."""


class Runner:
    """One run.

    :param parts: which parts are wanted.
    :param budget: seconds for all.
    :param patience: how many times as long as planned a step may take.
    """

    def __init__(self, parts: frozenset[str], sizes: Sizes, budget: float, *, patience: float = 1) -> None:
        self.report = Report()
        self._parts = parts
        self._sizes = sizes
        self._patience = patience
        self._began = time.monotonic()
        self._until = self._began + budget

    def run(self) -> None:
        """Measure; what fails is in the report."""
        with ExitStack() as stack:
            brokers = Brokers()
            if not self.step(Step("brokers", PARTS, 10, lambda: stack.enter_context(brokers))):
                return
            world = World(brokers)
            start = Step("Airflow", WITH_AIRFLOW, 60, lambda: stack.enter_context(world))
            later = self._wanted(with_airflow(world, self.report, self._sizes))
            self.take(
                self._wanted(before_airflow(brokers, self.report, self._sizes)), [*([start] if later else []), *later]
            )
            if later and self.step(start):
                self.take(later)

    def _wanted(self, steps: Iterable[Step]) -> list[Step]:
        return [step for step in steps if not self._parts.isdisjoint(step.parts)]

    def take(self, steps: Sequence[Step], later: Sequence[Step] = ()) -> None:
        """Take these steps.

        :param later: what comes behind, and needs its time.
        """
        for number, step in enumerate(steps):
            needed = sum(one.usual for one in (*steps[number + 1 :], *later) if not one.optional)
            if step.optional and self._left() < step.usual + needed:
                self.report.failures[step.name] = "left out: the time was needed for what the targets are about"
            else:
                self.step(step)

    def _left(self) -> float:
        return self._until - time.monotonic()

    def step(self, step: Step) -> bool:
        """Take one step; whether it went well."""
        began = time.monotonic()
        with self.report.part(step.name):
            left = self._left()
            if left <= 0:
                raise NotMeasured("no time was left")
            with _limit(min(step.limit * self._patience, left)):
                step.run()
        failure = self.report.failures.get(step.name)
        now = time.monotonic()
        text = f" FAILED: {failure.splitlines()[0]}" if failure else ""
        _say(f"[{now - self._began:5.0f} s] {step.name}: {now - began:.1f} s{text}")
        return failure is None


class _OutOfTime(KeyboardInterrupt):
    """A step has not ended in its time. Of this kind, since an event loop lets nothing else through."""


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Give up what takes longer.

    :raises NotMeasured: when it does.
    """

    def over(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    # And again, should it have come where nothing can be raised.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    except _OutOfTime as error:
        raise NotMeasured(f"did not end within {seconds:.0f} s") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _about(options: argparse.Namespace, took: float) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(took, 1),
        "quick": options.quick,
        "parts": sorted(options.only or PARTS),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "airflow": version("apache-airflow"),
        "load": os.getloadavg()[0],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(":")[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; can be repeated")
    parser.add_argument("--groups", type=int, nargs="+", help="how many groups wait, instead of 10, 100 and 1,000")
    parser.add_argument("--quick", action="store_true", help="few groups and samples: to try it, not to publish")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no step is begun")
    parser.add_argument(
        "--patience", type=float, default=1, help="how many times as long a step may take: busy machines"
    )
    parser.add_argument("--results", type=Path, default=None, help=f"where the JSON goes (default: {RESULTS.name})")
    parser.add_argument("--images", type=Path, default=None, help="where the pictures go (default: docs/images)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 when every target is met."""
    options = _options(arguments)
    # What is only a part, or small, must not take the place of a whole run.
    partial = bool(options.only or options.quick or options.groups)
    scratch = ROOT / "benchmarks" / "scratch"
    results = options.results or (scratch / "results.json" if partial else RESULTS)
    images = options.images or (scratch if partial else IMAGES)
    random.seed()
    began = time.monotonic()
    sizes = QUICK if options.quick else FULL
    if options.groups:
        sizes = sizes._replace(crowds=tuple(sorted(options.groups)))
    runner = Runner(frozenset(options.only or PARTS), sizes, options.budget, patience=options.patience)
    try:
        runner.run()
    finally:
        about = _about(options, time.monotonic() - began)
        document = as_json(runner.report, about)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(document, indent=1) + "\n")
        print(as_text(runner.report))
    draw(runner.report, images)
    if not partial:
        write_into(DOCUMENT, runner.report, about)
    reached, of = met(document["targets"].values())
    print(f"\n{reached} of {of} targets are met; {results} holds the figures; {time.monotonic() - began:.0f} s")
    return 0 if reached == of else 1
