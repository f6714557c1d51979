"""Taking what the ledger holds into the progress of a wait: after a restart, and when markers change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio

from event_triggers.ledger import Arrival, Book
from event_triggers.progress import EventProgress, GroupProgress
from event_triggers.recording import Recorder
from event_triggers.text import plain_logger

__all__ = ["Reader"]

log = plain_logger(__name__)


class Reader:
    """Reads one group's part of the ledger.

    :param recorder: what it is recording goes before what was read meanwhile.
    """

    def __init__(self, progress: GroupProgress, book: Book, recorder: Recorder) -> None:
        self._progress = progress
        self._book = book
        self._recorder = recorder

    async def read_back(self, is_late: Callable[[str], bool], *, selective: bool) -> None:
        """Begin with what earlier tries have recorded.

        :param is_late: whether the own time of an event is up.
        :param selective: whether what was chosen binds what is chosen next.
        """
        unmarked = []
        for name, state in (await self._book.load()).items():
            one = self._progress[name]
            if state == "success":
                one.known = False
            elif state == "failed" and is_late(name):
                one.late = True
            elif state in ("failed", "skipped", "removed"):
                self.marked_by_hand(one, state)
            elif one.event.count > 1 or selective:
                one.received = await self._book.received(name)
                if one.done:  # the last try was ended between recording and marking
                    unmarked.append(Arrival(name, (), one.event.count))
        if unmarked:
            await self._book.record(unmarked)
        if not self._progress.complete:
            # A queue may deliver once more what was recorded but not acknowledged.
            await self.look_up_unknown(one for one in self._progress if selective or not one.event.source.replayable)

    async def look_up_unknown(self, events: Iterable[EventProgress]) -> None:
        """Read what the green markers of these events hold, as far as it is not known."""
        unknown = [one for one in events if not one.known]
        async with anyio.create_task_group() as group:
            for one in unknown:
                group.start_soon(self.look_up, one, name=f"event_triggers: look up {one.name}")

    async def look_up(self, one: EventProgress) -> None:
        """Read what a green marker holds; when it holds too little, a person has marked it."""
        received = await self._book.received(one.name)
        if one.recording:
            while one.recording:
                await self._recorder.next_recorded()
            received = one.received
        one.received, one.known = received, True
        if not one.done:
            self.marked_by_hand(one, "success")

    def marked_by_hand(self, one: EventProgress, state: str) -> None:
        """A person has decided this event."""
        one.by_hand = state
        how = "is no longer in the DAG" if state == "removed" else f"was marked {state} by hand"
        log.info("event %s: its marker %s; it is waited for no longer", one.name, how)
