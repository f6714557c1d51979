"""How far the live stream of a log has been dispatched.

Moving an offset costs as much as finding who wants a message, so it is not done for each of them, but before anything
is awaited: nobody else can look earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Stream

__all__ = ["Place"]


class Place:
    """The place of one channel in its log; a queue has none."""

    __slots__ = ("_passed", "offsets")

    def __init__(self) -> None:
        self.offsets: dict[str, Any] | None = None
        """The next offset of each partition; ``None`` until the first stream has said where it begins."""
        self._passed: dict[str, Message] = {}

    @property
    def start(self) -> dict[str, Any] | None:
        """Where the next stream begins."""
        return None if self.offsets is None else dict(self.offsets)

    def meet(self, batch: Iterable[Message]) -> None:
        """A stream is past the beginning of a new partition before anything of it is dispatched."""
        if self.offsets is not None:
            for message in batch:
                self.offsets.setdefault(message.partition, message.offset)

    def passed(self, message: Message) -> None:
        """This one was dispatched; call :meth:`move` before anything is awaited."""
        self._passed[message.partition] = message

    def move(self, stream: Stream) -> None:
        """Move behind all that was dispatched."""
        if self.offsets is not None and isinstance(stream, LogStream):
            for partition, message in self._passed.items():
                self.offsets[partition] = stream.after(message)
        self._passed.clear()

    def take_over(self, stream: Stream) -> None:
        """Everything that the stream has yielded was dispatched."""
        if self.offsets is not None and isinstance(stream, LogStream):
            self.offsets = dict(stream.position())
