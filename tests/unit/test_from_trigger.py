"""Triggers of Airflow as members of a group: declaring them, running them, telling their events apart."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.message import Message
from event_triggers.sources._airflow_trigger import body_of, encoded, json_of, made
from event_triggers.sources._fired import KEPT_FOR, fired_by
from event_triggers.sources.base import BrokerConnection, Opening, Outcome, Settlement, Stream, load_source
from event_triggers.sources.from_trigger import FromTrigger
from event_triggers.testing import ManualClock
from tests.unit.hub_kit import until
from tests.unit.own_triggers import (
    RUNS,
    Deaf,
    Endless,
    NeverFires,
    NoGenerator,
    Once,
    Ready,
    Run,
    StoneDeaf,
    TellsOfFailure,
    TellsOfSuccess,
)

HOME = Endless.__module__


def source(cls: type[Endless], own: str, **options: Any) -> tuple[FromTrigger, Run]:
    """A source on such a trigger, and what its trigger does from now on."""
    made = FromTrigger(f"{HOME}.{cls.__name__}", {"name": own}, **options)
    RUNS[own] = Run()
    return made, RUNS[own]


@asynccontextmanager
async def streaming(of: FromTrigger, clock: ManualClock | None = None) -> AsyncIterator[Stream]:
    async with of.open(Opening(clock=clock or ManualClock())) as stream:
        await stream.watch(of)
        yield stream


async def take(stream: Stream, count: int = 1) -> list[Message]:
    messages: list[Message] = []
    with anyio.fail_after(10):
        while len(messages) < count:
            messages += await stream.__aiter__().__anext__()
    return messages


class TestDeclaring:
    def test_is_what_the_trigger_serialises(self) -> None:
        of = FromTrigger(Endless("declared", depth={"a": [1, None]}))
        assert of.path == f"{HOME}.Endless"
        assert of.kwargs == {"name": "declared", "depth": {"a": [1, None]}}
        assert of == FromTrigger(f"{HOME}.Endless", {"name": "declared", "depth": {"a": [1, None]}})

    def test_values_of_every_kind_survive_json(self) -> None:
        kwargs = {
            "name": "kinds",
            "moment": datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
            "delta": timedelta(seconds=90),
            "pair": ("{{ ds }}", {"a": (1, 2)}),
            "choice": {"x", "y"},
        }
        of = FromTrigger(f"{HOME}.Endless", kwargs)
        again = load_source(json.loads(json.dumps(of.serialize())))
        assert isinstance(again, FromTrigger)
        assert (again, again.key("")) == (of, of.key(""))
        trigger = made(again.path, again.kwargs, again.coded)
        assert trigger.more == {name: value for name, value in kwargs.items() if name != "name"}

    def test_what_a_template_is_rendered_to_is_never_an_object(self) -> None:
        data = FromTrigger(f"{HOME}.Endless", {"name": "x", "given": "{{ conf }}", "date": timedelta(1)}).serialize()
        data["kwargs"]["given"] = {"__type": "timedelta", "__var": 5.0}
        trigger = made(data["trigger"], data["kwargs"], data["coded"])
        assert trigger.more == {"date": timedelta(1), "given": {"__type": "timedelta", "__var": 5.0}}

    def test_a_real_trigger_is_made_again(self) -> None:
        trigger = DateTimeTrigger(moment=datetime(2030, 1, 1, tzinfo=timezone.utc))
        of = load_source(json.loads(json.dumps(FromTrigger(trigger).serialize())))
        assert isinstance(of, FromTrigger)
        assert made(of.path, of.kwargs, of.coded).serialize() == trigger.serialize()

    def test_body_is_part_of_the_key_and_the_name_is_not(self) -> None:
        plain, titled = FromTrigger(Endless("k")), FromTrigger(Endless("k"), name="a file")
        assert plain.key("") == titled.key("")
        assert (plain.name, titled.name) == ("Endless", "a file")
        assert plain.key("") != FromTrigger(Endless("k"), body="data").key("")

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: Event(FromTrigger(5)), "takes one of Airflow's triggers"),
            (lambda: Event(FromTrigger("{{ params.cls }}")), "cannot be a template"),
            (lambda: Event(FromTrigger("Endless")), "no dotted path"),
            (lambda: Event(FromTrigger(Endless("x"), {"a": 1})), "not with a trigger"),
            (lambda: Event(FromTrigger("a.B", {"x": object()})), "'x' is a object, which Airflow cannot store"),
            (lambda: Event(FromTrigger("a.B", {"headers": {"Authorization": "Bearer x"}})), "headers.Authorization"),
            (lambda: Event(FromTrigger("a.B", {"db_password": "x"})), "'db_password' looks like a secret"),
            (lambda: Event(FromTrigger("a.B", body=5)), "body must be text"),  # type: ignore[arg-type]
        ],
    )
    def test_mistakes_are_told(self, make: Any, text: str) -> None:
        with pytest.raises(InvalidEventError, match=text):
            make()

    def test_a_secret_may_be_a_template_and_is_not_shown(self) -> None:
        declared = Event(FromTrigger("a.B", {"password": "{{ conn.db.password }}"})).serialize()
        declared["source"]["kwargs"]["password"] = "rendered"
        of = Event.deserialize(declared).source
        assert "rendered" not in f"{of!r} {of.label} {of.key('')}"

    def test_takes_what_another_task_gives(self) -> None:
        class Reference:
            def resolve(self) -> None:
                """As an XComArg."""

        Event(FromTrigger("a.B", {"x": Reference()})).check_serialisable("event")
        assert encoded({"x": 1}) == ({"x": 1}, {})


class TestBodies:
    def test_payloads_are_json(self) -> None:
        moment = datetime(2030, 1, 1, tzinfo=timezone.utc)
        assert json.loads(json_of({"at": moment, "s": {1}, "t": (1, "x")})) == {
            "at": "2030-01-01T00:00:00Z",
            "s": [1],
            "t": [1, "x"],
        }
        assert json_of(True) == b"true"
        assert json_of({2: 1}) == b'{"2": 1}'

    def test_what_is_no_json_is_text(self) -> None:
        class Odd:
            def __str__(self) -> str:
                return "odd"

        assert json_of([Odd()]) == b'["odd"]'
        assert json.loads(json_of({"half": "\ud800"})) == {"half": "\ud800"}
        loop: list[Any] = []
        loop.append(loop)
        assert json_of(loop) == b'"[[...]]"'

    def test_a_part_of_the_payload_is_the_body(self) -> None:
        payload = {"message_batch": [{"Body": '{"n": 1}'}], "raw": b"\xff", "n": 5}
        assert body_of(payload, "message_batch.0.Body") == b'{"n": 1}'
        assert body_of(payload, "raw") == b"\xff"
        assert body_of(payload, "n") == b"5"
        assert json.loads(body_of({"other": 1}, "data")) == {"other": 1}


class TestRunning:
    async def test_events_are_messages(self) -> None:
        of, run = source(Endless, "messages", name="things")
        async with streaming(of) as stream:
            run.events.put_nowait({"n": 1})
            (message,) = await take(stream)
        assert (message.source, message.stream, message.json) == ("trigger", "things", {"n": 1})
        assert message.timestamp == ManualClock().now()

    async def test_runs_only_while_somebody_wants_it(self) -> None:
        of, run = source(Endless, "wanted")
        async with of.open(Opening(clock=ManualClock())) as stream:
            assert run.started == 0
            await stream.watch(of)
            run.events.put_nowait(1)
            await take(stream)
            await stream.unwatch(of)
            assert (run.cancelled, run.put_in_order, run.cleaned) == (1, 1, 1)
            run.events.put_nowait(2)
            await stream.watch(of)
            assert [m.json for m in await take(stream)] == [2]
        assert (run.started, run.cancelled, run.put_in_order, run.cleaned) == (2, 2, 2, 2)

    async def test_is_run_again_when_it_ends(self) -> None:
        of, run = source(Once, "again")
        async with streaming(of) as stream:
            for n in range(3):
                run.events.put_nowait(n)
            assert [m.json for m in await take(stream, 3)] == [0, 1, 2]
        assert run.started >= 3
        assert run.made == run.cleaned

    async def test_one_that_ends_at_once_is_run_with_pauses_and_at_once_for_who_comes(self) -> None:
        of, run = source(Ready, "ready")
        clock = ManualClock()
        async with streaming(of, clock) as stream:
            await clock.wait_for_sleepers(1)
            assert run.started == 5
            await take(stream, 5)
            await stream.watch(of)
            await clock.wait_for_sleepers(1)
            await until(lambda: run.started == 6)
            await clock.wait_for_sleepers(1)
            clock.advance(60)
            await clock.wait_for_sleepers(1)
            assert run.started == 7

    async def test_equal_payloads_are_told_apart_also_by_the_next_stream(self) -> None:
        of, run = source(Endless, "equal")
        ids = []
        for _ in range(2):
            async with streaming(of) as stream:
                run.events.put_nowait("tick")
                run.events.put_nowait("tick")
                messages = await take(stream, 2)
                await stream.settle([Settlement(message, Outcome.ACCEPTED) for message in messages])
                ids += [message.id for message in messages]
        assert len(set(ids)) == 4

    async def test_after_a_restart_the_same_payload_is_the_same_event(self, monkeypatch: pytest.MonkeyPatch) -> None:
        of, run = source(Endless, "restarted")
        ids = []
        for _ in range(2):
            monkeypatch.setattr("event_triggers.sources._fired._all", type(fired_by.__globals__["_all"])())
            async with streaming(of) as stream:
                run.events.put_nowait({"id": 1})
                ids += [message.id for message in await take(stream)]
        assert len(set(ids)) == 1

    async def test_what_is_kept_for_too_long_is_gone(self) -> None:
        of, run = source(Endless, "stale")
        clock = ManualClock()
        async with streaming(of, clock) as stream:
            run.events.put_nowait(1)
            await take(stream)
        clock.advance(KEPT_FOR + 1)
        async with streaming(of, clock) as stream:
            run.events.put_nowait(2)
            assert [m.json for m in await take(stream)] == [2]

    async def test_does_not_run_ahead_of_who_takes(self) -> None:
        of, run = source(Endless, "ahead")
        async with streaming(of) as stream:
            for n in range(250):
                run.events.put_nowait(n)
            await until(lambda: run.events.qsize() <= 150)
            await anyio.wait_all_tasks_blocked()
            assert run.events.qsize() == 150
            assert [m.json for m in await take(stream, 250)] == list(range(250))

    async def test_the_end_of_a_task_is_an_event(self) -> None:
        of, _ = source(TellsOfSuccess, "success")
        async with streaming(of) as stream:
            assert [m.json for m in await take(stream)] == [{"state": "success", "xcoms": {"return_value": {"n": 1}}}]


class TestFailing:
    async def test_what_it_raises_breaks_the_stream_after_what_it_has_fired(self) -> None:
        of, run = source(Endless, "raises")
        async with streaming(of) as stream:
            run.events.put_nowait(1)
            run.events.put_nowait(ValueError("no such place"))
            assert [m.json for m in await take(stream)] == [1]
            with pytest.raises(StreamError, match="the trigger raised ValueError: no such place"):
                await take(stream)
        assert run.cleaned == run.made

    async def test_an_end_without_an_event_breaks_the_stream(self) -> None:
        of, _ = source(NeverFires, "silent")
        async with streaming(of) as stream:
            with pytest.raises(StreamError, match="ended without an event"):
                await take(stream)

    @pytest.mark.parametrize(("cls", "text"), [(TellsOfFailure, "has failed"), (NoGenerator, "no generator")])
    async def test_what_waiting_cannot_mend(self, cls: type[Endless], text: str) -> None:
        of, _ = source(cls, cls.__name__)
        async with streaming(of) as stream:
            with pytest.raises(ConfigurationError, match=text):
                await take(stream)

    @pytest.mark.parametrize(
        ("path", "kwargs", "text"),
        [
            ("no_such_package.triggers.Trigger", {}, "cannot be imported here .*install the provider"),
            (f"{HOME}.NoSuch", {}, "cannot be imported here"),
            (f"{HOME}.RUNS", {}, "is no class of triggers"),
            (f"{HOME}.Endless", {"nme": "x"}, r"does not take its arguments \['nme'\]: TypeError"),
        ],
    )
    async def test_what_cannot_be_made(self, path: str, kwargs: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigurationError, match=text):
            async with FromTrigger(path, kwargs).open(Opening()):
                pass

    async def test_one_that_loses_a_cancellation_gets_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("event_triggers.sources.from_trigger._CLOSE_WITHIN", 0.05)
        of, run = source(Deaf, "deaf")
        async with streaming(of):
            await anyio.wait_all_tasks_blocked()
        assert (run.cancelled, run.cleaned) == (2, run.made)

    @pytest.mark.parametrize("again", [False, True], ids=["for the next stream", "for the stream that is open"])
    async def test_what_fires_after_its_end_is_kept(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, again: bool
    ) -> None:
        monkeypatch.setattr("event_triggers.sources.from_trigger._CLOSE_WITHIN", 0.05)
        of, run = source(StoneDeaf, f"stone deaf, {again}")
        clock = ManualClock()
        with caplog.at_level(logging.WARNING):
            async with streaming(of, clock):
                await anyio.wait_all_tasks_blocked()
        assert "does not end though it was cancelled" in caplog.text
        async with of.open(Opening(clock=clock)) if again else nullcontext() as stream:
            run.events.put_nowait("late")
            await until(lambda: run.cleaned == run.made - again)
            if stream is not None:
                assert [m.json for m in await take(stream)] == ["late"]
        if stream is None:
            async with of.open(Opening(clock=clock)) as stream:
                assert [m.json for m in await take(stream)] == ["late"]

    async def test_one_that_does_not_clean_up_is_told_of(self, caplog: pytest.LogCaptureFixture) -> None:
        of, _ = source(Endless, "unclean")

        async def refuse(self: Endless) -> None:
            raise OSError("busy")

        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Endless, "cleanup", refuse)
            async with streaming(of):
                pass
        assert "cleanup() raised OSError: busy" in caplog.text


class TestInTheHub:
    @staticmethod
    def hub() -> Hub:
        async def nothing(conn_id: str) -> BrokerConnection:
            raise AssertionError(conn_id)

        return Hub(nothing, clock=ManualClock())

    async def test_two_groups_share_one_trigger(self) -> None:
        of, run = source(Endless, "shared")
        hub = self.hub()
        async with hub.subscribe("a", [Interest("x", of)]) as a, hub.subscribe("b", [Interest("x", of)]) as b:
            await a.live()
            await b.live()
            run.events.put_nowait(1)
            with anyio.fail_after(5):
                for subscription in (a, b):
                    (delivery,) = await subscription.receive()
                    delivery.accept()
        assert run.started == 1
        assert run.killed == 0

    async def test_a_group_that_comes_when_it_has_fired_gets_its_own_run(self) -> None:
        of, run = source(Ready, "late")
        hub = self.hub()
        with anyio.fail_after(5):
            async with hub.subscribe("a", [Interest("x", of)]) as a:
                first = await a.receive()
                async with hub.subscribe("b", [Interest("x", of)]) as b:
                    (second,) = await b.receive()
                    second.accept()
                first[0].accept()
        assert run.started >= 2

    async def test_is_told_when_a_person_ends_its_last_wait(self) -> None:
        of, run = source(Endless, "killed")
        hub = self.hub()
        async with hub.subscribe("a", [Interest("x", of)]):
            await hub.forget("b", [of], killed=True)
            assert run.killed == 0, "another group waits for it"
        await hub.forget("a", [of])
        assert run.killed == 0, "its group has ended by itself"
        await hub.forget("a", [of], killed=True)
        assert run.killed == 1
        assert run.cleaned == run.made
