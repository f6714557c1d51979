"""The waits of one DAG run in this process: each group has its clock and its feeds, and all are sent the same messages.

Flow: Airflow's ``dag.test()`` runs a deferred task's trigger in line; for a group's, that is :meth:`World.run_trigger`.
It plays the trigger's own ``run()`` against feeds that stand for the brokers, message by message, and when they are
used up turns the clock on until the trigger ends. What its ledger in memory holds then goes into Airflow's database.
The trigger may come again (a warning was given, arrivals are handed over, another try) and goes on where it was.

Invariants:

* A group begins to wait when the run begins; one behind another group when that one's wait is over, on the clock and in
  the list of messages.
* To a group that begins later, earlier messages are what they are at their brokers: of a log all are there; a queue has
  what no group before has taken; a queue of the group's own did not exist yet.
* What the trigger has recorded is in Airflow's database before the task goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from event_triggers.errors import EventTriggersError
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.ledger import DEFAULT_PAYLOAD_LIMIT
from event_triggers.offline.dagfile import Group, Run
from event_triggers.offline.lines import Line, OfflineError
from event_triggers.offline.playback import Playback, Step, no_connection
from event_triggers.offline.replaying import Replayed, still_missing
from event_triggers.runtime import Runtime, use_runtime
from event_triggers.sources.base import Source
from event_triggers.terms import Terms
from event_triggers.testing.clock import ManualClock
from event_triggers.testing.ledger import MemoryLedger
from event_triggers.testing.results import GroupResult
from event_triggers.trigger import EventGroupTrigger
from event_triggers.verdict import Status, Verdict

if TYPE_CHECKING:
    from airflow.sdk import DAG

__all__ = ["GroupPlayback", "World"]

_OVERTIME = 600
"""Seconds for which a wait may go on after all that was due."""


class GroupPlayback(Playback):
    """One group's wait, over all triggers that it takes."""

    def __init__(self, group: Group, begin: datetime, first: int, map_index: int) -> None:
        super().__init__(group, begin, map_index)
        self.begin = begin
        self.next = first
        """The place of the message that is delivered next."""
        self.steps: list[Step] = []
        self.tries: set[str] = set()
        self.verdict: Verdict | None = None
        self.warned: tuple[datetime, list[str]] | None = None

    async def play(self, trigger: EventGroupTrigger, lines: Sequence[Line]) -> TriggerEvent:
        """Run a trigger to its event."""
        use_runtime(Runtime(self.hub, self.ledger, self.clock, DEFAULT_PAYLOAD_LIMIT))
        trigger.started = self._started(trigger.started)
        trigger.events = {
            name: event if name not in self.events else self.events[name].serialize()
            for name, event in trigger.events.items()
        }
        self.timeline = self.lay_out(datetime.fromisoformat(trigger.started), warned=trigger.warned)
        self.task = asyncio.get_running_loop().create_task(_first(trigger), name="event_triggers: trigger in a test")
        try:
            await self.settle()
            await self._deliver_all(lines)
            await self._let_time_pass()
            event: TriggerEvent = self.task.result()
        finally:
            await self.close()
        return self._noted(event)

    def _started(self, started: str | None) -> str:
        """By the clock of the test. A worker said it by its own, unless it only goes on waiting."""
        if started not in self.tries:
            started = self.clock.now().isoformat()
            self.tries.add(started)
        return started

    async def _deliver_all(self, lines: Sequence[Line]) -> None:
        while not self.paused and self.next < len(lines):
            line = lines[self.next]
            if line.timestamp is not None:
                await self.turn_to(line.timestamp)
                if self.paused:
                    return
            self.next += 1
            self.steps.append(await self.deliver(line))

    async def _let_time_pass(self) -> None:
        for stop in list(self.stops()):
            await self.turn_to(stop)
        for _ in range(_OVERTIME):
            if self.paused:
                return
            self.clock.advance(1)
            await self.settle()
        raise OfflineError(f"group {self.group.task_id!r} goes on waiting although its time is up")

    def _noted(self, event: TriggerEvent) -> TriggerEvent:
        """What happened, and the event in the form that a worker resumes with."""
        if isinstance(event, TaskSuccessEvent):
            received: Any = (event.xcoms or {}).get("return_value") or {}
            self.verdict = Verdict(Status.COMPLETE, received=received)
            # There is no triggerer that ends the task, so a worker does.
            return TriggerEvent({"status": Status.COMPLETE.value, "received": received})  # type: ignore[no-untyped-call]
        payload: Any = event.payload
        status, missing = Status(payload["status"]), tuple(payload["missing"])
        if status is Status.WARNING:
            self.warned = (self.clock.now(), list(missing))
        elif status is not Status.ARRIVALS:
            self.verdict = Verdict(status, missing=missing, text=payload["text"])
        return event

    def result(self, lines: Sequence[Line], given: Sequence[Any]) -> GroupResult:
        """What became of the group."""
        ended, states = self.clock.now(), self.states()
        after = [Step(line, ended, self.arrive(line, ended), states, True) for line in lines[self.next :]]
        replayed = Replayed(
            self.group,
            self.timeline,
            steps=[*self.steps, *after],
            verdict=self.verdict,
            took=self.took(),
            states=states,
            missing=list(self.verdict.missing) if self.verdict is not None else still_missing(self),
            warned=self.warned,
        )
        return GroupResult.of(replayed, given, ended)


async def _first(trigger: EventGroupTrigger) -> TriggerEvent:
    events = trigger.run()
    try:
        return await anext(events)
    finally:
        await events.aclose()  # type: ignore[attr-defined]


class World:
    """All groups of one DAG run.

    :param begin: when the run begins.
    :param keep: puts what a group's ledger holds into Airflow's database.
    """

    def __init__(
        self,
        dag: DAG,
        lines: Sequence[Line],
        begin: datetime,
        keep: Callable[[GroupPlayback, Mapping[str, str]], None],
    ) -> None:
        self._dag = dag
        self._lines = lines
        self._begin = begin
        self._keep = keep
        self._loop = asyncio.new_event_loop()
        self.playbacks: dict[tuple[str, int], GroupPlayback] = {}

    def close(self) -> None:
        """End what is left of the hubs, and their event loop."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def run_trigger(self, trigger: EventGroupTrigger, ti: Any) -> TriggerEvent:
        """Run a group's trigger in line, as ``dag.test()`` does.

        :param ti: the deferred task's.
        """
        trigger.task_instance = ti
        index = -1 if ti.map_index is None else int(ti.map_index)
        playback = self.playbacks.get((ti.task_id, index))
        if playback is None:
            try:
                playback = self.playbacks[ti.task_id, index] = self._begin_group(trigger, ti, index)
            except EventTriggersError:
                # The trigger finds the same fault, and tells its sensor.
                return self._loop.run_until_complete(self._told(trigger))
        try:
            return self._loop.run_until_complete(playback.play(trigger, self._lines))
        finally:
            self._keep(playback, trigger.markers)

    async def _told(self, trigger: EventGroupTrigger) -> TriggerEvent:
        clock = ManualClock(self._begin)
        use_runtime(Runtime(Hub(no_connection, clock=clock), MemoryLedger(), clock, DEFAULT_PAYLOAD_LIMIT))
        return await _first(trigger)

    def _begin_group(self, trigger: EventGroupTrigger, ti: Any, index: int) -> GroupPlayback:
        events = {name: Event.deserialize(data) for name, data in trigger.events.items()}
        terms, run = Terms.deserialize(trigger.terms), Run(self._begin, self._begin, run_id=ti.run_id)
        group = Group(self._dag.dag_id, ti.task_id, run, events, trigger.markers, terms, float(trigger.timeout))
        before = self._before(ti.task_id)
        begin = max((one.clock.now() for one in before), default=self._begin)
        playback = GroupPlayback(group, begin, max((one.next for one in before), default=0), index)
        self._fill(playback, before)
        return playback

    def _before(self, task_id: str) -> list[GroupPlayback]:
        """The groups whose wait was over before this task could begin."""
        upstream = self._dag.get_task(task_id).get_flat_relative_ids(upstream=True)
        return [one for (other, _), one in self.playbacks.items() if other in upstream]

    def _fill(self, playback: GroupPlayback, before: Sequence[GroupPlayback]) -> None:
        """Put what was sent before the group began to wait where it still is."""
        moment = self._begin
        for line in self._lines[: playback.next]:
            moment = max(moment, line.timestamp or moment)
            messages = playback.arrive(line, moment)
            found = {source: one for source, one in messages.items() if _keeps(source, line, before)}
            for source, message in found.items():
                playback.feeds[source].push(message)
            playback.steps.append(Step(line, moment, found, playback.states(), False))


def _keeps(source: Source, line: Line, before: Sequence[GroupPlayback]) -> bool:
    """Whether a source still has what was sent to it earlier."""
    if source.replayable:
        return True
    if source.private:
        return False
    taken = ((one, name) for one in before for name, numbers in one.took().items() if line.number in numbers)
    return not any(one.group.events[name].source == source for one, name in taken)
