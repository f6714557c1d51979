"""Which of a channel's entries want a message: the patterns through an index, callables by asking them.

A callable is a user's code: it runs in a thread, one message at a time and for a bounded time, so that one that raises, blocks
or never returns costs its own event that message and nothing else.
"""

from __future__ import annotations

import logging

import anyio
import anyio.to_thread

from event_triggers.matching import PatternIndex
from event_triggers.message import UNDECODABLE, Message
from event_triggers.subscription import Entry

__all__ = ["CALLABLE_TIMEOUT", "InterestIndex"]

CALLABLE_TIMEOUT = 10.0
"""Seconds that a match callable may take for one message."""


class InterestIndex:
    """The entries of one channel, findable by message."""

    def __init__(self) -> None:
        self._patterns: PatternIndex[Entry] = PatternIndex()
        self._everything: dict[Entry, None] = {}
        self._callables: dict[Entry, None] = {}

    def __len__(self) -> int:
        return len(self._patterns) + len(self._everything) + len(self._callables)

    def add(self, entry: Entry) -> None:
        """Look for this entry's messages from now on."""
        if entry.interest.accepts is not None:
            self._callables[entry] = None
        elif entry.interest.pattern is not None:
            self._patterns.add(entry.interest.pattern, entry)
        else:
            self._everything[entry] = None

    def discard(self, entry: Entry) -> None:
        """Stop looking; nothing happens when the entry is not here."""
        self._everything.pop(entry, None)
        self._callables.pop(entry, None)
        if entry in self._patterns:
            self._patterns.remove(entry)

    @property
    def asks(self) -> bool:
        """Whether some entries have callables, so that :meth:`asking` must be awaited too."""
        return bool(self._callables)

    def matching(self, message: Message) -> list[Entry]:
        """The entries that want this message, as far as data can tell."""
        found = list(self._everything)
        if len(self._patterns):
            document = message.document
            if document is not UNDECODABLE:
                found += self._patterns.matching(document)
        return [entry for entry in found if entry.admits(message)]

    async def asking(self, message: Message, threads: anyio.CapacityLimiter) -> list[Entry]:
        """The entries whose callables want this message."""
        found = []
        for entry in [entry for entry in self._callables if entry.admits(message)]:
            if await _ask(entry, message, threads) and entry in self._callables:
                found.append(entry)
        return found

    def unreadable(self, message: Message) -> bool:
        """Whether entries here look into bodies and this one cannot be looked into."""
        return len(self._patterns) > 0 and message.body is not None and message.document is UNDECODABLE


async def _ask(entry: Entry, message: Message, threads: anyio.CapacityLimiter) -> bool:
    accepts = entry.interest.accepts
    assert accepts is not None  # noqa: S101 - only entries with a callable are asked
    name = entry.interest.name
    try:
        with anyio.fail_after(CALLABLE_TIMEOUT):
            return bool(await anyio.to_thread.run_sync(accepts, message, abandon_on_cancel=True, limiter=threads))
    except TimeoutError:
        entry.subscription.tell(
            logging.ERROR,
            "event %s: its match callable took longer than %.0f s for %s; the message does not count for it",
            name,
            CALLABLE_TIMEOUT,
            message,
        )
    except Exception as error:
        entry.subscription.tell(
            logging.ERROR,
            "event %s: its match callable raised %s: %s for %s; the message does not count for it",
            name,
            type(error).__name__,
            error,
            message,
        )
    return False
