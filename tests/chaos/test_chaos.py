"""The short form: a few faults, one after the other, while messages flow. ``make chaos`` is the long one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.jars import class_path, java
from servers.mosquitto import find_mosquitto
from servers.postgres import find_binaries
from servers.process import ServerFailed
from tests.chaos import faults
from tests.chaos.scenario import Scenario, play, table
from tests.chaos.world import World
from tests.support import missing


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """All servers, two triggerers among them."""
    if find_binaries() is None or find_mosquitto() is None:
        missing("PostgreSQL or Mosquitto is not installed (apt-get install postgresql mosquitto)")
    try:
        java()
        for name in ("kafka", "elasticmq"):
            class_path(name)
    except ServerFailed as error:
        missing(str(error))
    with World() as running:
        yield running


# Most of it is the time of servers that start; on a busy machine it takes its time, and the witness has the last word.
@pytest.mark.timeout(560)
def test_nothing_is_lost_and_nothing_counts_twice(world: World, tmp_path: Path) -> None:
    seed = int(os.environ.get("EVENT_TRIGGERS_CHAOS_SEED", "7"))
    strikes = [faults.kill, faults.stop_supervisor, faults.end]
    scenario = Scenario("short", "killed, stopped, ended", strikes, runs=12, rate=10, thorough=False, stalled=180)
    row = play(world, scenario, seed=seed, folder=tmp_path)
    print(f"seed {seed}\n{table([row.cells])}")
    assert (row.report["awaited"], row.report["unwanted"], len(row.strikes)) == (240, 240, 3)
    assert sum(len(strike.runs) for strike in row.strikes) > 0, "no wait was hit"
    assert row.findings == [], f"seed {seed}"
