"""Sources that start DAGs: with Airflow's own manager of shared streams where there is one, and without."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from event_triggers import stream_trigger
from event_triggers.compat import SHARES_STREAMS
from event_triggers.entry import Interest
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.message import Message
from event_triggers.runtime import Runtime, use_runtime
from event_triggers.sources.base import Source
from event_triggers.sources.sqs import SqsQueue
from event_triggers.stream_trigger import StreamTrigger
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.hub_kit import LOG, QUEUE, Kit, soon, until

shares_streams = pytest.mark.skipif(not SHARES_STREAMS, reason="this Airflow (before 3.3) has no shared streams")


@pytest.fixture
async def kit(monkeypatch: pytest.MonkeyPatch) -> Kit:
    kit = Kit()
    use_runtime(Runtime(kit.hub, None, kit.clock, payload_limit=1000))  # type: ignore[arg-type]
    monkeypatch.setattr(stream_trigger, "_LOOK_EVERY", 0.01)
    return kit


class Store:
    """The state of an asset, as the supervisor keeps it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.broken = False

    async def aget(self, key: str) -> Any:
        if self.broken:
            raise OSError("no supervisor")
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.loads(json.dumps(value))

    @property
    def position(self) -> Any:
        (value,) = self.values.values()
        return value


def stored(source: Source, store: Store | None = None, **options: Any) -> StreamTrigger:
    """A trigger as the triggerer makes it from what is stored."""
    _, kwargs = StreamTrigger(source, **options).serialize()
    trigger = StreamTrigger(**json.loads(json.dumps(kwargs)))
    if store is not None:
        trigger.asset_state_store = SimpleNamespace(_by_name={"asset": store})  # type: ignore[assignment]
    return trigger


class Triggerer:
    """What Airflow's triggerer does with event triggers, on its own manager of shared streams.

    :param confirms: whether it stores events.
    """

    def __init__(self, *, confirms: bool = True, **options: Any) -> None:
        from airflow.triggers.shared_stream import SharedStreamManager

        self.manager = SharedStreamManager(**options)
        self.confirms = confirms
        self.events: list[Any] = []
        self.unconfirmed: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, trigger: StreamTrigger) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._run(len(self._tasks), trigger), name="trigger")
        self._tasks.append(task)
        return task

    async def _run(self, trigger_id: int, trigger: StreamTrigger) -> None:
        key = trigger.shared_stream_key()
        stream = self.manager.subscribe(trigger_id=trigger_id, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                self.events.append(event.payload)
                seq = self.manager.bind_pending_event(trigger_id=trigger_id, key=key)
                assert seq is not None
                if self.confirms:
                    asyncio.get_running_loop().call_soon(self.manager.confirm_persisted, [seq])
                else:
                    self.unconfirmed.append(seq)
        finally:
            await self.manager.unsubscribe(trigger_id, key)

    def numbers(self) -> list[int]:
        return [event["payload"]["n"] for event in self.events]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self.manager.stop_all()


@asynccontextmanager
async def triggering(*triggers: StreamTrigger, **options: Any) -> AsyncIterator[Triggerer]:
    triggerer = Triggerer(**options)
    for trigger in triggers:
        triggerer.run(trigger)
    try:
        yield triggerer
    finally:
        await soon(triggerer.stop())


class TestDeclaring:
    def test_survives_airflows_database(self) -> None:
        from airflow.serialization.decoders import smart_decode_trigger_kwargs
        from airflow.serialization.encoders import encode_trigger

        trigger = StreamTrigger(SqsQueue("orders"), match={"status": ["PAID"]})
        encoded = json.loads(json.dumps(encode_trigger(trigger)))
        kwargs = {name: smart_decode_trigger_kwargs(value) for name, value in encoded["kwargs"].items()}  # type: ignore[no-untyped-call]
        again = StreamTrigger(**kwargs)
        assert again.serialize() == trigger.serialize()
        assert again.shared_stream_key() == trigger.shared_stream_key()
        assert Event.deserialize(again.declared).source == SqsQueue("orders")

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: StreamTrigger(5), "must be a Source"),  # type: ignore[arg-type]
            (lambda: StreamTrigger(SqsQueue("")), "needs the name"),
            (lambda: StreamTrigger(SqsQueue("{{ ds }}")), "no run yet"),
            (lambda: StreamTrigger(QUEUE, match={"a": ["{{ ds }}"]}), "no run yet"),
            (lambda: StreamTrigger(QUEUE, match={"a": [{"no_such": 1}]}), "no_such"),
            (lambda: StreamTrigger(LOG, since="yesterday"), "no ISO 8601"),
        ],
    )
    def test_mistakes_are_told_while_the_dag_is_parsed(self, make: Any, text: str) -> None:
        with pytest.raises(InvalidEventError, match=text):
            make()

    def test_what_is_stored_and_wrong_raises_nothing_in_the_triggerer(self) -> None:
        trigger = StreamTrigger({"type": "no.such.Source"})
        trigger.shared_stream_key()
        if SHARES_STREAMS:
            StreamTrigger.create_shared_stream_producer(trigger.serialize()[1])

    def test_an_event_is_plain_and_bounded(self) -> None:
        headers = (("a", b"\xff"), ("b", b"\0"))
        message = Message("kafka", "t", "0@1", "id", b'{"n": 1}', key=b"\xfek", headers=headers)
        payload = stream_trigger._event(message, 1000).payload
        assert json.loads(json.dumps(payload)) == payload
        assert (payload["key"], payload["headers"]) == ("\\xfek", {"a": "\\xff", "b": "\\u0000"})
        large = Message("kafka", "t", "0@1", "id", b'"' + b"x" * 5000 + b'"', headers=(("h", b"x" * 5000),))
        payload = stream_trigger._event(large, 1000).payload
        assert payload["payload"]["truncated"]
        assert len(json.dumps(payload)) < 3000


@shares_streams
class TestAcknowledged:
    async def test_when_the_event_is_stored_and_not_before(self, kit: Kit) -> None:
        async with triggering(stored(QUEUE), confirms=False) as triggerer:
            kit.publish(1, to=QUEUE)
            await until(lambda: triggerer.numbers() == [1])
            await asyncio.sleep(0.05)
            assert kit.broker.undelivered("queue") == 1
            triggerer.manager.confirm_persisted(triggerer.unconfirmed)
            await until(lambda: kit.broker.undelivered("queue") == 0)
        assert triggerer.events[0]["source"] == "memory-queue"

    async def test_what_is_not_stored_comes_again(self, kit: Kit) -> None:
        async with triggering(stored(QUEUE), confirms=False) as first:
            kit.publish(1, 2, to=QUEUE)
            await until(lambda: first.numbers() == [1, 2])
            first.manager.confirm_persisted(first.unconfirmed[:1])
            await until(lambda: kit.broker.undelivered("queue") == 1)
        async with triggering(stored(QUEUE)) as second:
            await until(lambda: second.numbers() == [2])
            await until(lambda: kit.broker.undelivered("queue") == 0)
        assert second.events[0]["id"] == first.events[1]["id"]

    async def test_an_event_that_cannot_be_stored_ends_the_trigger_and_comes_again(
        self, kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.triggers import shared_stream

        triggerer = Triggerer(confirms=False)
        task = triggerer.run(stored(QUEUE))
        kit.publish(1, to=QUEUE)
        await until(lambda: triggerer.numbers() == [1])
        (group,) = triggerer.manager._groups.values()
        group._fail_subscriber_in_outstanding(0)
        with pytest.raises(Exception, match="events were not stored, and come again"):
            await soon(task)
        async with triggering(stored(QUEUE)) as again:
            await until(lambda: again.numbers() == [1])
        assert shared_stream is not None

    async def test_what_nobody_wants_is_given_back(self, kit: Kit) -> None:
        async with triggering(stored(QUEUE, match={"n": [2]})) as triggerer:
            kit.publish(1, 2, to=QUEUE)
            await until(lambda: triggerer.numbers() == [2])
            await until(lambda: kit.broker.undelivered("queue") == 1)

    async def test_two_triggers_and_a_group_share_one_connection(self, kit: Kit) -> None:
        one, other = stored(QUEUE, match={"n": [1]}), stored(QUEUE, match={"n": [2]})
        async with triggering(one, other) as triggerer, kit.group(Interest("x", QUEUE)) as group:
            kit.publish(1, 2, to=QUEUE)
            await until(lambda: sorted(triggerer.numbers()) == [1, 2])
            (delivery,) = await kit.take(group, 1)
            delivery.accept()
            await until(lambda: kit.broker.undelivered("queue") == 0)
            assert kit.broker.statistics().open_streams == 1

    async def test_a_durable_session_is_one_for_all_and_stays(self, kit: Kit) -> None:
        source = MemoryQueue("session", per_group=True)
        for expected in ([1], [2]):
            async with triggering(stored(source, match={"n": [{"numeric": [">", 0]}]})) as triggerer:
                if expected == [1]:
                    await until(lambda: kit.broker.statistics().open_streams == 1)
                    kit.publish(1, to=source)
                await until(lambda: triggerer.numbers() == expected)  # noqa: B023
                await asyncio.sleep(0.05)
            kit.publish(2, to=source)

    async def test_many_messages_wait_for_airflow(self, kit: Kit) -> None:
        async with triggering(stored(QUEUE), confirms=False) as triggerer:
            kit.publish(*range(500), to=QUEUE)
            await until(lambda: len(triggerer.events) == stream_trigger._MOST_OUTSTANDING)
            await asyncio.sleep(0.05)
            assert len(triggerer.events) == stream_trigger._MOST_OUTSTANDING
            triggerer.confirms = True
            triggerer.manager.confirm_persisted(triggerer.unconfirmed)
            await until(lambda: triggerer.numbers() == list(range(500)))


@shares_streams
class TestLogs:
    async def test_begins_at_the_end_and_goes_on_where_it_was(self, kit: Kit) -> None:
        store = Store()
        kit.publish(0)
        async with triggering(stored(LOG, store)) as first:
            await until(lambda: bool(store.values))
            kit.publish(1, 2)
            await until(lambda: first.numbers() == [1, 2])
            await until(lambda: sum(store.position.values()) == 3)
        kit.publish(3, 4)
        async with triggering(stored(LOG, store)) as second:
            kit.publish(5)
            await until(lambda: second.numbers() == [3, 4, 5])

    async def test_the_position_stays_before_what_is_not_stored(self, kit: Kit) -> None:
        store = Store()
        async with triggering(stored(LOG, store), confirms=False) as first:
            await until(lambda: bool(store.values))
            kit.publish(1, 2, 3)
            await until(lambda: first.numbers() == [1, 2, 3])
            first.manager.confirm_persisted([first.unconfirmed[0]])
            await until(lambda: sum(store.position.values()) == 1)
        async with triggering(stored(LOG, store)) as second:
            await until(lambda: second.numbers() == [2, 3])

    async def test_since_counts_for_the_first_time_only(self, kit: Kit) -> None:
        store, since = Store(), kit.start.isoformat()
        kit.publish(1)
        async with triggering(stored(LOG, store, since=since)) as first:
            await until(lambda: first.numbers() == [1])
            await until(lambda: bool(store.values) and sum(store.position.values()) == 1)
        async with triggering(stored(LOG, store, since=since)) as second:
            kit.publish(2)
            await until(lambda: second.numbers() == [2])

    async def test_a_log_that_was_begun_anew_is_told_and_read_from_its_beginning(
        self, kit: Kit, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store()
        async with triggering(stored(LOG, store)):
            await until(lambda: bool(store.values))
        (key,) = store.values
        store.values[key] = dict.fromkeys(store.position, 1000)
        kit.publish(1)
        with caplog.at_level(logging.ERROR):
            async with triggering(stored(LOG, store)) as triggerer:
                await until(lambda: triggerer.numbers() == [1])
        assert "it is read from its beginning" in caplog.text

    async def test_a_supervisor_that_does_not_answer_is_asked_again(
        self, kit: Kit, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store()
        store.broken = True
        with caplog.at_level(logging.ERROR):
            async with triggering(stored(MemoryLog("log"), store)) as triggerer:
                await kit.clock.wait_for_sleepers(1)
                assert "Airflow could not say where reading was to go on: no supervisor" in caplog.text
                store.broken = False
                kit.clock.advance(5)
                await until(lambda: bool(store.values))
                kit.publish(1)
                await until(lambda: triggerer.numbers() == [1])


class TestOfEitherAirflow:
    async def test_what_is_wrong_is_told_and_tried_again(self, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
        trigger = StreamTrigger({"type": "no_such.Source"})
        with caplog.at_level(logging.ERROR):

            async def run() -> None:
                async for _ in trigger.run():
                    """Nothing comes."""

            running = asyncio.get_running_loop().create_task(run(), name="run")
            await kit.clock.wait_for_sleepers(1)
            kit.clock.advance(5)
            await kit.clock.wait_for_sleepers(1)
        running.cancel()
        await asyncio.wait({running})
        await trigger.cleanup()
        assert (
            caplog.text.count("its messages cannot start DAGs: InvalidEventError: source class 'no_such.Source'") == 2
        )

    async def test_without_shared_streams_it_is_acknowledged_a_while_later(self, kit: Kit) -> None:
        trigger = stored(QUEUE)
        events: list[TriggerEvent] = []

        async def run() -> None:
            async for event in trigger.run():
                events.append(event)  # noqa: PERF401

        running = asyncio.get_running_loop().create_task(run(), name="run")
        kit.publish(1, to=QUEUE)
        await until(lambda: len(events) == 1)
        await asyncio.sleep(0.05)
        assert kit.broker.undelivered("queue") == 1
        kit.clock.advance(stream_trigger._STORED_WITHIN)
        await until(lambda: kit.broker.undelivered("queue") == 0)
        kit.publish(2, to=QUEUE)
        await until(lambda: len(events) == 2)
        running.cancel()
        await asyncio.wait({running})
        await trigger.cleanup()
        assert kit.broker.undelivered("queue") == 1
        assert kit.broker.statistics().open_streams == 0
