"""Writing markers through the marking route, and through the public API what the route does not take.

Flow of one recording: one mark with all that has arrived for the event. The route merges it with what the marker holds,
in a transaction, and answers what it holds then (:mod:`event_triggers.server.settling`).

Invariants:

* Both ways write the same XComs, and each reads what the other has written, so a wait can change from one to the other
  at any time. What was recorded one way, and whose answer was lost, counts once when it comes again the other way.
* What the route refuses for a reason of its own (it is gone, a right is missing, the request is too large) goes the
  public way, which says what is missing and waits for it.
* A state in which a person has put a marker stays, and the group is told of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from event_triggers.airflow_desk import Desk
from event_triggers.airflow_public import PublicWriter
from event_triggers.errors import AirflowApiError
from event_triggers.fitting import Fitting
from event_triggers.ledger import Arrival, Received
from event_triggers.marking import Mark as PublicMark
from event_triggers.marking_route import RouteRefused
from event_triggers.marks import Answer, Mark, SentMessage
from event_triggers.patience import Patience
from event_triggers.xcoms import MarkerKey

__all__ = ["RoutedWriter"]

_NOT_FOUND = 404


class RoutedWriter:
    """Writes the markers of one group.

    :param public: the other way.
    :param found: is told of an event whose marker was found in a state that somebody else has decided on.
    """

    __slots__ = ("_desk", "_found", "_held", "_patience", "_public")

    def __init__(
        self,
        desk: Desk,
        public: PublicWriter,
        patience: Patience,
        found: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._desk = desk
        self._public = public
        self._patience = patience
        self._found = found
        self._held: dict[str, tuple[Received, ...]] = {}
        """Of each event, what its marker holds as far as we know."""

    def holds(self, event: str, held: tuple[Received, ...]) -> None:
        """The marker of this event was seen to hold this."""
        self._held[event] = held

    async def record(self, key: MarkerKey, arrival: Arrival) -> tuple[Received, ...]:
        """Record what has arrived; gives what the marker holds then."""
        try:
            now = await self._record(key, arrival)
            self._public.begun(arrival.event)
        except RouteRefused as refusal:
            self._say(refusal)
            now = await self._public.record(key, arrival)
        self.holds(arrival.event, now)
        return now

    async def mark(self, event: str | None, mark: PublicMark, *, anyway: bool = False) -> None:
        """Bring a task instance into a state; ``anyway`` whatever a person has made of it."""
        key = mark.key
        asked = Mark(key.task_id, key.map_index, state=mark.state, note=mark.note, anyway=anyway)
        try:
            answer = await self._patience.call(lambda: self._ask(key, asked))
        except RouteRefused as refusal:
            self._say(refusal)
            await self._public.mark(mark)
            return
        if event is not None and answer.state is not None and answer.state != mark.state:
            self._found({event: answer.state})

    # ------------------------------------------------------------------ asking

    async def _record(self, key: MarkerKey, arrival: Arrival) -> tuple[Received, ...]:
        event = arrival.event
        messages = list(arrival.messages)
        fittings: dict[int, Fitting] = {}
        while True:
            held = self._held.get(event, ())
            mark = _mark_of(key, arrival.wanted, messages, held)
            answer = await self._patience.call(partial(self._ask, key, mark))
            if answer.payload is None:
                break
            number = answer.payload
            fitting = fittings.setdefault(number, Fitting(event, arrival.messages[number], self._patience))
            try:
                messages[number] = fitting.next(_error(answer, key))
            except AirflowApiError as error:
                raise RouteRefused(str(error)) from error
        now = held[: answer.first] + tuple(
            arrival.messages[one] if isinstance(one, int) else Received.from_facts(one) for one in answer.held
        )
        if answer.state is not None and answer.state != "success":
            self._found({event: answer.state} if answer.state in ("failed", "skipped", "removed") else {})
        return tuple(replace(one, payload=None, note="") for one in now)

    async def _ask(self, key: MarkerKey, mark: Mark) -> Answer:
        if not await self._desk.route.find():
            raise RouteRefused(self._desk.route.why_not)
        answer = await self._desk.route.mark(key, mark)
        if answer.status == _NOT_FOUND:
            raise _error(answer, key)
        if answer.status != 200 and answer.payload is None:
            raise RouteRefused(str(_error(answer, key)))
        return answer

    def _say(self, refusal: RouteRefused) -> None:
        if self._desk.route.there:
            text = f"the marking route does not take everything ({refusal}); the public REST API is used for the rest"
            self._patience.say(text, level=logging.WARNING)


def _mark_of(key: MarkerKey, wanted: int, messages: list[Received], held: tuple[Received, ...]) -> Mark:
    return Mark(
        key.task_id,
        key.map_index,
        wanted=wanted,
        messages=[SentMessage(one.stored(), one.payload, one.note) for one in messages],
        known=len(held),
        last=held[-1].id if held else None,
    )


def _error(answer: Answer, key: MarkerKey) -> AirflowApiError:
    where = f"{key.task_id!r} in {key.dag_id}/{key.run_id}"
    text = f"Airflow's marking route answered {answer.status} for {where}: {answer.detail}"
    return AirflowApiError(text, status=answer.status)
