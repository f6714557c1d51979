"""Deliveries of AMQP made messages; and which message a delivery is: the broker itself gives them no identity.

A message with a ``message_id`` is known by that and its body. One without is known by its content; of several that are
alike, one that is delivered again is one that was given back or whose end the broker may not have heard of, or else one
that was recorded by another process.

What cannot be told apart, without ``message_id``: a message that is delivered again to a process that has not seen it,
and one alike that was recorded by another process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections import OrderedDict
from collections.abc import Collection, Hashable
from datetime import timezone
from typing import Any, Final

from event_triggers.message import Message

__all__ = ["Memory", "memory_of", "to_message"]

_PROPERTIES: Final = ("content_type", "content_encoding", "correlation_id", "reply_to", "type", "app_id", "message_id")
"""The properties that belong to a message's content."""
_MOST_REMEMBERED: Final = 10_000


class Memory:
    """What this process knows of the messages of one queue."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._states: OrderedDict[str, str] = OrderedDict()
        """Of the ids made of contents: ``out``, ``back``, ``ended`` now or ``over`` an earlier connection."""

    def begin(self) -> None:
        """The connection is a new one: what was out is back, and whether the broker has heard an end is unknown."""
        for identity, state in self._states.items():
            self._states[identity] = {"out": "back", "ended": "over"}.get(state, state)

    def identify(self, raw: Any, recorded: Collection[str]) -> tuple[str, int]:
        """The message's id, and the how-manieth delivery this is."""
        count = (raw.headers or {}).get("x-delivery-count")
        attempt = count + 1 if isinstance(count, int) else 1 + bool(raw.redelivered)
        if raw.message_id:
            identity = f"{raw.message_id}:{_digest(raw.body)}"
        else:
            identity = self._derive(raw, recorded)
            _keep(self._states, identity, "out")
        attempt = max(attempt, self._attempts.get(identity, 0) + 1)
        _keep(self._attempts, identity, attempt)
        return identity, attempt

    def _derive(self, raw: Any, recorded: Collection[str]) -> str:
        about = [raw.exchange, raw.routing_key, raw.timestamp, *(getattr(raw, name) for name in _PROPERTIES)]
        own = {name: value for name, value in (raw.headers or {}).items() if not str(name).startswith("x-")}
        digest = _digest(raw.body, repr(about).encode(), repr(sorted(own.items(), key=repr)).encode())
        if raw.redelivered:
            alike = [one for one in self._states if one.startswith(digest)]
            for wanted in ("back", "over"):
                for identity in alike:
                    if self._states[identity] == wanted:
                        return identity
            for identity in recorded:
                if identity.startswith(digest) and identity not in self._states:
                    return identity
        return f"{digest}.{self._nonce}-{next(self._numbers)}"

    def ended(self, identity: str) -> None:
        """It is acknowledged."""
        self._attempts.pop(identity, None)
        if identity in self._states:
            self._states[identity] = "ended"

    def returned(self, identity: str) -> None:
        """It is given back, and comes again."""
        if identity in self._states:
            self._states[identity] = "back"


_memories: OrderedDict[Hashable, Memory] = OrderedDict()


def memory_of(key: Hashable) -> Memory:
    """What this process knows of the queue with this key; of the least recently used ones nothing."""
    _keep(_memories, key, _memories.get(key) or Memory())
    return _memories[key]


def _keep(store: OrderedDict[Any, Any], key: Hashable, value: Any) -> None:
    """Store as the newest entry; the oldest ones go."""
    store[key] = value
    store.move_to_end(key)
    while len(store) > _MOST_REMEMBERED:
        store.popitem(last=False)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def to_message(raw: Any, queue: str, identity: str, attempt: int, receipt: Any) -> Message:
    """The message that a delivery is."""
    stamp = raw.timestamp
    return Message(
        source="amqp",
        stream=queue,
        position=str(raw.message_id or identity),
        id=identity,
        body=raw.body,
        key=_bytes(raw.routing_key or ""),
        headers=_headers(raw),
        timestamp=stamp if stamp is None or stamp.tzinfo else stamp.replace(tzinfo=timezone.utc),
        receipt=receipt,
        attempt=attempt,
    )


def _headers(raw: Any) -> tuple[tuple[str, bytes], ...]:
    """The properties under ``amqp.``, then the headers; what is no text as JSON."""
    known = {"exchange": raw.exchange, "routing-key": raw.routing_key}
    known |= {name.replace("_", "-"): getattr(raw, name) for name in _PROPERTIES}
    own = [(f"amqp.{name}", _bytes(value)) for name, value in known.items() if value not in (None, "")]
    return (*own, *((str(name), _bytes(value)) for name, value in (raw.headers or {}).items()))


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return (value if isinstance(value, str) else json.dumps(value, default=str)).encode("utf-8", "surrogatepass")
