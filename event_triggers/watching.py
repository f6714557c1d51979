"""Which sources a channel's stream is asked to deliver.

Invariants:

* A source is asked for before any entry of it counts as live, and given up when it is not wanted any more. A queue that
  all groups share is wanted while somebody wants more from it, so that nothing piles up in its connection while nobody
  reads it. A log, and a group's own session at a broker (whose copies must come), while a group has it.
* A queue is asked once more for who comes later: a broker may have something stored for whoever begins to listen.

A new connection knows nothing of what the last one was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from event_triggers.entry import Entry
from event_triggers.sources.base import Source, Stream

__all__ = ["Watching"]


class Watching:
    """What the stream of one channel has been asked for.

    :param source: any of its sources.
    """

    def __init__(self, source: Source) -> None:
        self._is_queue = not source.replayable
        self._keeps = source.replayable or source.per_group
        self._watched: dict[Source, None] = {}
        self._listening: Counter[Source] = Counter()
        """How many entries each source has. Counted, since thousands come and go one by one."""

    def join(self, entries: Iterable[Entry]) -> None:
        """These entries listen from now on."""
        self._listening.update(entry.interest.source for entry in entries)

    def leave(self, entries: Iterable[Entry]) -> None:
        """The groups of these entries have left."""
        for entry in entries:
            source = entry.interest.source
            self._listening[source] -= 1
            if not self._listening[source]:
                del self._listening[source]

    def begin(self) -> None:
        """The connection is a new one."""
        self._watched.clear()

    async def serve(self, stream: Stream, entries: Callable[[], Iterable[Entry]], joining: Iterable[Entry]) -> None:
        """Ask for what is wanted and for nothing else.

        :param entries: gives those of all groups that listen.
        :param joining: the entries that have come since the last time.
        """
        sources = dict.fromkeys(
            self._listening if self._keeps else (one.interest.source for one in entries() if one.remaining > 0)
        )
        late = [entry for entry in joining if not entry.watched] if self._is_queue else []
        again = {entry.interest.source for entry in late if entry.remaining} & set(self._watched)
        for source in [source for source in sources if source not in self._watched or source in again]:
            await stream.watch(source)
            self._watched[source] = None
        for entry in late:
            entry.watched = True
        for source in [source for source in self._watched if source not in sources]:
            del self._watched[source]
            await stream.unwatch(source)
