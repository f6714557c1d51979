"""The wait of one group, from the first stream to the verdict. Knows the hub and the ledger, and nothing of Airflow.

Flow::

    ledger.load -> subscribe what is missing -> receive -> record -> accept (acknowledge) -> ... -> verdict
                                                   marks made by hand, the deadline  ------------^

Invariants:

* A message is accepted only after the ledger has it; what is not recorded when the wait ends goes back to its broker.
* The wait ends with exactly one verdict, after everything that was received is recorded, and before the brokers' sessions
  of a group that is over are removed.
* Nothing is remembered that the ledger does not hold, so a wait that starts again, here or on another triggerer, finds
  what was received and waits for the rest. Two that run at the same time do the same work twice, with the same effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any

import anyio

from event_triggers.channel import root_cause
from event_triggers.clock import Clock, parse_datetime
from event_triggers.errors import EventTriggersError
from event_triggers.event import Event, load_callable
from event_triggers.hub import Hub
from event_triggers.ledger import Arrival, Book, GroupRef, Ledger, Received, payload_of
from event_triggers.notes import note_of, shown
from event_triggers.subscription import Delivery, Interest, Subscription

__all__ = ["GroupWait", "Status", "Verdict"]

log = logging.getLogger(__name__)

_FINISH_RECORDING = 30.0
"""Seconds past the deadline that a recording under way may take to finish."""
_FINISH_SETTLING = 15.0
"""Seconds that the brokers' last acknowledgements may take before the verdict goes out."""


class Status(str, Enum):
    """How a wait ended."""

    COMPLETE = "complete"
    ARRIVALS = "arrivals"
    TIMEOUT = "timeout"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """How a wait ended, and what the sensor needs to know of it.

    :param received: of each event that has arrived, the facts (a list of them when it wants several messages);
        ``{"marked_by_hand": state}`` when a person marked it.
    :param missing: of each event that has not, how far it is: ``"orders"``, ``"shifts (1 of 3)"``.
    :param text: for ``failed`` and ``error``: what happened; for ``timeout``: why, when there is more to say.
    :param arrivals: with a handler of arrivals: of each event, how many messages it has received by now.
    """

    status: Status
    received: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    text: str = ""
    arrivals: Mapping[str, int] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nobody will wait for this group's messages again, unless a person starts it over."""
        return self.status in (Status.COMPLETE, Status.TIMEOUT, Status.FAILED)


@dataclass
class _Progress:
    """How far one event is."""

    event: Event
    received: tuple[Received, ...] = ()
    by_hand: str | None = None
    known: bool = True
    """Whether ``received`` is all that the ledger holds; after a restart it is read only when needed."""

    @property
    def done(self) -> bool:
        return self.by_hand is not None or not self.known or len(self.received) >= self.event.count

    def describe(self, name: str) -> str:
        return f"{name} ({len(self.received)} of {self.event.count})" if self.event.count > 1 else name


class GroupWait:
    """One wait.

    :param group: whose.
    :param events: the events, their templates rendered.
    :param markers: the task id of each event's marker.
    :param deadline: when the time is up.
    :param handled: with a handler of arrivals: how many messages of each event it has been given; ``None`` without one.
    :param payload_limit: payloads whose JSON is longer (in bytes) are kept as a reference.
    """

    def __init__(
        self,
        group: GroupRef,
        events: Mapping[str, Event],
        markers: Mapping[str, str],
        *,
        hub: Hub,
        ledger: Ledger,
        clock: Clock,
        deadline: datetime,
        handled: Mapping[str, int] | None = None,
        payload_limit: int = 48 * 1024,
    ) -> None:
        self._group = group
        self._markers = markers
        self._hub = hub
        self._ledger = ledger
        self._clock = clock
        self._deadline = deadline
        self._handled = handled
        self._payload_limit = payload_limit
        self._progress = {name: _Progress(event) for name, event in events.items()}
        self._book: Book | None = None
        self._recording: set[str] = set()
        self._recorded = asyncio.Event()
        self._expired = False
        self._verdict: asyncio.Future[Verdict] | None = None

    async def run(self) -> Verdict:
        """Wait, and say how it ended.

        :raises EventTriggersError: never for a broker or an API that is away; those are waited for.
        """
        self._verdict = asyncio.get_running_loop().create_future()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._expire, name="event_triggers: deadline")
                group.start_soon(self._work, name="event_triggers: wait")
                await asyncio.wait({self._verdict})
                group.cancel_scope.cancel()
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, EventTriggersError):
                return Verdict(Status.ERROR, text=f"{type(cause).__name__}: {cause}")
            raise
        verdict = self._verdict.result()
        if verdict.final:
            await self._hub.forget(self._group.identity, (one.event.source for one in self._progress.values()))
        return verdict

    def _decide(self, verdict: Verdict) -> None:
        assert self._verdict is not None  # noqa: S101 - set by run()
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    # ------------------------------------------------------------------ the parts that run side by side

    async def _expire(self) -> None:
        await self._clock.sleep((self._deadline - self._clock.now()).total_seconds())
        self._expired = True
        with anyio.move_on_after(_FINISH_RECORDING):
            while self._recording:
                self._recorded.clear()
                await self._recorded.wait()
        missing = [one.describe(name) for name, one in self._progress.items() if not one.done]
        trouble = self._book.trouble if self._book else "Airflow's API could not be reached"
        self._decide(Verdict(Status.TIMEOUT, missing=missing, text=trouble or "", arrivals=self._counts()))

    async def _work(self) -> None:
        async with self._ledger.open(self._group, self._markers, _tell) as book:
            self._book = book
            await self._read_back(book)
            if await self._over(book):
                return
            async with self._hub.subscribe(self._group.identity, self._interests()) as subscription:
                try:
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._follow_marks, book, subscription, name="event_triggers: marks")
                        await self._receive(book, subscription)
                        group.cancel_scope.cancel()
                finally:
                    verdict = self._verdict.result() if self._verdict and self._verdict.done() else None
                    subscription.over = verdict is not None and verdict.final

    async def _receive(self, book: Book, subscription: Subscription) -> None:
        log.info("waiting for %s until %s", ", ".join(self._missing()), self._deadline.isoformat(timespec="seconds"))
        while not self._expired:
            deliveries = await subscription.receive()
            if self._expired:
                return
            await self._record(book, deliveries)
            for delivery in deliveries:
                delivery.accept()
            if await self._over(book, subscription):
                return

    async def _follow_marks(self, book: Book, subscription: Subscription) -> None:
        while True:
            for name, state in (await book.marked()).items():
                if name in self._recording or self._progress[name].done:
                    continue
                self._marked_by_hand(name, state)
                subscription.drop(name)
            if await self._over(book, subscription):
                return

    # ------------------------------------------------------------------ what is there, and when it is over

    async def _read_back(self, book: Book) -> None:
        for name, state in (await book.load()).items():
            progress = self._progress[name]
            if state == "success":
                progress.known = False
            elif state in ("failed", "skipped"):
                self._marked_by_hand(name, state)
            elif progress.event.count > 1:
                progress.received = await book.received(name)

    def _marked_by_hand(self, name: str, state: str) -> None:
        self._progress[name].by_hand = state
        log.info("event %s: its marker was marked %s by hand; it is waited for no longer", name, state)

    async def _over(self, book: Book, subscription: Subscription | None = None) -> bool:
        """Decide if there is something to decide."""
        failed = [name for name, one in self._progress.items() if one.by_hand == "failed"]
        missing = self._missing()
        if failed:
            text = (
                f"the marker of {', '.join(failed)} was marked failed; clear it together with the sensor to wait again"
            )
            self._decide(Verdict(Status.FAILED, missing=missing, text=text))
        elif not missing or await self._unhandled(book):
            await self._look_up_unknown(book)
            if subscription is not None and not missing:
                with anyio.move_on_after(_FINISH_SETTLING):
                    await subscription.settled()
            status = Status.COMPLETE if not missing else Status.ARRIVALS
            self._decide(Verdict(status, received=self._received(), missing=missing, arrivals=self._counts()))
        else:
            return False
        return True

    async def _unhandled(self, book: Book) -> bool:
        """Whether there is something that the handler of arrivals has not been given yet."""
        if self._handled is None:
            return False
        for name, one in self._progress.items():
            if not one.known and not self._handled.get(name):
                await self._look_up(book, name)
        return any(count > self._handled.get(name, 0) for name, count in self._counts().items())

    async def _look_up_unknown(self, book: Book) -> None:
        for name, one in self._progress.items():
            if not one.known:
                await self._look_up(book, name)

    async def _look_up(self, book: Book, name: str) -> None:
        one = self._progress[name]
        one.received = await book.received(name, payloads=False)
        one.known = True
        if len(one.received) < one.event.count:
            one.by_hand = "success"

    def _missing(self) -> list[str]:
        return [one.describe(name) for name, one in self._progress.items() if not one.done]

    def _counts(self) -> dict[str, int]:
        return {name: len(one.received) for name, one in self._progress.items() if one.received}

    def _received(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, one in self._progress.items():
            facts = [received.facts() for received in one.received]
            if one.by_hand is not None:
                result[name] = {"marked_by_hand": one.by_hand, "messages": facts}
            elif facts:
                result[name] = facts if one.event.count > 1 else facts[-1]
        return result

    # ------------------------------------------------------------------ messages

    def _interests(self) -> list[Interest]:
        interests = []
        for name, one in self._progress.items():
            source, match = one.event.source, one.event.match
            count = 0 if one.done else one.event.count - len(one.received)
            if one.done and source.replayable:
                continue
            interests.append(
                Interest(
                    name,
                    source,
                    pattern=match if isinstance(match, Mapping) else None,
                    accepts=load_callable(match) if isinstance(match, str) else None,
                    count=count,
                    since=None if one.event.since is None else parse_datetime(one.event.since),
                    recorded=frozenset(received.id for received in one.received),
                )
            )
        return interests

    async def _record(self, book: Book, deliveries: Sequence[Delivery]) -> None:
        received_at = self._clock.now().isoformat(timespec="milliseconds")
        touched: dict[str, None] = {}
        for delivery in deliveries:
            for name in delivery.events:
                one = self._progress[name]
                if not one.done:
                    one.received += (self._receive_one(delivery, one, received_at),)
                    touched[name] = None
        self._recording.update(touched)
        try:
            await book.record([Arrival(n, self._progress[n].received, self._progress[n].event.count) for n in touched])
        finally:
            self._recording.difference_update(touched)
            self._recorded.set()
        for name in touched:
            self._say_arrived(name)

    def _receive_one(self, delivery: Delivery, one: _Progress, received_at: str) -> Received:
        message = delivery.message
        return Received(
            source=message.source,
            stream=message.stream,
            position=message.position,
            id=message.id,
            timestamp=message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else None,
            received_at=received_at,
            payload=payload_of(message, self._payload_limit),
            note=note_of(message, received_at, len(one.received) + 1, one.event.count),
        )

    def _say_arrived(self, name: str) -> None:
        one = self._progress[name]
        last = one.received[-1]
        if one.event.count == 1:
            one.received = (replace(last, payload=None),)  # the ledger has it; do not keep it for hours
        where = f"{last.source} {shown(last.stream)} {shown(last.position)}"
        missing = self._missing()
        log.info(
            "event %s: %s; %s", one.describe(name), where, f"missing: {', '.join(missing)}" if missing else "complete"
        )


def _tell(level: int, text: str) -> None:
    log.log(level, "%s", text)
