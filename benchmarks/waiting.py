"""Groups that wait as they do in a triggerer, without an Airflow around them.

Each trigger is made anew from its arguments as Airflow stores them, so that no two groups share what they would not
share there, and runs in a task of its own. The ledger is the real one; Airflow's API is answered here: no marker has a
state. Beside them, Airflow's own idle trigger (``DateTimeTrigger``), made and run the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import httpx
from airflow.models.trigger import Trigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.triggers.base import BaseTrigger

from event_triggers.airflow_api import AirflowApi
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.api_settings import ApiSettings
from event_triggers.clock import SystemClock
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.runtime import Runtime, use_runtime
from event_triggers.sources.base import BrokerConnection, LogStream, Opening, Position
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.trigger import EventGroupTrigger

__all__ = [
    "EVENTS",
    "TOPICS",
    "SilentTopic",
    "all_live",
    "group_trigger",
    "idle_trigger",
    "kafka_connections",
    "running",
    "triggerer",
]

EVENTS, TOPICS = 20, 5
"""Of a group."""
_DAY = timedelta(days=1)


class _SilentStream(LogStream):
    def position(self) -> Position:
        return {}

    async def locate(self, since: datetime) -> Position:
        return {}

    async def __aiter__(self) -> AsyncIterator[list[Any]]:
        await asyncio.Event().wait()
        yield []


class SilentTopic(KafkaTopic):
    """A topic whose broker says nothing, and takes no memory."""

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[LogStream]:
        yield _SilentStream()


@dataclass(frozen=True)
class Triggerer:
    """What the groups of one triggerer share."""

    hub: Hub
    ledger: AirflowLedger


def kafka_connections(bootstrap: str) -> Callable[[str], Awaitable[BrokerConnection]]:
    async def connection(conn_id: str) -> BrokerConnection:
        return BrokerConnection(conn_id, "kafka", extra={"bootstrap.servers": bootstrap})

    return connection


def _answer(request: httpx.Request) -> httpx.Response:
    path = request.url.path
    if path.endswith("/version"):
        return httpx.Response(200, json={"version": "3.3.2"})
    if path.endswith("/auth/token"):
        return httpx.Response(201, json={"access_token": "token"})
    return httpx.Response(200, json={"task_instances": [], "total_entries": 0})


@asynccontextmanager
async def triggerer(bootstrap: str = "") -> AsyncIterator[Triggerer]:
    """Let the triggers of the running event loop share a hub and a ledger.

    :param bootstrap: where the Kafka is that their topics are on.
    """

    async def api() -> AirflowApi:
        settings = ApiSettings("http://airflow", login="triggerer", password="secret", origin="the benchmark")
        return AirflowApi(settings, transport=httpx.MockTransport(_answer))

    made = Triggerer(Hub(kafka_connections(bootstrap)), AirflowLedger(api))
    use_runtime(Runtime(made.hub, made.ledger, SystemClock(), payload_limit=48 * 1024))
    yield made


def _as_stored(trigger: BaseTrigger) -> BaseTrigger:
    """The trigger as a triggerer makes it from Airflow's database."""
    path, arguments = trigger.serialize()
    stored: Any = Trigger._decrypt_kwargs(Trigger(path, arguments).encrypted_kwargs)
    decode: Any = smart_decode_trigger_kwargs
    again: BaseTrigger = type(trigger)(**{name: decode(value) for name, value in stored.items()})
    return again


def _with_task(trigger: BaseTrigger, number: int) -> BaseTrigger:
    run_id = f"scheduled__2026-11-22T00:00:00+00:00__{number}"
    trigger.task_instance = SimpleNamespace(  # type: ignore[assignment]
        dag_id="daily_close", run_id=run_id, task_id="inputs.wait", map_index=-1
    )
    return trigger


def group_trigger(
    number: int,
    topic: type[KafkaTopic] = KafkaTopic,
    *,
    topics: int = TOPICS,
    events: int = EVENTS,
    prefix: str = "bench",
) -> BaseTrigger:
    """A group of Kafka events, of a day of its own, none of which ever comes.

    :param prefix: of the topics' names.
    """
    declared = {
        f"event_{place}": Event(
            topic(f"{prefix}-{place % topics}"),
            match={"table": [f"table_{place}"], "date": [f"day {number}"]},
            since="2026-11-22T00:00:00+00:00",
        )
        for place in range(events)
    }
    trigger = EventGroupTrigger(
        events={name: event.serialize() for name, event in declared.items()},
        markers={name: f"inputs.{name}" for name in declared},
        timeout=_DAY.total_seconds(),
        started=datetime.now(timezone.utc).isoformat(),
    )
    return _with_task(_as_stored(trigger), number)


def idle_trigger(number: int) -> BaseTrigger:
    """Airflow's own trigger that waits for nothing but a moment."""
    return _with_task(_as_stored(DateTimeTrigger(moment=datetime.now(timezone.utc) + _DAY)), number)


async def _run(trigger: BaseTrigger) -> None:
    async for event in trigger.run():
        raise AssertionError(f"nothing should come, but {event} has")


@asynccontextmanager
async def running(triggers: list[BaseTrigger]) -> AsyncIterator[None]:
    """Run these, each in a task of its own, while the context is open."""
    tasks = [asyncio.create_task(_run(trigger), name=f"trigger {place}") for place, trigger in enumerate(triggers)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_ended, tasks)
        yield
        for task in tasks:
            if task.done():
                task.result()


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def all_live(hub: Hub, entries: int) -> None:
    """Wait until so many events are waited for and every stream is live."""
    while True:
        channels = hub.statistics().channels
        if sum(one.entries for one in channels) >= entries and all(one.connected for one in channels):
            return
        await asyncio.sleep(0.01)
