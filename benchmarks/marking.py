"""``python -m benchmarks.marking``: marks per second, beside one PATCH after the other in the same run.

:func:`measure` is what other benchmarks call. It works on a running Airflow on PostgreSQL: a DAG with a group is put
in, one run of it is made, and copied in the database as often as is asked, its sensor deferred. Then markers are marked
in three ways: by bare ``PATCH`` one after the other, by the package through the public API alone, and by the package's
ledger through the marking route (payload, facts, note and state of each). Meanwhile another process asks for a page of
the API, and its latency is compared with that of an idle server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg2

from event_triggers.airflow_api import AirflowApi
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.api_settings import ApiSettings
from event_triggers.ledger import Arrival, Book, GroupRef, Received
from event_triggers.marking import WORKERS, Mark, MarkingLine
from event_triggers.xcoms import MarkerKey
from servers.airflow import Airflow
from servers.postgres import Postgres

__all__ = ["Marking", "measure"]

DAG_ID = "marking_benchmark"
_DAG = """
from datetime import datetime
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from event_triggers.marker import EventMarker

with DAG(
    "{dag_id}", schedule=None, start_date=datetime(2030, 1, 1), max_active_runs=100_000, is_paused_upon_creation=True
):
    EmptyOperator(task_id="wait") >> [EventMarker(task_id=f"m{{n}}") for n in range({markers})]
"""
_USER = "marker"


@dataclass(frozen=True)
class Marking:
    """What was measured: marks per second, seconds of latency, and the ratios that the targets are about."""

    sequential: float
    public: float
    route: float
    idle_latency: float
    latency_meanwhile: float
    failures_meanwhile: int
    marks: int
    public_errors: int
    """How many requests to the public API were answered 500 or worse."""
    public_slowest: float
    """Seconds that the slowest of them took."""

    @property
    def route_ratio(self) -> float:
        """Target: at least 30."""
        return self.route / self.sequential

    @property
    def public_ratio(self) -> float:
        """Target: at least 1.6."""
        return self.public / self.sequential

    @property
    def latency_ratio(self) -> float:
        """Target: at most 2; medians."""
        return self.latency_meanwhile / self.idle_latency


def measure(
    airflow: Airflow, *, runs: int = 1000, markers: int = 20, sequential: int = 100, public: int = 400
) -> Marking:
    """Measure on a running Airflow that has a user ``marker`` and PostgreSQL below it.

    :param runs: how many runs are due at once, each with ``markers`` markers: for the route.
    :param sequential: how many PATCHes are sent one after the other.
    :param public: how many marks go through the public API alone.
    """
    per_way = -(-max(sequential, public) // markers)
    run_ids = _prepare(airflow, runs + 2 * per_way, markers)
    first, second, rest = run_ids[:per_way], run_ids[per_way : 2 * per_way], run_ids[2 * per_way :]
    return asyncio.run(_Measuring(airflow, markers).all(first, second, rest, sequential, public))


class _Watched(httpx.AsyncHTTPTransport):
    """Keeps what was answered, and after how long; the client itself repeats what fails and does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[int, float]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        began = time.perf_counter()
        answer = await super().handle_async_request(request)
        self.answers.append((answer.status_code, time.perf_counter() - began))
        return answer


class _Measuring:
    def __init__(self, airflow: Airflow, markers: int) -> None:
        self._airflow = airflow
        self._markers = markers
        self._settings = ApiSettings(airflow.url, login=_USER, password=airflow.passwords[_USER], origin="benchmark")

    async def all(
        self, first: Sequence[str], second: Sequence[str], rest: Sequence[str], sequential: int, public: int
    ) -> Marking:
        token = await self._token()
        idle: list[float] = []
        with self._probe(first[0], token, idle):
            await asyncio.sleep(3)
        sequential_rate = await self._sequential(first, token, sequential)
        watched = _Watched()
        public_rate = await self._public(second, public, watched)
        busy: list[float] = []
        async with self._books(rest) as books:
            with self._probe(first[0], token, busy):
                began = time.perf_counter()
                await asyncio.gather(*(book.record(self._arrivals(run)) for run, book in books.items()))
                took = time.perf_counter() - began
        marks = len(rest) * self._markers
        return Marking(
            sequential=sequential_rate,
            public=public_rate,
            route=marks / took,
            idle_latency=statistics.median(one for one in idle if one > 0),
            latency_meanwhile=statistics.median(one for one in busy if one > 0),
            failures_meanwhile=sum(one < 0 for one in busy),
            marks=marks,
            public_errors=sum(status >= 500 for status, _ in watched.answers),
            public_slowest=max(seconds for _, seconds in watched.answers),
        )

    async def _token(self) -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            login = {"username": _USER, "password": self._airflow.passwords[_USER]}
            return str((await client.post(f"{self._airflow.url}/auth/token", json=login)).json()["access_token"])

    async def _sequential(self, run_ids: Sequence[str], token: str, count: int) -> float:
        keys = self._keys(run_ids)[:count]
        async with httpx.AsyncClient(
            base_url=self._airflow.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        ) as client:
            began = time.perf_counter()
            for key in keys:
                answer = await client.patch(key.instance, json={"new_state": "success", "note": "a note"}, timeout=60)
                answer.raise_for_status()
            return len(keys) / (time.perf_counter() - began)

    async def _public(self, run_ids: Sequence[str], count: int, watched: _Watched) -> float:
        keys = self._keys(run_ids)[:count]
        async with AirflowApi(self._settings, transport=watched) as api:
            line = MarkingLine(api, across_runs=True)
            workers = [asyncio.create_task(line.work()) for _ in range(WORKERS)]
            try:
                began = time.perf_counter()
                await asyncio.gather(*(line.mark(Mark(key, "a note")) for key in keys))
                return len(keys) / (time.perf_counter() - began)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)

    @contextlib.asynccontextmanager
    async def _books(self, run_ids: Sequence[str]) -> AsyncIterator[dict[str, Book]]:
        async def make_api() -> AirflowApi:
            return AirflowApi(self._settings)

        ledger = AirflowLedger(make_api)
        names = {f"m{number}": f"m{number}" for number in range(self._markers)}
        async with contextlib.AsyncExitStack() as stack:
            books = {}
            for run in run_ids:
                group = GroupRef(DAG_ID, run, "wait")
                books[run] = await stack.enter_async_context(ledger.open(group, names, _print))
            yield books

    def _arrivals(self, run: str) -> list[Arrival]:
        arrivals = []
        for number in range(self._markers):
            identity = f"{run}/{number}"
            payload = {"table": f"t{number}", "rows": 1234, "files": [f"s3://bucket/{identity}.parquet"]}
            one = Received("kafka", "etl-finish", identity, identity, None, "2030-01-01T00:00:00Z", payload, "a note")
            arrivals.append(Arrival(f"m{number}", (one,), 1))
        return arrivals

    def _keys(self, run_ids: Sequence[str]) -> list[MarkerKey]:
        return [MarkerKey(DAG_ID, run, f"m{number}", -1) for run in run_ids for number in range(self._markers)]

    @contextlib.contextmanager
    def _probe(self, run_id: str, token: str, latencies: list[float]) -> Iterator[None]:
        path = f"/api/v2/dags/{DAG_ID}/dagRuns/{quote(run_id)}"
        command = [sys.executable, "-m", "benchmarks.marking_probe", self._airflow.url, path, token]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
            try:
                yield
            finally:
                printed, _ = probe.communicate("")
                latencies += [float(line) for line in printed.split()]


def _print(level: int, text: str) -> None:
    if level > 20:
        print(text, file=sys.stderr)


def _prepare(airflow: Airflow, runs: int, markers: int) -> list[str]:
    """A DAG, and runs of it whose sensor waits."""
    (airflow.scratch / f"{DAG_ID}.py").write_text(_DAG.format(dag_id=DAG_ID, markers=markers))
    client = airflow.client("admin")
    client.wait_parsed(DAG_ID)
    run_id = client.trigger(DAG_ID)
    address = airflow.database_url.replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as database, database, database.cursor() as cursor:
        cursor.execute("UPDATE dag_run SET state = 'running' WHERE dag_id = %s", [DAG_ID])
        cursor.execute("UPDATE task_instance SET state = 'deferred' WHERE dag_id = %s AND task_id = 'wait'", [DAG_ID])
        for table, own in (("dag_run", {"id"}), ("task_instance", {"id"})):
            columns = _columns(cursor, table) - own - {"run_id"}
            names = ", ".join(sorted(columns))
            new = ", id" if table == "task_instance" else ""
            value = ", gen_random_uuid()" if table == "task_instance" else ""
            cursor.execute(
                f"INSERT INTO {table} (run_id{new}, {names}) "  # noqa: S608 - names of Airflow's own columns
                f"SELECT 'copy__' || n{value}, {names} FROM {table}, generate_series(1, %s) AS n "
                f"WHERE dag_id = %s AND run_id = %s",
                [runs, DAG_ID, run_id],
            )
        cursor.execute("ANALYZE dag_run; ANALYZE task_instance")
    return [f"copy__{number}" for number in range(1, runs + 1)]


def _columns(cursor: Any, table: str) -> set[str]:
    cursor.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_generated = 'NEVER'", [table]
    )
    return {name for (name,) in cursor.fetchall()}


def main() -> None:
    """Measure beside an Airflow of our own, and print."""
    users = {"admin": "admin", _USER: "user"}
    root = Path(__file__).parents[1]
    with (
        Postgres() as postgres,
        Airflow(database_url=postgres.create_database("marking"), users=users, python_path=[root]) as airflow,
    ):
        found = measure(airflow, runs=int(sys.argv[1]) if sys.argv[1:] else 1000)
        ratios = {"route": found.route_ratio, "public": found.public_ratio, "latency": found.latency_ratio}
        print(json.dumps({**asdict(found), "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
