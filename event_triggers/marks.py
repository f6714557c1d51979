"""What the marking route is asked and what it answers: the one document that client and API server share.

The client (:mod:`event_triggers.marking_route`) runs in triggerers, the route (:mod:`event_triggers.server.marks`) in
API servers, and either may be of another release. So each says its :data:`PROTOCOL`, and they speak only when it is the
same; otherwise the public REST API is used.

Beside it, the states of many groups' markers are read at once (:data:`MARKERS_PATH`).

A mark names one task instance. It brings messages to be recorded (:attr:`Mark.messages`), or a state. Everything that
is asked has the same effect twice as once.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "FACTS_KEY",
    "MARKERS_PATH",
    "MARKER_OPERATOR",
    "MARKS_PATH",
    "MOST_BYTES",
    "MOST_GROUPS",
    "MOST_MARKS",
    "PAYLOAD_KEY",
    "PROTOCOL",
    "About",
    "Answer",
    "Answers",
    "FoundMarkers",
    "GroupMarkers",
    "Mark",
    "MarkRequest",
    "MarkerState",
    "MarkersAnswer",
    "MarkersRequest",
    "RunMarks",
    "SentMessage",
    "series_key",
]

PROTOCOL = 1
"""Raised by every change that the other side would misunderstand."""
MARKS_PATH = "/event-triggers/marks"
MARKERS_PATH = "/event-triggers/markers"
MARKER_OPERATOR = "EventMarker"
MOST_GROUPS = 200
"""Groups whose markers are asked for in one request."""
MOST_MARKS = 500
"""Marks in one request."""
MOST_BYTES = 16 * 1024 * 1024
"""Length of one request."""

FACTS_KEY = "event"
PAYLOAD_KEY = "return_value"


def series_key(round_: str, place: int) -> str:
    """The XCom of a marker that holds what was appended when ``place`` messages were there."""
    return f"{FACTS_KEY}_{round_}_{place}"


class SentMessage(msgspec.Struct, omit_defaults=True):
    """One message that is to be recorded: its facts as they are stored, its payload, its note."""

    facts: dict[str, Any]
    payload: Any = None
    note: str = ""


class Mark(msgspec.Struct, omit_defaults=True):
    """What is asked of one task instance.

    ``messages`` are recorded, and complete it when it then holds ``wanted``; without ``messages`` it is brought into
    ``state``. ``known`` is how many messages the client believes it to hold, and ``last`` the id of the last of these:
    the answer leaves them out when that is so. ``anyway`` changes a state in which a person has put it, too.
    """

    task_id: str
    map_index: int = -1
    wanted: int = 1
    messages: list[SentMessage] | None = None
    known: int = 0
    last: str | None = None
    state: str = "success"
    note: str | None = None
    anyway: bool = False


class RunMarks(msgspec.Struct):
    """The marks of one run: they are made in one transaction."""

    dag_id: str
    run_id: str
    marks: list[Mark]


class MarkRequest(msgspec.Struct):
    """What is posted to :data:`MARKS_PATH`."""

    protocol: int
    runs: list[RunMarks]


class Answer(msgspec.Struct, omit_defaults=True):
    """What became of one mark.

    With ``status`` 200, the task instance is in ``state``, and holds the messages that the client knows (the first
    ``first``) and ``held``: each a number among those that were sent, or the facts of another. Any other ``status`` is
    a refusal as the public API would make it, and ``detail`` says why; then nothing of this mark was done.
    ``payload`` says that it is the payload of a message, the only one or the one of this number, that is refused.
    """

    state: str | None = None
    first: int = 0
    held: list[int | dict[str, Any]] = []
    status: int = 200
    detail: str = ""
    payload: int | None = None


class Answers(msgspec.Struct):
    """The answers of a request: by run, in the order of what was asked."""

    protocol: int
    runs: list[list[Answer]]


class GroupMarkers(msgspec.Struct, omit_defaults=True):
    """Some markers of one run."""

    dag_id: str
    run_id: str
    task_ids: list[str]
    map_index: int = -1


class MarkersRequest(msgspec.Struct):
    """What is posted to :data:`MARKERS_PATH`."""

    protocol: int
    groups: list[GroupMarkers]


class MarkerState(msgspec.Struct, array_like=True):
    """A marker's task instance: its id changes when it is cleared."""

    task_id: str
    id: str
    state: str | None


class FoundMarkers(msgspec.Struct, omit_defaults=True):
    """The markers that there are of those that were asked for, or a refusal as the public API would make it."""

    markers: list[MarkerState] = []
    status: int = 200
    detail: str = ""


class MarkersAnswer(msgspec.Struct):
    """The answers of a request, in the order of what was asked."""

    protocol: int
    groups: list[FoundMarkers]


class About(msgspec.Struct):
    """What ``GET`` of :data:`MARKS_PATH` answers.

    ``reads`` says whether there is :data:`MARKERS_PATH`; releases that did not have it speak the same protocol.
    """

    protocol: int
    version: str = ""
    reads: bool = False
