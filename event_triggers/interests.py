"""Which of a channel's entries want a message: the patterns through an index, callables by asking them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import anyio

from event_triggers.callables import CallableError, Callables, MatchCallable
from event_triggers.entry import Entry
from event_triggers.matching import PatternIndex, parse_pattern
from event_triggers.matching.syntax import Pattern
from event_triggers.message import UNDECODABLE, Message

__all__ = ["InterestIndex"]

_COMPLAINTS_SHOWN = 20
"""How many failures of one event's callable (or source) are logged; one that always fails must not fill the log."""


class InterestIndex:
    """The entries of one channel, findable by message."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.seen = 0
        """How many messages were compared with it; counted by whoever does."""
        self._patterns: PatternIndex[Entry] = PatternIndex()
        self._everything: dict[Entry, None] = {}
        self._callables: dict[Entry, MatchCallable] = {}
        self.asks = False
        """Whether there are callables, so that :meth:`agreeing` may have something to say."""
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._patterns) + len(self._everything) + len(self._callables)

    def add(self, entry: Entry) -> None:
        """Look for this entry's messages from now on."""
        if entry.interest.accepts is not None:
            self._callables[entry] = entry.interest.accepts
            self.asks = True
        elif entry.interest.pattern is not None:
            self._patterns.add(entry.interest.pattern, entry)
        else:
            self._everything[entry] = None

    def discard(self, entry: Entry) -> None:
        """Stop looking; nothing happens when the entry is not here."""
        self._everything.pop(entry, None)
        self._callables.pop(entry, None)
        self.asks = bool(self._callables)
        if entry in self._patterns:
            self._patterns.remove(entry)

    def pattern_of(self, entry: Entry) -> Pattern | None:
        """What an entry asks of the data: as it stands here, or read anew where it is not here."""
        if entry in self._patterns:
            return self._patterns.pattern(entry)
        return None if entry.interest.pattern is None else parse_pattern(entry.interest.pattern)

    def matching(self, message: Message) -> list[Entry]:
        """The entries that want this message, as far as data can tell."""
        found = [] if self._patterns.empty else self._patterns.matching(message)
        if self._everything:
            found = [*self._everything, *found]
        return [entry for entry in found if _wants(entry, message)] if found else found

    def first_wanted(self, bodies: Sequence[bytes | None], begin: int, end: int) -> int:
        """The place of the first of these bodies that must be looked at as a message; ``end`` when none must."""
        return begin if self._everything or self.asks else self._patterns.first_wanted(bodies, begin, end)

    async def agreeing(self, message: Message, callables: Callables) -> list[Entry]:
        """The entries whose callables want this message.

        Each callable is asked once, for however many entries; entries that come while others are asked are asked too.
        So what is returned is the whole truth about the entries that are here at the time.
        """
        verdicts: dict[MatchCallable, bool] = {}
        while unasked := self._unasked(message, verdicts):
            async with anyio.create_task_group() as group:
                for accepts, entries in unasked.items():
                    group.start_soon(_ask, accepts, entries, message, callables, verdicts, name="event_triggers: ask")
        return [entry for entry, accepts in self._callables.items() if verdicts.get(accepts) and _wants(entry, message)]

    def _unasked(self, message: Message, verdicts: dict[MatchCallable, bool]) -> dict[MatchCallable, list[Entry]]:
        unasked: dict[MatchCallable, list[Entry]] = {}
        for entry, accepts in self._callables.items():
            if accepts not in verdicts and _wants(entry, message):
                unasked.setdefault(accepts, []).append(entry)
        return unasked

    def unreadable(self, message: Message) -> bool:
        """Whether an entry here would have to look into this body and cannot."""
        if self._patterns.empty or message.body is None or message.document is not UNDECODABLE:
            return False
        return any(_wants(entry, message) for entry in self._patterns.hinging_on_body(message))


async def _ask(
    accepts: MatchCallable,
    entries: list[Entry],
    message: Message,
    callables: Callables,
    verdicts: dict[MatchCallable, bool],
) -> None:
    try:
        verdicts[accepts] = await callables.ask(accepts, message)
    except CallableError as error:
        verdicts[accepts] = False
        for entry in entries:
            _complain(entry, f"its match callable {error}", message)


def _wants(entry: Entry, message: Message) -> bool:
    """Whether everything but pattern and callable speaks for this message."""
    if not entry.open_for(message):
        return False
    try:
        return entry.admits(message)
    except Exception as error:
        _complain(entry, f"its source's routes() raised {type(error).__name__}: {error}", message)
        return False


def _complain(entry: Entry, what: str, message: Message) -> None:
    entry.complaints += 1
    if entry.complaints > _COMPLAINTS_SHOWN:
        return
    more = "; further failures are not logged" if entry.complaints == _COMPLAINTS_SHOWN else ""
    entry.subscription.tell(
        logging.ERROR,
        "event %s: %s for %s; the message does not count for it%s",
        entry.interest.name,
        what,
        message,
        more,
    )
