"""What a channel has seen lately, so that a group that waits in vain can be told which message came nearest.

Kept are the last :data:`MOST_KEPT` messages that were looked at, or some more, whoever wanted them. Nothing is compared
until somebody asks, so waiting costs nothing for it. After a restart it begins anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from event_triggers.matching import explain, parse_pattern
from event_triggers.matching.syntax import Pattern
from event_triggers.message import Message
from event_triggers.sources.base import Source
from event_triggers.subscription import Entry
from event_triggers.text import shown
from event_triggers.unread import Unread

__all__ = ["MOST_KEPT", "Miss", "Misses"]

MOST_KEPT = 50
_MOST_BYTES = 1024 * 1024


class Miss(NamedTuple):
    """What an event has been waited for in vain with. Its ``str`` is for the log and for errors."""

    event: str
    label: str
    seen: int
    """How many messages its stream has brought since it is listened to; a message that comes again counts once."""
    received: int
    """How many of them count for it."""
    position: str | None = None
    """Of the last ones, where the nearest is."""
    why: str | None = None
    """What kept that from counting, as the rest of a sentence about it."""

    def __str__(self) -> str:
        messages = f"{self.seen:,} message{'' if self.seen == 1 else 's'} seen on {self.label}"
        matched = f"{self.received} matched" if self.received else "none matched"
        text = f"{messages}, {matched} {self.event}"
        return text if self.position is None else f"{text}; the closest of the last ones, {self.position}, {self.why}"


class Misses:
    """The last messages of one channel."""

    def __init__(self) -> None:
        self._recent: deque[Message | Unread] = deque()
        self._count = 0
        self._bytes = 0

    def saw(self, message: Message) -> None:
        """This message was looked at."""
        self._recent.append(message)
        self._count += 1
        self._bytes += len(message.body or b"")
        if self._count <= MOST_KEPT and self._bytes <= _MOST_BYTES:
            return
        oldest = self._recent[0]
        if oldest.__class__ is Message and self._bytes <= _MOST_BYTES:
            # As a rule, and not by a call of its own: each counts where every message passes.
            self._recent.popleft()
            self._count -= 1
            self._bytes -= len(oldest.body or b"")
        else:
            self._forget()

    def passed_over(self, batch: Unread, begin: int, end: int) -> None:
        """These were looked at, as far as data go; they are made only if somebody asks."""
        part = batch.part(max(begin, end - MOST_KEPT), end)
        self._recent.append(part)
        self._count += len(part)
        self._bytes += _size(part)
        self._forget()

    def _forget(self) -> None:
        recent = self._recent
        while recent:
            oldest = recent[0]
            count = len(oldest) if isinstance(oldest, Unread) else 1
            if self._count - count < MOST_KEPT and self._bytes <= _MOST_BYTES:
                break
            self._count -= count
            self._bytes -= _size(oldest) if isinstance(oldest, Unread) else len(oldest.body or b"")
            recent.popleft()

    def _newest_first(self) -> Iterator[Message]:
        for one in reversed(self._recent):
            yield from reversed(one) if isinstance(one, Unread) else (one,)

    def nearest(self, entry: Entry, seen: int) -> Miss:
        """What came nearest to this entry.

        :param seen: how many messages its channel has seen.
        """
        interest = entry.interest
        seen += entry.seen_past - entry.seen_before
        miss = Miss(interest.name, interest.source.label, seen, interest.count - entry.remaining)
        if seen <= miss.received:
            return miss  # nothing came that did not match
        pattern = None if interest.pattern is None else parse_pattern(interest.pattern)
        best: tuple[int, int] | None = None
        for message in self._newest_first():
            if message.id in entry.seen or not _routed(interest.source, message):
                continue
            rank, why = _judged(entry, pattern, message)
            if why is not None and (best is None or rank < best):
                best, miss = rank, miss._replace(position=shown(message.position, 100), why=why)
        return miss


def _size(batch: Unread) -> int:
    return sum(len(body or b"") for body in batch.bodies)


def _routed(source: Source, message: Message) -> bool:
    try:
        return source.routes(message)
    except Exception:
        return False  # said already, when the message came


def _judged(entry: Entry, pattern: Pattern | None, message: Message) -> tuple[tuple[int, int], str | None]:
    """How far a message is from counting (less is nearer), and why."""
    mismatch = None if pattern is None else explain(pattern, message)
    if mismatch is not None:
        return (mismatch.missing, -mismatch.holding), f"differed in {mismatch}"
    if not entry.in_time(message):
        when = message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else "too late"
        return (0, 0), f"is stamped {when}"
    if entry.interest.accepts is not None:
        return (1, 0), "was not taken by the match callable"
    return (0, 0), None
