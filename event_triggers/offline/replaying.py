"""The wait of a group, replayed: its clock goes by the stamps of the messages, and each is dealt with before the next.

Flow: the try begins at the run's ``run_after``. For each message the clock is turned on to its stamp, stopping where
something is due (an event's own time, the warning, the deadline); then every source that it comes from delivers it, and
all that can run without the clock runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from event_triggers.offline.dagfile import Group
from event_triggers.offline.lines import Line
from event_triggers.offline.playback import Playback, Step
from event_triggers.terms import Timeline
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait

__all__ = ["Replayed", "Step", "replay", "still_missing"]


@dataclass
class Replayed:
    """What became of a group.

    :param verdict: ``None`` while it waits on.
    :param took: of each event, the lines of its messages.
    :param states: of the markers.
    :param warned: when somebody would have been told, and that these were missing.
    """

    group: Group
    timeline: Timeline
    steps: list[Step] = field(default_factory=list)
    verdict: Verdict | None = None
    took: dict[str, list[int]] = field(default_factory=dict)
    states: dict[str, str | None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    warned: tuple[datetime, list[str]] | None = None

    @property
    def complete(self) -> bool:
        """Whether the group is."""
        return self.verdict is not None and self.verdict.status is Status.COMPLETE


async def replay(group: Group, lines: Sequence[Line]) -> Replayed:
    """Let a group wait for these messages."""
    return await _Replay(group).run(lines)


class _Replay(Playback):
    def __init__(self, group: Group) -> None:
        super().__init__(group, group.run.run_after)
        self._replayed = Replayed(group, self.timeline)

    @property
    def paused(self) -> bool:
        """Never: what comes when the wait is over is told with its moment too."""
        return False

    async def run(self, lines: Sequence[Line]) -> Replayed:
        """Replay all lines."""
        replayed = self._replayed
        self._begin(self.timeline)
        await self.settle()
        try:
            for line in lines:
                if line.timestamp is not None:
                    await self.turn_to(line.timestamp)
                replayed.steps.append(await self.deliver(line, over=replayed.verdict is not None))
            replayed.states, replayed.took = self.states(), self.took()
            verdict = replayed.verdict
            replayed.missing = list(verdict.missing) if verdict is not None else still_missing(self)
            return replayed
        finally:
            await self.close()

    def _begin(self, timeline: Timeline) -> None:
        wait = GroupWait(
            self.ref,
            self.events,
            self.group.markers,
            hub=self.hub,
            ledger=self.ledger,
            clock=self.clock,
            terms=self.group.terms,
            timeline=timeline,
        )
        self.task = asyncio.get_running_loop().create_task(wait.run(), name="event_triggers: offline wait")

    def ended(self) -> bool:
        """A warning is given, and the wait goes on."""
        assert self.task is not None  # noqa: S101 - what has ended had begun
        verdict: Verdict = self.task.result()
        if verdict.status is not Status.WARNING:
            self._replayed.verdict = verdict
            return False
        self._replayed.warned = (self.clock.now(), list(verdict.missing))
        self._begin(self.lay_out(self.group.run.run_after, warned=True))
        return True


def still_missing(playback: Playback) -> list[str]:
    """The required events that have not come yet; how many of how many, where it takes several."""
    took, states, missing = playback.took(), playback.states(), []
    for name, event in playback.group.events.items():
        got = len(took[name])
        if states[name] is None and event.required and got < event.count:
            missing.append(f"{name} ({got} of {event.count})" if event.count > 1 else name)
    return missing
