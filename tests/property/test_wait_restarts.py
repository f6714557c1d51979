"""However often, and wherever, waits of a group are killed and started again: every event ends with its messages.

A scenario is a list of small actions: messages come, the loop runs a few steps, a wait is killed, another starts (two
may run at once, each on a hub of its own, as on two triggerers), a connection breaks, Airflow goes away and comes
back. Since the loop runs step by step, a wait can be killed at every place where it awaits something.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio
import hypothesis.strategies as st
from hypothesis import example, given, settings

from event_triggers.errors import ConnectionMissingError
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.sources.base import BrokerConnection
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import ManualClock, MemoryBroker, MemoryLedger, MemoryLog, MemoryQueue
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait

GROUP = GroupRef("daily", "manual__1", "wait")
SINCE = "2030-01-01T00:00:00Z"
EVENTS = {
    "queue": Event(MemoryQueue("queue"), match={"for": ["queue"]}),
    "queues": Event(MemoryQueue("queue"), match={"for": ["queues"]}, count=3),
    "session": Event(MemoryQueue("session", per_group=True), count=2),
    "log": Event(MemoryLog("log"), match={"for": ["log"]}, since=SINCE),
    "logs": Event(MemoryLog("log"), match={"for": ["logs"]}, count=3, since=SINCE),
}
CHANNELS = {"queue": "queue", "queues": "queue", "session": "session", "log": "log", "logs": "log", "nobody": "queue"}


class Action(NamedTuple):
    """One thing that happens: ``what``, and to whom or how often."""

    what: str
    detail: str | int = 0


ACTIONS = st.one_of(
    st.builds(Action, st.just("steps"), st.integers(1, 8)),
    st.builds(Action, st.just("steps"), st.integers(20, 40)),
    st.builds(Action, st.just("send"), st.sampled_from(sorted(CHANNELS))),
    st.builds(Action, st.just("send"), st.sampled_from(sorted(CHANNELS))),
    st.builds(Action, st.sampled_from(["start", "kill", "again"]), st.integers(0, 1)),
    st.builds(Action, st.sampled_from(["recorded", "pause", "resume", "advance", "cut"])),
)


class Scenario:
    """Two triggerers, a broker and a ledger."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(clock=self.clock, batch_size=1)
        self.ledger = MemoryLedger()
        self.hubs = [Hub(_no_connection, clock=self.clock) for _ in range(2)]
        self.waits: list[asyncio.Task[Verdict] | None] = [None, None]
        self.sent: dict[str, str] = {}
        """By id, for whom."""

    async def act(self, action: Action) -> None:
        """Let it happen."""
        match action:
            case ("steps", int(count)):
                for _ in range(count):
                    await asyncio.sleep(0)
            case ("recorded", _):
                known = len(self.ledger.history)
                for _ in range(60):
                    await asyncio.sleep(0)
                    if len(self.ledger.history) > known:
                        break
            case ("send", str(event)):
                self.send(event)
            case ("start", int(place)):
                self.start(place)
            case ("kill", int(place)):
                await self.kill(place)
            case ("again", int(place)):
                await self.kill(place)
                self.start(place)
            case ("pause", _):
                self.ledger.pause()
            case ("resume", _):
                self.ledger.resume()
            case ("advance", _):
                self.clock.advance(20)
            case ("cut", _):
                self.broker.cut()

    def send(self, event: str) -> None:
        """Publish one message for an event."""
        number = len(self.sent)
        self.sent[self.broker.publish(CHANNELS[event], {"for": event, "n": number})] = event

    def start(self, place: int) -> None:
        """Start a wait on one of the triggerers, unless one runs there."""
        running = self.waits[place]
        if running is None or running.done():
            wait = GroupWait(
                GROUP,
                EVENTS,
                {name: name for name in EVENTS},
                hub=self.hubs[place],
                ledger=self.ledger,
                clock=self.clock,
                timeline=Timeline.of(Terms(), EVENTS, self.clock.now(), 86_400),
            )
            self.waits[place] = asyncio.get_running_loop().create_task(wait.run())

    async def kill(self, place: int) -> None:
        """End the wait there."""
        running = self.waits[place]
        if running is not None:
            running.cancel()
            await asyncio.wait({running})

    async def finish(self) -> Verdict:
        """Let all that is needed come, and wait for the end."""
        self.ledger.resume()
        for place in range(2):
            await self.kill(place)
        self.start(0)
        for _ in range(20):  # a new session of a group holds only what comes after it was opened
            await asyncio.sleep(0)
        for name, event in EVENTS.items():
            for _ in range(event.count):
                self.send(name)
        wait = self.waits[0]
        assert wait is not None
        for _ in range(400):
            for _ in range(20):
                await asyncio.sleep(0)
            if wait.done():
                break
            self.clock.advance(5)
            self.broker.redeliver("queue")
        assert wait.done(), f"still waiting; {self.held()}"
        return wait.result()

    def held(self) -> Mapping[str, Sequence[str]]:
        """What the ledger holds."""
        return {name: self.ledger.ids(GROUP, name) for name in EVENTS}


async def _no_connection(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


async def play(actions: Sequence[Action]) -> None:
    scenario = Scenario()
    with anyio.fail_after(60):
        for action in actions:
            await scenario.act(action)
        verdict = await scenario.finish()
    check(scenario, verdict)
    for _ in range(50):
        await asyncio.sleep(0)
    assert scenario.broker.statistics().open_streams == 0
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []


def check(scenario: Scenario, verdict: Verdict) -> None:
    held = scenario.held()
    assert verdict.status is Status.COMPLETE
    for name, event in EVENTS.items():
        assert len(held[name]) == len(set(held[name])) == event.count, f"{name} has the wrong number of messages"
        assert {scenario.sent[identity] for identity in held[name]} == {name}, f"{name} has somebody else's messages"
        assert scenario.ledger.state(GROUP, name) == "success"
        payload = scenario.ledger.payload(GROUP, name)
        numbers = list(scenario.sent)
        payloads = payload if event.count > 1 else [payload]
        assert [numbers[one["n"]] for one in payloads] == held[name], f"{name}: payloads and facts do not agree"
    recorded = {identity for ids in held.values() for identity in ids}
    for channel in ("queue", "session"):
        for settlement in scenario.broker.settled(channel):
            if settlement.outcome.value == "accepted":
                assert settlement.message.id in recorded, "acknowledged, but not recorded"
    check_history(scenario)


def check_history(scenario: Scenario) -> None:
    before: dict[str, Sequence[str]] = {}
    for entry in scenario.ledger.history:
        known = before.get(entry.event, ())
        if entry.kind == "recorded":
            assert list(entry.what[: len(known)]) == list(known), "what was recorded is taken away"
            before[entry.event] = entry.what
        else:
            assert len(known) == EVENTS[entry.event].count, "marked before it was complete"
    marks = Counter(entry.event for entry in scenario.ledger.history if entry.kind == "marked")
    assert set(marks.values()) == {1}


WARM, BOTH = Action("steps", 40), [Action("start", 0), Action("start", 1), Action("steps", 40)]
RECORDED = [Action("send", "queues"), Action("recorded")]


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
# Killed between recording the last message and marking.
@example([Action("start"), WARM, *RECORDED, *RECORDED, *RECORDED, Action("pause"), Action("again"), WARM])
# Two waits with a message each, and one place.
@example([*BOTH, Action("pause"), *[Action("send", "queue"), Action("steps", 3)] * 2, WARM, Action("resume"), WARM])
@example([*BOTH, Action("pause"), *[Action("send", "session"), Action("steps", 3)] * 3, WARM, Action("resume"), WARM])
def test_every_event_ends_with_its_messages(actions: list[Action]) -> None:
    asyncio.run(play(actions))
