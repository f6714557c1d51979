"""What a test is told of a DAG run in this process, and of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from event_triggers.offline.replaying import Replayed
from event_triggers.offline.report import report

__all__ = ["GroupResult", "RunResult"]


@dataclass(frozen=True)
class GroupResult:
    """What became of a group.

    Its text is a report: what each message did, why it did not count, and what is missing in the end.

    :param task_id: of its sensor.
    :param events: the state of each event's marker by the event's name, as the wait left it; ``None`` for one that has
        not come.
    :param messages: of each event, the messages that satisfy it, as they were given to the test.
    :param missing: what has not come.
    :param complete: whether the group is.
    :param ended: what the clock showed when the wait was over.
    :param warned: when somebody was told (``warn_after``), and that this was missing.
    """

    task_id: str
    events: Mapping[str, str | None]
    messages: Mapping[str, Sequence[Any]]
    missing: Sequence[str]
    complete: bool
    ended: datetime
    warned: tuple[datetime, Sequence[str]] | None
    replayed: Replayed = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(report(self.replayed, "message"))

    @classmethod
    def of(cls, replayed: Replayed, given: Sequence[Any], ended: datetime) -> GroupResult:
        """From what a playback has shown."""
        return cls(
            task_id=replayed.group.task_id,
            events=dict(replayed.states),
            messages={name: [given[number - 1] for number in took] for name, took in replayed.took.items()},
            missing=list(replayed.missing),
            complete=replayed.complete,
            ended=ended,
            warned=replayed.warned,
            replayed=replayed,
        )


@dataclass(frozen=True)
class RunResult:
    """What became of a DAG run. Mapped task instances are named ``task[0]``, ``task[1]``, ...

    Its text tells all states, errors and groups, for the message of an assertion.

    :param state: of the run, ``"success"`` or ``"failed"``.
    :param states: of every task.
    :param errors: of each task that failed, what it raised; of one that was tried again, what it raised last.
    :param outputs: of each task that has one, its ``return_value``; of a marker, its message's payload.
    :param xcoms: every XCom, by task and key.
    :param notes: of the tasks that have one. A marker's says where its message came from.
    :param groups: by group id, or by the sensor's task id where the sensor stands by hand; a mapped one as a mapped
        task is.
    """

    dag_id: str
    run_id: str
    state: str
    states: Mapping[str, str | None]
    errors: Mapping[str, BaseException]
    outputs: Mapping[str, Any]
    xcoms: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, str]
    groups: Mapping[str, GroupResult]

    def __str__(self) -> str:
        lines = [f"DAG run {self.run_id} of {self.dag_id}: {self.state}"]
        for name, state in self.states.items():
            error = self.errors.get(name)
            lines.append(f"  {name}: {state}" + ("" if error is None else f", {type(error).__name__}: {error}"))
        return "\n".join([*lines, *(str(group) for group in self.groups.values())])
