"""The ledger: what has been received, kept in Airflow and nowhere else.

Flow: ``record`` stores the payload and the facts of what arrived as two XComs of the event's marker, then marks the marker
``success`` with a note, and returns when Airflow has all of it. Marks of all groups that are due together travel together
(:mod:`event_triggers.marking`).

Invariants:

* A marker is marked only after its XComs are stored, so a green marker always has its payload.
* Recording twice is the same as once: an XCom that exists is replaced, a marker that is ``success`` already stays.
* ``record`` does not give up while its caller waits: Airflow away, a right not granted, a marker not there yet are all
  waited for; the group's log says what to do, once per reason.

After a restart everything is read back: states by :meth:`Book.load`, what a marker holds by :meth:`Book.received`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec

from event_triggers.message import Message
from event_triggers.notes import shown

__all__ = ["Arrival", "Book", "GroupRef", "Ledger", "Received", "payload_of"]

DEFAULT_PAYLOAD_LIMIT = 48 * 1024
_VIEW = 2000


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Received:
    """One message that counts for an event, with the facts that stay when its payload is not at hand."""

    source: str
    stream: str
    position: str
    id: str
    timestamp: str | None
    received_at: str
    payload: Any = None
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """What the sensor's XCom says of it."""
        return {
            "source": self.source,
            "stream": self.stream,
            "position": self.position,
            "id": self.id,
            "timestamp": self.timestamp,
            "received_at": self.received_at,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], payload: Any = None) -> Received:
        """Read :meth:`facts` back."""
        known = {name: facts.get(name) for name in ("source", "stream", "position", "id", "timestamp", "received_at")}
        return cls(**known, payload=payload)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arrival:
    """An event and all it has received so far.

    :param wanted: how many messages complete it.
    """

    event: str
    received: tuple[Received, ...]
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether its marker is to be marked."""
        return len(self.received) >= self.wanted

    @property
    def payload(self) -> Any:
        """The marker's XCom: the payload, or the list of payloads of an event that wants several."""
        payloads = [one.payload for one in self.received]
        return payloads if self.wanted > 1 else payloads[-1]


def payload_of(message: Message, limit: int = DEFAULT_PAYLOAD_LIMIT) -> Any:
    """The message's payload for the DAG; one whose JSON is longer than ``limit`` bytes becomes a reference with a view."""
    payload = message.payload
    size = len(message.body or b"")
    # Escaping can make JSON up to six times longer than the body, so only small bodies are surely small.
    if size * 6 > limit and (size > limit or len(msgspec.json.encode(payload)) > limit):
        return {
            "truncated": True,
            "size": size,
            "source": message.source,
            "stream": message.stream,
            "position": message.position,
            "view": shown(message.text[:_VIEW], _VIEW),
        }
    return payload


class Book(ABC):
    """One group's part of the ledger."""

    @abstractmethod
    async def load(self) -> dict[str, str | None]:
        """The state of every event's marker now."""

    @abstractmethod
    async def received(self, event: str, *, payloads: bool = True) -> tuple[Received, ...]:
        """What the marker of this event holds; empty when it was marked by hand or holds nothing."""

    @abstractmethod
    async def record(self, arrivals: Sequence[Arrival]) -> None:
        """Store these arrivals, and mark the markers of the complete ones; return when Airflow has it all."""

    @abstractmethod
    async def marked(self) -> dict[str, str]:
        """Wait until markers have come into an end state (``success``, ``failed``, ``skipped``); give their states.

        Marks made through :meth:`record` may be among them.
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

    @abstractmethod
    def open(
        self, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> AbstractAsyncContextManager[Book]:
        """The book of a group.

        :param markers: the task id of each event's marker.
        :param tell: writes into the group's task log, with a level.
        """
