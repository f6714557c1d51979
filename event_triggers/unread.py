"""Batches of a log whose messages are made when somebody looks at them.

Most messages of a busy topic are for nobody. To make one costs more than to find that out, so a stream may yield what
it has read as it is, and the hub goes over the bodies alone (:meth:`event_triggers.fanout.Fanout.pass_over`). Whoever
takes such a batch for a sequence of messages gets messages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

from event_triggers.message import Message

__all__ = ["Unread"]


class Unread(Sequence[Message]):
    """A batch of a log, as its client has read it.

    :param bodies: the bodies of all messages.
    :param ends: where each partition's messages end; they stand together, in their order.
    """

    __slots__ = ("bodies", "ends")

    def __init__(self, bodies: Sequence[bytes | None], ends: Sequence[int]) -> None:
        self.bodies = bodies
        self.ends = ends

    @abstractmethod
    def message(self, place: int) -> Message:
        """Make the message at this place."""

    @abstractmethod
    def part(self, begin: int, end: int) -> Unread:
        """Some messages of one partition, as a batch that keeps nothing of the others alive."""

    def runs(self) -> Iterator[tuple[int, int]]:
        """Where each partition's messages begin and end."""
        begin = 0
        for end in self.ends:
            if end > begin:
                yield begin, end
            begin = end

    def __len__(self) -> int:
        return len(self.bodies)

    @overload
    def __getitem__(self, place: int) -> Message: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Message]: ...

    def __getitem__(self, place: int | slice) -> Message | Sequence[Message]:
        places = range(len(self.bodies))[place]
        return self.message(places) if isinstance(places, int) else [self.message(one) for one in places]
