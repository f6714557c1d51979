"""How a wait ended, and what its sensor is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from event_triggers.text import one_line

__all__ = ["Status", "Verdict"]


class Status(str, Enum):
    """How a wait ended."""

    COMPLETE = "complete"
    ARRIVALS = "arrivals"
    WARNING = "warning"
    TIMEOUT = "timeout"
    LATE = "late"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """How a wait ended, and what the sensor needs to know of it.

    :param received: of each event that has arrived, the facts (a list of them when it wants several messages);
        ``{"marked_by_hand": state}`` when a person marked it.
    :param missing: of each event that has not, how far it is: ``"orders"``, ``"shifts (1 of 3)"``.
    :param text: for ``failed``, ``late`` and ``error``: what happened; for ``timeout``: why, when there is more to say.
    :param arrivals: of each event, how many messages it has received by now.
    """

    status: Status
    received: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    text: str = ""
    arrivals: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # It becomes the error of a task, and may hold what a server said.
        object.__setattr__(self, "text", one_line(self.text))

    @property
    def final(self) -> bool:
        """Whether nobody will wait for this group's messages again, unless a person starts it over."""
        return self.status in (Status.COMPLETE, Status.TIMEOUT, Status.LATE, Status.FAILED)
