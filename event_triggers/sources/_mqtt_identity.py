"""Which MQTT message is which: ids for messages that have none.

MQTT numbers a message only while it is on its way to one session (the packet identifier, 16 bits, used again and
again), and marks what it sends again after a broken connection (DUP). From that, an id must be made that is the same
for every delivery of one message, in this process and in the next, and another for every other message, also for one
with the same content.

Flow: ``identify`` says for each PUBLISH which message it is; ``settle`` says which packets acknowledge it.

* *In one process* this memory decides: a packet identifier that was not acknowledged is the same message; one that was,
  and is not marked DUP, is a new one.
* *Across processes* the id is derived: from the session, the packet identifier, the content, and (MQTT 5) the
  subscription identifier. The broker keeps the latter with the message, and every process subscribes under an
  identifier of its own (its *epoch*), so identical messages before and after a restart differ, whatever packet
  identifiers the broker hands out. A message that waited at the broker while nobody was connected is new by the
  broker's own word, and gets our epoch behind its id (``<derived>.<epoch>``). When it comes again to another process,
  marked DUP, that epoch cannot be known; then it is the message whose recorded id is derived in the same way. If none
  is known to be recorded, the process that saw it first may still be about to, should it live on beside us: so its id
  says that its end is not known (``<derived>.(?)``), and whoever records second finds that both are one.
* *A retained message* is known by its topic and content alone: it is stored once and sent at every subscription. If its
  content is the newest that was seen live on its topic, it is that message.
* *Copies*: a broker may send a message once per matching filter. Copies come under different subscription identifiers.
* *At QoS 0* nothing is ever sent again, so every message is new.

What cannot be told apart: a message that was in flight when its process died, or lost its session to another one, and
an identical earlier or later one that had its packet identifier, under the same epoch; with MQTT 3.1.1, byte-identical
messages on one topic around a restart of the triggerer, where the broker begins its packet identifiers anew with each
connection; and with MQTT 3.1.1, copies by overlapping filters.

Invariant: a message whose first delivery in this process is not marked DUP has an id that this process has not given
before. A restart begins with an empty memory and derives the same ids.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

from event_triggers.message import UNSURE

__all__ = ["Delivery", "Incoming", "LiveTopics", "SessionMemory", "SubscriptionIds", "Verdict"]

_SPAN = 1024
"""How many subscription identifiers belong to one epoch."""
_MOST_EPOCH = 268_435_455 // _SPAN - 1
_MOST_KEPT = 4096
_MOST_ACKNOWLEDGED = 1024
_COPIES_WITHIN = 5.0
"""Seconds within which the copies of one message come."""
_MOST_ALIKE = 64

_K = TypeVar("_K")
_V = TypeVar("_V")


class Verdict(Enum):
    """What to do with a message that arrived."""

    HAND_OVER = "hand over"
    """It is new, or was not settled when it came before."""
    ACKNOWLEDGE = "acknowledge"
    """It was settled before; only the broker does not know yet."""
    HELD = "held"
    """A copy of one that was handed over and is settled with it."""


class Incoming(NamedTuple):
    """What the wire said of one message.

    :param subscriptions: the subscription identifiers that it came under (MQTT 5).
    :param extras: the properties that belong to its content.
    """

    topic: str
    body: bytes
    mid: int = 0
    qos: int = 0
    dup: bool = False
    retain: bool = False
    subscriptions: tuple[int, ...] = ()
    extras: tuple[tuple[str, bytes], ...] = ()

    def digest(self) -> bytes:
        """What its content comes down to."""
        return _hash(self.topic.encode("utf-8", "surrogatepass"), self.body, *itertools.chain(*_encoded(self.extras)))


@dataclass(slots=True)
class Delivery:
    """One packet identifier's latest message.

    :param connection: the number of the connection it last came over.
    :param settled: it is to be acknowledged, whenever that is possible.
    :param acknowledged: the acknowledgement is sent.
    :param attempt: how often it was delivered, as far as is known.
    """

    id: str
    mid: int
    qos: int
    digest: bytes
    subscriptions: tuple[int, ...]
    connection: int
    attempt: int = 1
    settled: bool = False
    acknowledged: bool = False


@dataclass(slots=True)
class _Copies:
    id: str
    first_seen: float
    subscriptions: set[int]


class LiveTopics:
    """The newest message that came live on each topic."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def saw(self, topic: str, digest: bytes, identity: str) -> None:
        """This came live."""
        _keep(self._newest, topic, (digest, identity), _MOST_KEPT)

    def find(self, topic: str, digest: bytes) -> str | None:
        """The id of the newest live message of the topic, if this is its content."""
        newest = self._newest.get(topic)
        return newest[1] if newest is not None and newest[0] == digest else None


class SubscriptionIds:
    """The subscription identifiers of one process and session: one range, so that it is known again."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin a new epoch."""
        self._epoch = 1 + secrets.randbelow(_MOST_EPOCH)

    def number(self, index: int) -> int | None:
        """The identifier of the ``index``-th filter, or ``None`` when there are none left."""
        return self._epoch * _SPAN + index if index < _SPAN else None

    def own(self, subscriptions: Iterable[int]) -> bool:
        """Whether one of these is of this epoch."""
        return any(number // _SPAN == self._epoch for number in subscriptions)

    @property
    def salt(self) -> str:
        """The epoch, as a part of ids."""
        return str(self._epoch)


@dataclass
class SessionMemory:
    """What this process knows of one session, or of one connection that has none.

    :param name: what names the session at its broker; part of every id.
    :param opened: whether a connection of this process has used the session before.
    :param filters: the filters that the broker has for the session, with their QoS, as far as this process has set
        them.
    """

    name: str
    live: LiveTopics = field(default_factory=LiveTopics)
    ids: SubscriptionIds = field(default_factory=SubscriptionIds)
    opened: bool = False
    filters: dict[str, int] = field(default_factory=dict)
    connection: int = 0
    reuses_packet_ids: bool = False
    _deliveries: dict[int, Delivery] = field(default_factory=dict)
    _acknowledged: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _by_id: dict[str, set[int]] = field(default_factory=dict)
    _given: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _copies: OrderedDict[bytes, list[_Copies]] = field(default_factory=OrderedDict)
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    _passing: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def begin(self, *, resumed: bool) -> int:
        """A connection is made; its number. Unless the session is resumed, what was unacknowledged is forgotten."""
        self.connection += 1
        self.opened = True
        if not resumed:
            self.filters.clear()
            self._deliveries.clear()
            self._acknowledged.clear()
            self._by_id.clear()
            self.ids.renew()
        self.filters_changed()
        return self.connection

    def filters_changed(self) -> None:
        """Which filter a message comes under may change now, so a look-alike is no copy any more."""
        self._copies.clear()

    def passing(self, incoming: Incoming, *, overlap: bool, now: float) -> str | None:
        """The id of a message at QoS 0; ``None`` for a copy of one that had its id before."""
        digest = incoming.digest()
        if incoming.retain:
            return self._retained(incoming, digest)
        if overlap and self._copy_of(incoming, digest, now) is not None:
            return None
        identity = f"{self._nonce}-{next(self._passing)}"
        self.live.saw(incoming.topic, digest, identity)
        if overlap:
            self._may_have_copies(incoming, digest, identity, now)
        return identity

    def identify(
        self, incoming: Incoming, *, overlap: bool, now: float, recorded: Collection[str] = ()
    ) -> tuple[Delivery, Verdict]:
        """Which message this is, at QoS 1 or 2, and what to do with it.

        :param overlap: whether more than one of our filters take its topic.
        :param now: seconds of a monotonic clock.
        :param recorded: the ids of messages that are recorded.
        """
        digest = incoming.digest()
        known = self._deliveries.get(incoming.mid)
        if known is not None and self._same(known, incoming, digest):
            known.connection, known.acknowledged = self.connection, False
            known.attempt += 1
            self._acknowledged.pop(incoming.mid, None)
            return known, Verdict.ACKNOWLEDGE if known.settled else Verdict.HAND_OVER
        self.reuses_packet_ids |= known is not None and known.acknowledged
        copied = self._copy_of(incoming, digest, now) if overlap and not incoming.retain else None
        if copied is not None:
            others = [self._deliveries[mid] for mid in self._by_id.get(copied, ())]
            verdict = Verdict.ACKNOWLEDGE if any(other.settled for other in others) else Verdict.HELD
            return self._store(copied, incoming, digest), verdict if others else Verdict.ACKNOWLEDGE
        identity = self._retained(incoming, digest) if incoming.retain else self._derive(incoming, digest, recorded)
        if not incoming.retain:
            self.live.saw(incoming.topic, digest, identity)
            if overlap:
                self._may_have_copies(incoming, digest, identity, now)
        return self._store(identity, incoming, digest), Verdict.HAND_OVER

    def _same(self, known: Delivery, incoming: Incoming, digest: bytes) -> bool:
        # Without DUP too: a packet identifier is not free before its message is acknowledged.
        # Under another subscription it is another message, of a time in which another process had the session.
        if known.digest != digest or known.subscriptions != incoming.subscriptions:
            return False
        return incoming.dup or (not known.acknowledged and known.connection != self.connection)

    def _store(self, identity: str, incoming: Incoming, digest: bytes) -> Delivery:
        attempt = 2 if incoming.dup else 1
        delivery = Delivery(
            identity, incoming.mid, incoming.qos, digest, incoming.subscriptions, self.connection, attempt
        )
        self._drop(incoming.mid)
        self._deliveries[incoming.mid] = delivery
        self._by_id.setdefault(identity, set()).add(incoming.mid)
        return delivery

    def _drop(self, mid: int) -> None:
        delivery = self._deliveries.pop(mid, None)
        self._acknowledged.pop(mid, None)
        if delivery is not None:
            mids = self._by_id.get(delivery.id, set())
            mids.discard(mid)
            if not mids:
                self._by_id.pop(delivery.id, None)

    def settle(self, identity: str, connection: int) -> list[Delivery]:
        """The message is done with: what is to be acknowledged now, over this connection.

        What came over an older connection is acknowledged when the broker sends it again.
        """
        due = []
        for mid in self._by_id.get(identity, ()):
            delivery = self._deliveries[mid]
            delivery.settled = True
            if delivery.connection == connection and not delivery.acknowledged:
                due.append(delivery)
        return due

    def acknowledged(self, delivery: Delivery) -> None:
        """The acknowledgement is sent. It is remembered for a while, in case it does not arrive."""
        delivery.settled = delivery.acknowledged = True
        self._acknowledged[delivery.mid] = None
        self._acknowledged.move_to_end(delivery.mid)
        while len(self._acknowledged) > _MOST_ACKNOWLEDGED:
            self._drop(next(iter(self._acknowledged)))

    def _retained(self, incoming: Incoming, digest: bytes) -> str:
        return self.live.find(incoming.topic, digest) or _hash(b"retained", digest).hex()

    def _derive(self, incoming: Incoming, digest: bytes, recorded: Collection[str]) -> str:
        numbers = ",".join(map(str, sorted(incoming.subscriptions))).encode()
        identity = _hash(self.name.encode(), str(incoming.mid).encode(), digest, numbers).hex()
        if incoming.dup:
            known = self._recorded_as(identity, recorded)
            if known is not None:
                return known
            if numbers:
                given = self._give(identity + UNSURE)
                return f"{identity}.{given}{UNSURE}" if given else identity + UNSURE
        elif numbers and not self.ids.own(incoming.subscriptions):
            identity = f"{identity}.{self.ids.salt}"
        given = self._give(identity)
        return f"{identity}.{given}" if given else identity

    def _give(self, identity: str) -> int:
        """How often this process has given this id before."""
        given = self._given.get(identity, 0)
        _keep(self._given, identity, given + 1, _MOST_KEPT)
        return given

    def _recorded_as(self, derived: str, recorded: Collection[str]) -> str | None:
        """The recorded id of a message that comes again, of which another process may have seen the first delivery."""
        alike = [one for one in recorded if one == derived or one.startswith(f"{derived}.")]
        # What this process has given, it would know by its packet identifier.
        others = [one for one in alike if one not in self._given]
        # One with an epoch is the later one: the broker reuses an identifier only when the earlier was acknowledged.
        return max(others, key=len, default=None)

    def _may_have_copies(self, incoming: Incoming, digest: bytes, identity: str, now: float) -> None:
        if incoming.subscriptions:
            alike = [copies for copies in self._copies.get(digest, ()) if now - copies.first_seen <= _COPIES_WITHIN]
            alike = [*alike[-_MOST_ALIKE:], _Copies(identity, now, set(incoming.subscriptions))]
            _keep(self._copies, digest, alike, _MOST_KEPT)

    def _copy_of(self, incoming: Incoming, digest: bytes, now: float) -> str | None:
        numbers = set(incoming.subscriptions)
        for copies in self._copies.get(digest, ()) if numbers else ():
            if now - copies.first_seen <= _COPIES_WITHIN and copies.subscriptions.isdisjoint(numbers):
                copies.subscriptions |= numbers
                return copies.id
        return None


def _encoded(extras: Iterable[tuple[str, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    return ((name.encode("utf-8", "surrogatepass"), value) for name, value in extras)


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _keep(store: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Store as the newest entry; the oldest ones go."""
    store[key] = value
    store.move_to_end(key)
    while len(store) > most:
        store.popitem(last=False)
