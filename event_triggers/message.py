"""Message: what every source hands over, whatever its broker.

A message is decoded at most once, when somebody first looks at its document, however many groups look.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from event_triggers.errors import MessageDecodeError

__all__ = ["UNDECODABLE", "UNSURE", "Message", "same_message"]


class _Undecodable:
    def __repr__(self) -> str:
        return "UNDECODABLE"


UNDECODABLE: Final = _Undecodable()
"""Stands for the document of a message whose body is not JSON."""

UNSURE: Final = ".(?)"
"""The end of an id of which only the beginning is known: see :func:`same_message`."""

_NOT_TRIED: Final = object()
_decode = msgspec.json.Decoder().decode


@dataclass(slots=True, eq=False)
class Message:
    """One message, as it came from a broker.

    :param source: the kind of source, for example ``"kafka"``.
    :param stream: the topic, queue or channel that it came from.
    :param position: where in the stream, readable by a person (``"2@98113"``, a message id, ...).
    :param id: stable across redeliveries and restarts: two deliveries of one message have one id, or ids that
        :func:`same_message` says are one.
    :param body: the raw bytes; ``None`` is a tombstone.
    :param key: the broker's message key, where it has one.
    :param headers: name and raw value, in the broker's order; a name may come twice.
    :param timestamp: the broker's or producer's time, aware; ``None`` where the broker has none.
    :param partition: in a replayable log, the part of it that is ordered within itself.
    :param offset: in a replayable log, the place within ``partition``; grows from message to message.
    :param receipt: whatever the source needs to settle it; nobody else looks inside.
    :param stored: the broker keeps it for whoever begins to listen (a retained MQTT message): it comes again
        though it was acknowledged, and is new to a group that has not had it.
    :param attempt: the how-manieth delivery of this message this is, from 1, as far as the broker tells.
    """

    source: str
    stream: str
    position: str
    id: str
    body: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: datetime | None = None
    partition: str = ""
    offset: Any = None
    receipt: Any = field(default=None, repr=False)
    attempt: int = 1
    stored: bool = False
    _document: Any = field(default=_NOT_TRIED, init=False, repr=False)

    @property
    def document(self) -> Any:
        """The decoded JSON body, or :data:`UNDECODABLE`. Decoded once; treat it as read-only."""
        document = self._document
        if document is _NOT_TRIED:
            # Here and not in a function of its own: each call counts where every message passes.
            try:
                document = UNDECODABLE if self.body is None else _decode(self.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                # RecursionError: msgspec refuses documents nested deeper than the interpreter's stack allows.
                document = UNDECODABLE
            self._document = document
        return document

    @property
    def json(self) -> Any:
        """The decoded JSON body; treat it as read-only.

        :raises MessageDecodeError: when the body is no JSON document.
        """
        document = self.document
        if document is UNDECODABLE:
            raise MessageDecodeError(f"message {self.position} of {self.source} {self.stream!r} is not JSON")
        return document

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are shown as ``\\xNN``."""
        return "" if self.body is None else self.body.decode("utf-8", errors="backslashreplace")

    @property
    def payload(self) -> Any:
        """The body as a JSON-compatible value, as it is stored for the DAG.

        The document when the body is JSON, else its text when it is UTF-8, else ``{"base64": "..."}``; ``None``
        for a tombstone.
        """
        if self.body is None:
            return None
        if self.document is not UNDECODABLE:
            return self.document
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(self.body).decode("ascii")}

    def __str__(self) -> str:
        return f"{self.source} {self.stream} {self.position}"


def same_message(one: str, other: str) -> bool:
    """Whether two ids name one message.

    They are equal, or one of them ends in :data:`UNSURE` and the other begins as it does: ``a.(?)`` is whichever of
    ``a`` and ``a.7`` there is. A source gives such an id where a broker delivers again what another process has seen
    first, and that process alone knows the rest.
    """
    return one == other or _may_be(one, other) or _may_be(other, one)


def _may_be(unsure: str, other: str) -> bool:
    beginning = unsure.removesuffix(UNSURE)
    return beginning != unsure and (other == beginning or other.startswith(f"{beginning}."))
