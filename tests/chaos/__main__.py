"""The long form: ``python -m tests.chaos``, or ``make chaos``. Prints one table; fails when anything was lost."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.chaos import faults
from tests.chaos.burst import Burst, Report, long_form
from tests.chaos.faults import Fault
from tests.chaos.scenario import Row, Scenario, play, table
from tests.chaos.world import World

BURST = "burst"
"""What ``--only`` calls the load that is not a scenario: it needs no Airflow."""
_KILLS: Sequence[Fault] = [faults.kill] * 6 + [faults.kill_runner] * 2 + [faults.kill_both] * 2


def scenarios(seed: int, messages: int) -> list[Scenario]:
    """All of them; the first with so many awaited messages."""
    kills = [*_KILLS, *_KILLS]
    random.Random(f"{seed} kills").shuffle(kills)
    return [
        Scenario("kill", "kill -9 of a triggerer", kills, max(4, messages // 20)),
        Scenario("roll", "SIGTERM, rolling", [faults.roll, faults.roll], 20),
        Scenario("old", "old triggerer goes on", [faults.stop_supervisor, faults.stop_everything] * 2, 30),
        Scenario("api", "API server away for 60 s", [faults.stop_api_server], 20),
        Scenario("postgres", "PostgreSQL killed", [faults.stop_postgres], 20),
        Scenario("kafka", "Kafka killed", [faults.stop_kafka], 20),
        Scenario("mosquitto", "Mosquitto restarted", [faults.stop_mosquitto], 20),
        Scenario("hole", "brokers behind a black hole", [faults.black_hole], 20),
    ]


def main() -> int:
    """Run the scenarios, each on what the one before has left."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what to break, and when")
    parser.add_argument("--only", action="append", help="the short name of a scenario, or burst; may be repeated")
    parser.add_argument("--messages", type=int, default=5000, help="awaited messages of the first scenario")
    parser.add_argument("--keep", type=Path, help="a folder that takes the lists of messages and Airflow's logs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = [
        one for one in scenarios(options.seed, options.messages) if options.only is None or one.prefix in options.only
    ]
    print(f"seed {options.seed}", flush=True)
    rows: list[Row | Report] = []
    broken = False
    try:
        if options.only is None or BURST in options.only:
            broken = not _burst(options.seed, rows)
        if chosen:
            broken |= not _break_things(chosen, options, rows)
    finally:
        print(f"\nseed {options.seed}\n{table([row.cells for row in rows])}", flush=True)
    return 1 if broken or any(row.findings for row in rows) else 0


def _burst(seed: int, rows: list[Row | Report]) -> bool:
    """First and alone: what is measured there is one event loop, and the machine should have nothing else to do."""
    print("\nburst", flush=True)
    try:
        report = long_form(Burst(seed=seed))
    except Exception:
        traceback.print_exc()
        return False
    rows.append(report)
    _say(report.measured)
    for finding in report.findings[:40]:
        _say(finding)
    return True


def _break_things(chosen: Sequence[Scenario], options: argparse.Namespace, rows: list[Row | Report]) -> bool:
    """Run these scenarios; whether all of them were seen to their ends."""
    broken = False
    with tempfile.TemporaryDirectory(prefix="event-triggers-chaos-") as scratch, World() as world:
        try:
            for scenario in chosen:
                print(f"\n{scenario.title}", flush=True)
                try:
                    row = play(world, scenario, seed=options.seed, folder=Path(scratch), tell=_say)
                except Exception:
                    # What is broken then may be the tool; the other scenarios say something all the same.
                    traceback.print_exc()
                    broken = True
                    world.revive()
                    continue
                rows.append(row)
                _say("  ".join(row.cells))
                for finding in row.findings[:40]:
                    _say(finding)
        finally:
            if options.keep is not None:
                _keep(world, Path(scratch), options.keep)
    return not broken


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _keep(world: World, scratch: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(scratch, folder / "sent", dirs_exist_ok=True)
    shutil.copytree(world.airflow.home / "logs", folder / "logs", dirs_exist_ok=True)
    for log in (*world.airflow.home.glob("*.log"), world.mosquitto.log, world.sqs.log):
        shutil.copy(log, folder)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    sys.exit(main())
