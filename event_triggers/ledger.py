"""The ledger: what has been received, kept in Airflow and nowhere else.

Flow: ``record`` adds what arrived to the two XComs of the event's marker (payload and facts), marks the marker
``success`` with a note once it has all it wants, and returns what the marker holds when Airflow has all of it. Marks
of all groups that are due together travel together (:mod:`event_triggers.marking`).

Invariants:

* A marker is marked only after its XComs are stored, so a green marker always has its payload.
* Recording adds and never takes away. Twice is the same as once, known by the messages' ids; and when another wait of
  the same group (a triggerer that was given up, but lives) has recorded something, that is kept. What finds no room
  any more is not in the answer, and goes back to its broker.
* What may count for an event, when only messages yet to come can decide it, is kept in XComs of its own; only a queue
  that no one else reads needs that, see :mod:`event_triggers.choosing`.
* A marker that was complete and is then cleared begins anew: the facts name the *round* (Airflow gives a task
  instance a new id when it is cleared), and complete facts of another round do not count. Incomplete ones do, since a
  sensor is cleared after a timeout to wait for the rest.
* ``record`` does not give up while its caller waits: Airflow away, a right not granted, a marker not there yet are all
  waited for; the group's log says what to do, once per reason.

After a restart everything is read back: states by :meth:`Book.load`, what a marker holds by :meth:`Book.received`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from event_triggers.clock import parse_datetime
from event_triggers.message import UNDECODABLE, UNSURE, Message, same_message
from event_triggers.notes import view_of
from event_triggers.text import shown, storable

__all__ = [
    "Arrival",
    "Book",
    "GroupRef",
    "Ledger",
    "Received",
    "as_text",
    "facts_of",
    "held_by",
    "merged",
    "over_round",
    "payload_of",
]

DEFAULT_PAYLOAD_LIMIT = 48 * 1024
_VIEW = 2000
_DEEPEST = 100
"""Levels of nesting beyond which Airflow's own checks of an XCom might not return."""
_LARGE_NUMBER = re.compile(rb"\d{19}|\d[eE]\+?\d")
"""What may be a number beyond 64 bits. Airflow cannot hand whole ones to a task, and PostgreSQL makes 1e20 one."""
_FACTS = ("source", "stream", "position", "id", "timestamp", "received_at")


@dataclass(frozen=True, slots=True)
class GroupRef:
    """Which sensor, in which run."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @property
    def identity(self) -> str:
        """The same for every try, after every restart, on every triggerer."""
        return f"{self.dag_id}/{self.run_id}/{self.task_id}/{self.map_index}"


@dataclass(frozen=True, slots=True)
class Received:
    """One message that counts for an event: its facts, and until it is recorded its payload and note."""

    source: str
    stream: str
    position: str
    id: str
    timestamp: str | None
    received_at: str
    payload: Any = None
    note: str = ""
    value: Any = None
    """In a group whose messages must agree on a value: this one's."""
    receipt: str | None = None
    """With this its queue can be told of it once more, by any process: see :meth:`Source.receipt_of`."""

    def __post_init__(self) -> None:
        # Facts are what a wait lives by: no stream may hold a character over which the database refuses them.
        for name in ("stream", "position", "id"):
            text = getattr(self, name)
            if isinstance(text, str) and not text.isprintable():
                object.__setattr__(self, name, storable(text))

    def facts(self) -> dict[str, Any]:
        """What the sensor's XCom says of it."""
        facts = {name: getattr(self, name) for name in _FACTS}
        return facts if self.value is None else {**facts, "value": self.value}

    def stored(self) -> dict[str, Any]:
        """The facts as they are stored with the marker."""
        return self.facts() if self.receipt is None else {**self.facts(), "receipt": self.receipt}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Received:
        """Read :meth:`stored` back."""
        return cls(**{name: facts.get(name) for name in (*_FACTS, "value", "receipt")})  # type: ignore[arg-type]

    @property
    def stamp(self) -> datetime:
        """The moment by which it is compared with others: its broker's, or when it was received."""
        return parse_datetime(self.timestamp or self.received_at)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has come for an event and is to be recorded.

    :param wanted: how many messages complete it.
    """

    event: str
    messages: tuple[Received, ...]
    wanted: int


def merged(held: Sequence[Received], arrival: Arrival) -> tuple[Received, ...]:
    """What a marker that holds ``held`` holds after this arrival; what is new comes with its payload."""
    result = list(held)
    known = {one.id for one in held}
    unsure = any(one.id.endswith(UNSURE) for one in (*held, *arrival.messages))
    for one in arrival.messages:
        if len(result) == arrival.wanted:
            break
        if one.id not in known and not (unsure and any(same_message(one.id, other) for other in known)):
            known.add(one.id)
            result.append(one)
    return tuple(result)


def facts_of(held: Sequence[Received], wanted: int, round_: str) -> dict[str, Any]:
    """A marker's facts, as they are stored."""
    return {"wanted": wanted, "round": round_, "messages": [one.stored() for one in held]}


def held_by(facts: Any, round_: str) -> tuple[Received, ...]:
    """What a marker holds by its facts; nothing when they are none, or belong to a round that is over."""
    messages = facts.get("messages") if isinstance(facts, dict) else None
    if not messages or over_round(facts, round_) is not None:
        return ()
    return tuple(Received.from_facts(one) for one in messages)


def over_round(facts: Any, round_: str) -> str | None:
    """The round that is over by a marker's facts: it was complete, and the marker was cleared since."""
    messages = facts.get("messages") if isinstance(facts, dict) else None
    over = messages and len(messages) >= facts.get("wanted", 1) and facts.get("round", round_) != round_
    return str(facts["round"]) if over else None


def payload_of(message: Message, limit: int = DEFAULT_PAYLOAD_LIMIT) -> Any:
    """The message's payload for the DAG.

    One whose JSON is longer than ``limit`` bytes becomes a reference with a view. One that Airflow cannot store, or
    cannot hand to a task (a NUL character, very deep nesting, a number beyond 64 bits), becomes text, see
    :func:`as_text`.
    """
    payload = message.payload
    size = len(message.body or b"")
    # Escaping can make JSON up to six times longer than the body, so only small bodies are surely small.
    if size * 6 > limit and (size > limit or _size_stored(payload, size) > limit):
        return {
            "truncated": True,
            "size": size,
            "source": message.source,
            "stream": storable(message.stream),
            "position": storable(message.position),
            "view": shown(view_of(message, _VIEW + 1), _VIEW),
        }
    if message.body is not None and _suspicious(message.body) and not _storable(payload):
        is_json = message.document is not UNDECODABLE
        return _text(message.text if is_json else msgspec.json.encode(payload).decode(), "it cannot be stored as JSON")
    return payload


def _size_stored(payload: Any, size: int) -> int:
    try:
        return len(msgspec.json.encode(payload))
    except RecursionError:
        return size  # so deep that it is stored as the text that it came as


def as_text(payload: Any, reason: str) -> dict[str, str]:
    """A payload that Airflow refused to store, as JSON text behind ``json:``."""
    return _text(msgspec.json.encode(payload).decode(), reason)


def _text(text: str, reason: str) -> dict[str, str]:
    # The prefix keeps Airflow from reading the text as JSON again, and refusing it again.
    return {"refused": reason[:500], "payload_as_text": f"json:{text}"}


def _suspicious(body: bytes) -> bool:
    many = body.count(b"[") + body.count(b"{") > _DEEPEST
    return many or b"\0" in body or b"\\u0000" in body or _LARGE_NUMBER.search(body) is not None


def _storable(payload: Any) -> bool:
    waiting = [(payload, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            if depth > _DEEPEST or any("\0" in key for key in value):
                return False
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            if depth > _DEEPEST:
                return False
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            # Airflow reads text that looks like JSON as JSON, and fails when that is nested deeply.
            if "\0" in value or (value.count("[") + value.count("{") > _DEEPEST and value.lstrip()[:1] in ("[", "{")):
                return False
        elif isinstance(value, (int, float)) and not -(2**63) <= value < 2**64:
            return False
    return True


class Book(ABC):
    """One group's part of the ledger."""

    @abstractmethod
    async def load(self) -> dict[str, str | None]:
        """The state of every event's marker now."""

    @abstractmethod
    async def received(self, event: str) -> tuple[Received, ...]:
        """What the marker of this event holds, without payloads; empty when it was marked by hand or holds nothing."""

    @abstractmethod
    async def record(self, arrivals: Sequence[Arrival]) -> Mapping[str, tuple[Received, ...]]:
        """Add these arrivals, and mark the markers that are complete; return when Airflow has it all.

        An arrival without messages marks what is complete already.

        :returns: what each of the markers holds now, without payloads.
        """

    @abstractmethod
    async def end(self, event: str, state: str, note: str) -> None:
        """Bring the marker of an event that has not come into ``"skipped"`` or ``"failed"``."""

    @abstractmethod
    async def join(self, task_id: str) -> None:
        """Make the group's last task ``success``, whatever its markers are."""

    @abstractmethod
    async def keep(self, event: str, messages: Sequence[Received]) -> None:
        """Store messages that may count for this event, with their payloads: it depends on others yet to come."""

    @abstractmethod
    async def kept(self, event: str) -> list[Received]:
        """What :meth:`keep` has stored, with payloads, oldest first."""

    @abstractmethod
    async def marked(self) -> dict[str, str]:
        """Wait until markers have come into an end state; give their states.

        Those are ``success``, ``failed``, ``skipped``, and ``removed`` for what is no longer in the DAG.

        Marks made through :meth:`record`, of this book and of another of the same group, may be among them.
        """

    @abstractmethod
    async def sensor_state(self) -> str | None:
        """The state of the group's sensor now; ``"removed"`` when it is not there any more."""

    @property
    def trouble(self) -> str | None:
        """Why something could not be recorded so far, for the error of a sensor that times out over it."""
        return None


class Ledger(ABC):
    """Gives each group its book."""

    @property
    def trouble(self) -> str | None:
        """Why no book can be opened so far."""
        return None

    @abstractmethod
    def open(
        self, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> AbstractAsyncContextManager[Book]:
        """The book of a group.

        :param markers: the task id of each event's marker.
        :param tell: writes into the group's task log, with a level.
        """
