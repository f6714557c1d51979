"""What all waits of one event loop share: the hub, the ledger, the clock.

A triggerer has one event loop, so one runtime. It is made when the first trigger asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import anyio.to_thread

from event_triggers.airflow_api import AirflowApi
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.api_settings import DEFAULT_CONN_ID, ApiSettings, find_settings
from event_triggers.clock import Clock, SystemClock
from event_triggers.connections import airflow_connection
from event_triggers.errors import AirflowApiError, StreamError
from event_triggers.garbage import calm_collector
from event_triggers.hub import Hub
from event_triggers.ledger import Ledger
from event_triggers.log_channel import spare_the_loop
from event_triggers.sources.base import AirflowCall

__all__ = ["Runtime", "current_runtime", "use_runtime"]


class Runtime(NamedTuple):
    """What a wait needs."""

    hub: Hub
    ledger: Ledger
    clock: Clock
    payload_limit: int


_runtimes: WeakKeyDictionary[asyncio.AbstractEventLoop, Runtime] = WeakKeyDictionary()


def current_runtime() -> Runtime:
    """The runtime of the running event loop."""
    loop = asyncio.get_running_loop()
    runtime = _runtimes.get(loop)
    if runtime is None:
        runtime = _runtimes[loop] = _airflow_runtime()
    return runtime


def use_runtime(runtime: Runtime) -> None:
    """Let the triggers of the running event loop use this runtime: for tests."""
    _runtimes[asyncio.get_running_loop()] = runtime


def _airflow_runtime() -> Runtime:
    from airflow.configuration import conf

    # A triggerer by now has all that its waits have in common; what is made for each wait comes later.
    calm_collector()
    spare_the_loop()
    clock = SystemClock()
    conn_id = conf.get("event_triggers", "api_conn_id", fallback=DEFAULT_CONN_ID)

    async def settings() -> ApiSettings:
        try:
            return await find_settings(airflow_connection, conn_id=conn_id, fallback_url=_configured_url())
        except StreamError as error:
            raise AirflowApiError(str(error)) from error

    async def make_api() -> AirflowApi:
        found = await settings()
        return await anyio.to_thread.run_sync(lambda: AirflowApi(found, refresh=settings, clock=clock))

    @asynccontextmanager
    async def airflow() -> AsyncIterator[AirflowCall]:
        # A client of its own: what waits for the next event must not take the place of what marks tasks.
        async with await make_api() as api:
            yield api.call

    return Runtime(
        hub=Hub(airflow_connection, clock=clock, airflow=airflow),
        ledger=AirflowLedger(make_api, clock=clock),
        clock=clock,
        payload_limit=conf.getint("event_triggers", "payload_limit", fallback=48 * 1024),
    )


def _configured_url() -> str:
    """The API server's address by Airflow's own configuration.

    Workers and triggerers of a distributed Airflow are told the address of the execution API, on the same server; a
    ``base_url`` may be one that only browsers can reach, so it comes second.
    """
    from airflow.configuration import conf

    execution = conf.get("core", "execution_api_server_url", fallback="") or ""
    if "/execution" in execution:
        return str(execution.split("/execution", 1)[0])
    base_url = conf.get("api", "base_url", fallback="") or ""
    return str(base_url or f"http://localhost:{conf.getint('api', 'port', fallback=8080)}").rstrip("/")
