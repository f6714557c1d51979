"""How many deliveries a hook stores, and how long each takes to be answered: one process of the API server, PostgreSQL.

Run it alone on the machine: ``python -m benchmarks.bench_hooks [--rate 200] [--seconds 60]``. Requests are sent when
they are due, whether earlier ones are answered or not, so a server that falls behind shows in the times. At the end
every delivery that was answered 202 must be in the database, once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter

import aiohttp
import anyio
import httpx

from servers.airflow import API_SERVER, Airflow
from servers.postgres import Postgres

__all__: list[str] = []

_HOOK = "bench"
_TARGET_P99 = 0.25


async def _send_all(url: str, rate: int, seconds: int) -> tuple[list[float], Counter[int]]:
    times: list[float] = []
    statuses: Counter[int] = Counter()
    # Not httpx: what a request costs its pool grows with the requests that wait, and the server is on the same machine.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200)) as client,
        anyio.create_task_group() as group,
    ):

        async def send(number: int, due: float) -> None:
            body = json.dumps({"number": number, "filling": "x" * 500}).encode()
            try:
                async with client.post(url, data=body, headers={"X-Webhook-Delivery": f"d-{number}"}) as answer:
                    await answer.read()
                    statuses[answer.status] += 1
            except aiohttp.ClientError:
                statuses[0] += 1
            times.append(time.perf_counter() - due)

        began = time.perf_counter()
        for number in range(rate * seconds):
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())
            group.start_soon(send, number, due, name=f"send {number}")
    return times, statuses


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="requests per second")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    with Postgres() as postgres:
        airflow = Airflow(database_url=postgres.create_database("airflow"), users={"admin": "admin"})
        hook = {"conn_type": "webhook", "extra": {"scheme": "open", "rate_limit": 100_000}}
        airflow.env[f"AIRFLOW_CONN_WEBHOOK_{_HOOK.upper()}"] = json.dumps(hook)
        try:
            airflow.run("db", "migrate", timeout=600)
            airflow.start_component(API_SERVER)
            url = f"{airflow.url}/event-triggers/hooks/{_HOOK}"
            httpx.post(url, content=b"{}", headers={"X-Webhook-Delivery": "first"}, trust_env=False, timeout=60)
            times, statuses = asyncio.run(_send_all(url, arguments.rate, arguments.seconds))
            stored = int(
                postgres.run_sql(
                    "SELECT count(DISTINCT extra->>'delivery') FROM asset_event WHERE extra->>'delivery' LIKE 'd-%'",
                    database="airflow",
                )
            )
        finally:
            airflow.close()
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"{len(times)} requests at {arguments.rate}/s: {dict(statuses)}; stored {stored}")
    print(f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms")
    return 0 if stored == statuses[202] == len(times) and p99 < _TARGET_P99 else 1


if __name__ == "__main__":
    sys.exit(_main())
