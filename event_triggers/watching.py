"""Which sources a channel's stream is asked to deliver.

Invariants:

* A source is asked for before any entry of it counts as live, and given up when no group has it any more.
* A queue is asked once more for who comes later: a broker may have something stored for whoever begins to listen.

A new connection knows nothing of what the last one was asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from event_triggers.sources.base import Source, Stream
from event_triggers.subscription import Entry

__all__ = ["Watching"]


class Watching:
    """What the stream of one channel has been asked for.

    :param is_queue: whether it is a queue's.
    """

    def __init__(self, *, is_queue: bool) -> None:
        self._is_queue = is_queue
        self._watched: dict[Source, None] = {}

    def begin(self) -> None:
        """The connection is a new one."""
        self._watched.clear()

    async def serve(self, stream: Stream, wanted: Iterable[Source], joining: Iterable[Entry]) -> None:
        """Ask for what is wanted and for nothing else.

        :param joining: the entries that have come since the last time.
        """
        sources = dict.fromkeys(wanted)
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
