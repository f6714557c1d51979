"""The messages of a marker that awaits several, in one order for all triggerers.

Flow: Airflow's API cannot change an XCom on condition, but to create one is atomic, and who comes second is told so.
So what arrives is *appended* first: stored under a key that names the marker's round and how many messages come before.
Who finds the place taken reads what is there, and appends behind it. Then the two XComs for people and tasks, the list
of payloads and the list of facts, are written anew from what is appended.

Invariants:

* What is appended is never changed, so two triggerers that run the same wait agree on the messages and their order, and
  none of what either has recorded is lost.
* The two lists hold a beginning of the series. Who writes them looks afterwards whether somebody has appended more, and
  if so writes them again; so when all are done, they hold the whole series, whoever wrote last.

After a restart the series is what the list of facts names, and what is appended behind it; that is listed with the next
recording.

On Airflow 3.1, where XComs are written through the supervisor, creating is not atomic: there two triggerers that write
within some 50 ms can still overwrite each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from event_triggers.ledger import Received, facts_of, held_by
from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY, series_key
from event_triggers.xcoms import MarkerKey, XComs

__all__ = ["Series"]

_UNKNOWN = 2**31


class Series:
    """What one marker holds, and more of it.

    :param round_: the marker's round.
    :param wanted: how many messages complete it; 0 when that is not known.
    """

    def __init__(self, xcoms: XComs, key: MarkerKey, *, round_: str, wanted: int) -> None:
        self._xcoms = xcoms
        self._key = key
        self._round = round_
        self._wanted = wanted
        self._listed = 0
        """Of how many we know that the lists hold them."""
        self._payloads: dict[str, Any] = {}
        """By id, the payloads of what is not listed yet."""
        self.exists = False
        """Whether the lists exist."""
        self.held: tuple[Received, ...] = ()
        """What is appended, as far as we have seen, without payloads."""

    async def open(self) -> Series:
        """Begin with what the list of facts names, and what is appended behind it.

        :raises AirflowApiError: when Airflow refuses, as with everything here.
        """
        facts = await self._xcoms.get(self._key, FACTS_KEY)
        self.exists = facts is not None
        self.held = held_by(facts, self._round)
        self._listed = len(self.held)
        wanted = facts.get("wanted", 1) if isinstance(facts, dict) else self._wanted
        # Somebody may have died between appending and listing; whoever reads on must know what there is.
        while wanted != 1 and len(self.held) < (wanted or _UNKNOWN):
            more = await self._at(len(self.held))
            if not more:
                break
            self._take_in(more)
        return self

    async def append(self, messages: Sequence[Received]) -> None:
        """Append these, all or none of them; if others were faster, take in what they have appended instead."""
        place = len(self.held)
        value = {"messages": [one.stored() for one in messages], "payloads": [one.payload for one in messages]}
        if await self._xcoms.create(self._key, self._name(place), value):
            self._take_in(messages)
        else:
            self._take_in(await self._at(place))

    def unlisted(self) -> Sequence[Received]:
        """What the lists do not hold yet, with its payloads."""
        return [replace(one, payload=self._payloads.get(one.id)) for one in self.held[self._listed :]]

    async def write_lists(self, stored: Sequence[Any] = ()) -> None:
        """Write both lists, as often as others append meanwhile.

        :param stored: payloads to list in place of those that are not listed yet.
        """
        for one, payload in zip(self.held[self._listed :], stored, strict=False):
            self._payloads[one.id] = payload
        while self._listed < len(self.held):
            held = self.held
            await self._write(PAYLOAD_KEY, await self._all_payloads(held))
            await self._write(FACTS_KEY, facts_of(held, self._wanted, self._round))
            self.exists, self._listed = True, len(held)
            self._payloads.clear()
            if len(held) < self._wanted:
                self._take_in(await self._at(len(held)))

    def _take_in(self, messages: Sequence[Received]) -> None:
        self._payloads.update({one.id: one.payload for one in messages})
        self.held += tuple(replace(one, payload=None, note="") for one in messages)

    async def _at(self, place: int) -> list[Received]:
        value = await self._xcoms.get(self._key, self._name(place))
        if value is None:
            return []
        facts = [Received.from_facts(one) for one in value["messages"]]
        return [replace(one, payload=payload) for one, payload in zip(facts, value["payloads"], strict=True)]

    def _name(self, place: int) -> str:
        return series_key(self._round, place)

    async def _all_payloads(self, held: Sequence[Received]) -> list[Any]:
        value = await self._xcoms.get(self._key, PAYLOAD_KEY) if self._listed else None
        # More than is listed may be there, of a recording that was cut off; or less, of somebody who lags behind.
        payloads = value[: self._listed] if isinstance(value, list) else []
        if any(one.id not in self._payloads for one in held[len(payloads) :]):
            for place in range(len(held)):
                self._payloads.update({one.id: one.payload for one in await self._at(place)})
        return payloads + [self._payloads.get(one.id) for one in held[len(payloads) :]]

    async def _write(self, name: str, value: Any) -> None:
        if self.exists or not await self._xcoms.create(self._key, name, value):
            await self._xcoms.replace(self._key, name, value)
