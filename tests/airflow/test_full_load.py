"""Markers are marked through the plugin's route while the scheduler has all it can do, with the same runs and others.

On PostgreSQL and on SQLite, which has one lock for the whole database. The runs that are marked are in the scheduler's
hands: it looks at each of them again and again, since a task waits behind the markers. What happens to be locked by one
is waited for by the other; nobody may be refused, deadlock, or end.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from event_triggers.airflow_api import AirflowApi
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.api_settings import ApiSettings
from event_triggers.ledger import Arrival, GroupRef, Received
from servers.airflow import SCHEDULER, Airflow
from servers.airflow_client import AirflowClient, wait_for

ROOT = Path(__file__).parents[2]
MARKED, LOAD = "marked_under_load", "full_load"
RUNS, MARKERS, AT_ONCE = 10, 20, 4
LAYERS, WIDTH = 8, 10
LOAD_AHEAD = 5
"""So many runs of the load are unfinished at any moment, as long as marks are made."""
_DAGS = f"""
from datetime import datetime
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, cross_downstream
from event_triggers.marker import EventMarker

with DAG("{MARKED}", schedule=None, start_date=datetime(2030, 1, 1), max_active_runs=1000):
    wait = DateTimeSensorAsync(task_id="wait", target_time="2099-01-01T00:00:00+00:00", start_from_trigger=True)
    wait >> [EventMarker(task_id=f"m{{n}}") for n in range({MARKERS})] >> EmptyOperator(task_id="after")

with DAG("{LOAD}", schedule=None, start_date=datetime(2030, 1, 1), max_active_runs=1000, max_active_tasks=1000):
    layers = [
        [EmptyOperator(task_id=f"t{{layer}}_{{n}}") for n in range({WIDTH})] for layer in range({LAYERS})
    ]
    for one, next_one in zip(layers, layers[1:]):
        cross_downstream(one, next_one)
"""
_TROUBLE = re.compile("deadlock|database is locked|Traceback|OperationalError", re.IGNORECASE)

pytestmark = pytest.mark.timeout(600)  # it may start an Airflow


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Airflow]:
    """Airflow, whose scheduler will be busy."""
    if request.param == "postgresql":
        airflow: Airflow = request.getfixturevalue("airflow")
        (airflow.scratch / "full_load.py").write_text(_DAGS)
        yield airflow
        return
    with Airflow(users={"admin": "admin", "marker": "user"}, python_path=[ROOT]) as alone:
        (alone.scratch / "full_load.py").write_text(_DAGS)
        yield alone


def test_marks_and_the_scheduler_do_not_hold_each_other_up(loaded: Airflow) -> None:
    client = loaded.client("admin")
    for dag_id in (MARKED, LOAD):
        client.wait_parsed(dag_id)
    runs = [client.trigger(MARKED) for _ in range(RUNS)]
    for run in runs:
        client.wait_states(MARKED, run, {"wait": "deferred"})
    before = len(loaded.log(SCHEDULER))
    log: list[str] = []
    with under_load(loaded) as load:
        done_before = done(loaded)
        asyncio.run(mark_all(loaded, runs, log))
        assert done(loaded) > done_before, "the scheduler has done nothing meanwhile"
    assert log == ["markers are marked through the marking route in Airflow's API server"] * RUNS
    for run in runs:
        states = client.wait_states(MARKED, run, {"after": "success"})
        assert all(states[f"m{number}"] == "success" for number in range(MARKERS))
    xcoms = loaded.history.rows(
        "SELECT run_id, task_id, count(*) FROM xcom WHERE dag_id = :dag AND key = 'return_value' GROUP BY 1, 2",
        dag=MARKED,
    )
    assert {(run, task): count for run, task, count in xcoms} == {
        (run, f"m{number}"): 1 for run in runs for number in range(MARKERS)
    }
    for run in load:
        client.wait_run(LOAD, run, "success", timeout=200)
    assert loaded.components[SCHEDULER].running
    assert not _TROUBLE.findall(loaded.log(SCHEDULER)[before:])
    end(client, runs)


def done(airflow: Airflow) -> int:
    """How many tasks of the load are done."""
    statement = "SELECT count(*) FROM task_instance WHERE dag_id = :dag AND state = 'success'"
    return int(airflow.history.rows(statement, dag=LOAD)[0][0])


@contextmanager
def under_load(airflow: Airflow) -> Iterator[list[str]]:
    """Runs for the scheduler, more and more of them until the context ends; it has begun with them when it begins."""
    client = airflow.client("admin")
    runs: list[str] = []
    enough = threading.Event()

    def feed() -> None:
        while not enough.is_set():
            if len(runs) * LAYERS * WIDTH - done(airflow) < LOAD_AHEAD * LAYERS * WIDTH:
                runs.append(client.trigger(LOAD))
            else:
                enough.wait(0.05)

    with ThreadPoolExecutor(1) as thread:
        feeding = thread.submit(feed)
        try:
            wait_for(lambda: done(airflow) > 0, what=airflow.diagnose)
            yield runs
        finally:
            enough.set()
            feeding.result()


async def mark_all(airflow: Airflow, runs: Sequence[str], log: list[str]) -> None:
    """Record a message for every marker of these runs, as their groups do: all together."""
    settings = ApiSettings(airflow.url, login="marker", password=airflow.passwords["marker"], origin="the test")

    async def make_api() -> AirflowApi:
        return AirflowApi(settings)

    ledger = AirflowLedger(make_api)
    markers = {f"m{number}": f"m{number}" for number in range(MARKERS)}
    async with AsyncExitStack() as stack:
        books: list[Any] = [
            await stack.enter_async_context(
                ledger.open(GroupRef(MARKED, run, "wait"), markers, lambda _, text: log.append(text))
            )
            for run in runs
        ]
        names = list(markers)
        for first in range(0, MARKERS, AT_ONCE):
            arrivals = [arrival(name) for name in names[first : first + AT_ONCE]]
            await asyncio.gather(*(book.record(arrivals) for book in books))


def arrival(name: str) -> Arrival:
    one = Received("kafka", "s", name, name, None, "2030-01-01T00:00:00Z", {"id": name}, "a note")
    return Arrival(name, (one,), 1)


def end(client: AirflowClient, runs: Sequence[str]) -> None:
    """Let nothing wait for the year 2099."""
    for run in runs:
        client.mark_run(MARKED, run, "failed")
