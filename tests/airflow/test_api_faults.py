"""The ledger against Airflow's own API server while that fails: what was asked for happens, once, when it is back.

Hub, wait, ledger and API client are the real ones and run in the test, with their pauses shortened; the API server is
real, with a proxy before it that fails on demand; only the broker is in memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from event_triggers import airflow_api
from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.clock import SystemClock, Timer
from event_triggers.errors import ConnectionMissingError
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.load import MOST_UNANSWERED
from event_triggers.sources.base import BrokerConnection, Outcome
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryBroker, MemoryQueue
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait
from servers.airflow import Airflow
from servers.airflow_client import AirflowClient
from servers.http_proxy import HttpProxy

DAG_ID = "fault_api"
HURRY = 30
"""How many times shorter pauses are here."""


class HurriedClock(SystemClock):
    """The machine's clock, with short pauses."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / HURRY)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return super().call_later(seconds / HURRY, call)


async def no_connection(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


async def until(condition: Callable[[], object], within: float = 90) -> None:
    """Wait until this holds, for something that nobody announces."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it is of another thread or process
            await anyio.sleep(0.01)


class Stage:
    """One run of the DAG, and what the test waits for in its name."""

    def __init__(self, airflow: Airflow, client: AirflowClient, proxy: HttpProxy, run_id: str) -> None:
        self.client = client
        self.proxy = proxy
        self.group = GroupRef(DAG_ID, run_id, "inputs.wait")
        self.clock = HurriedClock()
        self.broker = MemoryBroker(clock=self.clock)
        self.hub = Hub(no_connection, clock=self.clock)
        self.settings = ApiSettings(proxy.url, login="marker", password=airflow.passwords["marker"], origin="the test")
        self.part = "/event-triggers/"
        """What is in the path of every request that writes."""
        self.apis: list[AirflowApi] = []
        self.ledger = AirflowLedger(self._make_api, clock=self.clock)

    async def _make_api(self) -> AirflowApi:
        self.apis.append(AirflowApi(self.settings, clock=self.clock))
        return self.apis[-1]

    @asynccontextmanager
    async def waiting(self, **counts: int) -> AsyncIterator[asyncio.Task[Verdict]]:
        """A wait for so many messages of each event; each event has a channel of its name."""
        events = {name: Event(MemoryQueue(name), count=count) for name, count in counts.items()}
        markers = {name: f"inputs.{name}" for name in events}
        timeline = Timeline.of(Terms(), events, self.clock.now(), 3600)
        wait = GroupWait(
            self.group, events, markers, hub=self.hub, ledger=self.ledger, clock=self.clock, timeline=timeline
        )
        task = asyncio.create_task(wait.run(), name="the wait under test")
        try:
            await until(lambda: self.broker.statistics().open_streams == len(events) or task.done())
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    def publish(self, name: str, *numbers: int) -> None:
        for number in numbers:
            self.broker.publish(name, {"number": number})

    def accepted(self, name: str) -> int:
        """How many messages of a channel the broker was told to forget."""
        return sum(one.outcome is Outcome.ACCEPTED for one in self.broker.settled(name))

    async def verdict(self, task: asyncio.Task[Verdict]) -> Verdict:
        with anyio.fail_after(90):
            return await asyncio.shield(task)

    async def check(self, received: Mapping[str, Sequence[int]]) -> None:
        """Airflow has these messages, each once and in this order, on green markers with notes."""
        await run_sync(self._check, received)

    def _check(self, received: Mapping[str, Sequence[int]]) -> None:
        for name, numbers in received.items():
            place = (self.group.dag_id, self.group.run_id, f"inputs.{name}")
            marker = self.client.task(*place)
            assert (marker["state"], bool(marker["note"])) == ("success", True)
            payload = self.client.xcom(*place)
            assert [one["number"] for one in (payload if len(numbers) > 1 else [payload])] == list(numbers)
            ids = [one["id"] for one in self.client.xcom(*place, "event")["messages"]]
            assert len(set(ids)) == len(numbers)
            assert self.accepted(name) == len(numbers)


@pytest.fixture
async def stage(airflow: Airflow, client: AirflowClient, api_proxy: HttpProxy) -> Stage:
    """Marks go through the marking route."""
    await run_sync(client.wait_parsed, DAG_ID)
    return Stage(airflow, client, api_proxy, await run_sync(client.trigger, DAG_ID))


@pytest.fixture
def public(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Marks go through the public API: the triggerer is of a release that does not speak this route's protocol."""
    monkeypatch.setattr("event_triggers.marking_route.PROTOCOL", 0)
    stage.part = "/dagRuns/"
    return stage


@pytest.fixture(params=["route", "public"])
def either(request: pytest.FixtureRequest, stage: Stage) -> Stage:
    """Each of the two."""
    return stage if request.param == "route" else request.getfixturevalue("public")


def fail_in_its_way(proxy: HttpProxy, way: str) -> None:
    if way == "reset":
        proxy.reset()
    elif way == "hang":
        proxy.hang()
    else:
        headers = {"Retry-After": "1"} if way == "429" else None
        proxy.answer(int(way), headers=headers)


@pytest.mark.parametrize("way", ["reset", "hang", "500", "429"])
async def test_marks_wait_while_airflow_is_away_and_then_all_happen(either: Stage, way: str) -> None:
    names = [f"event_{number}" for number in range(5)]
    counts = {name: 1 + number % 2 for number, name in enumerate(names)}
    async with either.waiting(**counts) as wait:
        either.publish("event_0", 0)
        await until(lambda: either.accepted("event_0") == 1)
        either.proxy.seen.clear()
        fail_in_its_way(either.proxy, way)
        for name in names[1:]:
            either.publish(name, *range(counts[name]))
        await until(lambda: len(either.proxy.seen) > 15 or way == "hang")
        assert [either.accepted(name) for name in names[1:]] == [0] * 4, "nothing is acknowledged meanwhile"
        either.proxy.restore()
        assert (await either.verdict(wait)).status is Status.COMPLETE
    await either.check({name: range(count) for name, count in counts.items()})


async def test_an_answer_that_is_cut_after_airflow_has_acted(either: Stage) -> None:
    """Whether it was done cannot be known, so it is done again, and counts once."""
    counts = {f"event_{number}": 1 + number % 3 for number in range(4)}
    async with either.waiting(**counts) as wait:
        # Payloads, facts, notes and marks, of whatever marker.
        methods = ("POST", "PATCH") if either.part == "/dagRuns/" else ("POST",)
        for method in methods:
            either.proxy.cut(method=method, part=either.part, times=6)
        for name, count in counts.items():
            either.publish(name, *range(count))
        assert (await either.verdict(wait)).status is Status.COMPLETE
    assert either.proxy.faults("cut") == 6 * len(methods)
    assert all(one.status is not None and one.status < 500 for one in either.proxy.seen if one.fault == "cut")
    await either.check({name: range(count) for name, count in counts.items()})


async def test_a_conflict_that_is_none_is_not_believed(public: Stage) -> None:
    """What is answered 409 without being there is written all the same."""
    async with public.waiting(event_0=1, event_1=2) as wait:
        public.proxy.answer(409, method="POST", part="/xcomEntries", times=3)
        public.proxy.answer(409, method="PATCH", part="/taskInstances", times=3)
        public.publish("event_0", 0)
        public.publish("event_1", 0, 1)
        assert (await public.verdict(wait)).status is Status.COMPLETE
    assert public.proxy.faults("answer") == 6
    await public.check({"event_0": [0], "event_1": [0, 1]})


async def test_a_token_that_ends_in_the_middle(either: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Expired, or of an API server that has another secret since it was started again."""
    async with either.waiting(event_0=1, event_1=1, event_2=1) as wait:
        either.publish("event_0", 0)
        await until(lambda: either.accepted("event_0") == 1)
        (api,) = either.apis
        assert api._token is not None
        good = api._token
        # A token that this API server has never signed: it refuses it by itself, with 403.
        api._token = good[:-10] + ("y" if good[-10] == "x" else "x") + good[-9:]
        either.publish("event_1", 0)
        await until(lambda: either.accepted("event_1") == 1)
        # An expired one is refused with 401, which takes a day here; so the proxy says it.
        either.proxy.answer(401, part=either.part, times=3)
        either.publish("event_2", 0)
        assert (await either.verdict(wait)).status is Status.COMPLETE
    fetched = [one.path for one in either.proxy.seen].count("/auth/token")
    assert fetched >= 3, "one to begin with, and one for each that ended"
    await either.check({"event_0": [0], "event_1": [0], "event_2": [0]})
    assert good not in caplog.text


async def test_a_very_slow_airflow_is_waited_for(either: Stage) -> None:
    async with either.waiting(event_0=1, event_1=2) as wait:
        either.proxy.delay(0.15)
        either.publish("event_0", 0)
        either.publish("event_1", 0, 1)
        assert (await either.verdict(wait)).status is Status.COMPLETE
    await either.check({"event_0": [0], "event_1": [0, 1]})


async def test_an_airflow_that_answers_after_it_was_given_up(either: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is done by the next request. That Airflow does the first one too, later, changes nothing."""
    monkeypatch.setattr(airflow_api, "_TIMEOUT", httpx.Timeout(5.0, pool=None))
    methods = ("POST", "PATCH") if either.part == "/dagRuns/" else ("POST",)
    async with either.waiting(event_0=1, event_1=1) as wait:
        for method in methods:
            either.proxy.hang(method=method, part=either.part, times=1)
        either.publish("event_0", 0)
        either.publish("event_1", 0)
        assert (await either.verdict(wait)).status is Status.COMPLETE
    assert either.proxy.faults("hang") == 0, "all of them wait still"
    either.proxy.restore()
    await until(lambda: either.proxy.faults("hang") == len(methods))
    await either.check({"event_0": [0], "event_1": [0]})


async def test_a_request_that_airflow_cannot_stand_is_told_and_keeps_no_other_marker_from_turning(
    public: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = [f"event_{number}" for number in range(5)]
    async with public.waiting(**dict.fromkeys(names, 1)) as wait:
        public.proxy.answer(500, method="POST", part="/inputs.event_3/")
        for name in names:
            public.publish(name, 0)
        await until(lambda: "Tried again every 30 s" in caplog.text)
        others = {f"inputs.{name}": "success" for name in names if name != "event_3"}
        states = await run_sync(public.client.wait_states, DAG_ID, public.group.run_id, others)
        assert states["inputs.event_3"] is None
        assert public.accepted("event_3") == 0
        line = next(one for one in caplog.messages if "Tried again every 30 s" in one)
        assert "Airflow answered 500 to POST" in line
        assert "/taskInstances/inputs.event_3/xcomEntries" in line
        assert "5 times or more while it answered others: look into the API server's log" in line
        public.proxy.restore()
        assert (await public.verdict(wait)).status is Status.COMPLETE
    await public.check({name: [0] for name in names})


async def test_memory_is_bounded_while_airflow_is_away(stage: Stage) -> None:
    """The broker is not asked for more than may be under way."""
    count = 3 * MOST_UNANSWERED
    async with stage.waiting(event_0=count) as wait:
        stage.proxy.answer(503)
        stage.publish("event_0", *range(count))
        await until(lambda: stage.proxy.faults("answer") > 5)
        (channel,) = stage.hub.statistics().channels
        assert MOST_UNANSWERED <= channel.unanswered <= MOST_UNANSWERED + 500, "one batch more at most"
        assert stage.broker.undelivered("event_0") >= count - MOST_UNANSWERED - 500
        stage.proxy.restore()
        verdict = await stage.verdict(wait)
        assert verdict.status is Status.COMPLETE
    received: Any = await run_sync(stage.client.xcom, DAG_ID, stage.group.run_id, "inputs.event_0")
    assert [one["number"] for one in received] == list(range(count))
    assert len(json.dumps(received)) > 0
    assert stage.accepted("event_0") == count
