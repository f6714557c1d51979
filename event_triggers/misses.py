"""What a channel has seen lately, so that a group that waits in vain can be told which message came nearest.

Kept are the last :data:`MOST_KEPT` messages that were looked at, or some more, whoever wanted them. Nothing is compared
until somebody asks, so waiting costs nothing for it. Who asks is answered with one pass over what is kept, and words
are made of the nearest alone: a thousand groups that began together ask together. After a restart it begins anew.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import NamedTuple, cast

from event_triggers.entry import Entry
from event_triggers.matching import explain
from event_triggers.matching.explain import Distance, distances
from event_triggers.matching.syntax import Pattern
from event_triggers.message import Message
from event_triggers.sources.base import Source
from event_triggers.text import shown
from event_triggers.unread import Unread

__all__ = ["FARTHEST", "MOST_KEPT", "Miss", "Misses"]

MOST_KEPT = 50
_MOST_BYTES = 1024 * 1024
FARTHEST: Distance = (sys.maxsize, 0)
"""Of what cannot be compared: nothing that is kept has been missed."""


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
    far: Distance = FARTHEST
    """How far that is from counting, to compare with others."""

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
        if any(one.__class__ is not Message for one in self._recent):
            # Somebody asks, and others will: each message is made, and decoded, once for all of them.
            made = (one if isinstance(one, Unread) else (one,) for one in self._recent)
            self._recent = deque(chain.from_iterable(made))
            self._forget()
        return cast("Iterator[Message]", reversed(self._recent))

    def nearest(self, entry: Entry, seen: int, read_pattern: Callable[[], Pattern | None]) -> Miss:
        """What came nearest to this entry.

        :param seen: how many messages its channel has seen.
        :param read_pattern: gives its pattern, if it has one; not called where nothing was missed.
        """
        interest = entry.interest
        seen += entry.seen_past - entry.seen_before
        miss = Miss(interest.name, interest.source.label, seen, interest.count - entry.remaining)
        if seen <= miss.received:
            return miss  # nothing came that did not match
        pattern = read_pattern()
        messages = list(self._newest_first())
        differing = repeat(None, len(messages)) if pattern is None else distances(pattern, messages)
        best: Distance | None = None
        nearest: Message | None = None
        for message, differs in zip(messages, differing, strict=True):
            far = differs or _beyond_data(entry, message)
            if far is None or (best is not None and far >= best):
                continue
            if message.id not in entry.seen and _routed(interest.source, message):
                best, nearest = far, message
        if nearest is None or best is None:
            return miss
        why = _why(entry, pattern, nearest)
        return miss._replace(position=shown(nearest.position, 100), why=why, far=best)


def _size(batch: Unread) -> int:
    return sum(len(body or b"") for body in batch.bodies)


def _routed(source: Source, message: Message) -> bool:
    try:
        return source.routes(message)
    except Exception:
        return False  # said already, when the message came


def _beyond_data(entry: Entry, message: Message) -> Distance | None:
    """How far a message that matches is from counting; ``None`` when nothing is known that kept it from it."""
    if not entry.in_time(message):
        return (0, 0)
    return (1, 0) if entry.interest.accepts is not None else None


def _why(entry: Entry, pattern: Pattern | None, message: Message) -> str:
    """What kept a message from counting, which something has."""
    mismatch = None if pattern is None else explain(pattern, message)
    if mismatch is not None:
        return f"differed in {mismatch}"
    if entry.in_time(message):
        return "was not taken by the match callable"
    when = message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else "too late"
    return f"is stamped {when}"
