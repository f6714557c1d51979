"""From what a caller has to what can be looked into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from event_triggers.message import UNDECODABLE, Message

__all__ = ["decoded"]

_decode = msgspec.json.Decoder().decode


def decoded(document: Mapping[str, Any] | bytes | str | Message) -> Any:
    """The document of JSON text, or ``UNDECODABLE``; anything else as it is."""
    if not isinstance(document, (bytes, str)):
        return document
    try:
        return _decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # RecursionError: msgspec refuses documents nested deeper than the interpreter's stack allows.
        return UNDECODABLE
