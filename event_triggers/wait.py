"""The wait of one group, from the first stream to the verdict. Knows the hub and the ledger, and nothing of Airflow.

Flow::

    ledger.load -> subscribe what is missing -> receive -> record -> accept (acknowledge) -> ... -> conclude -> verdict
                                       marks made by hand, the deadline, events' own times  ----------^

What is recorded of what is received is :mod:`event_triggers.recording`'s part, and :mod:`event_triggers.choosing`'s
where messages count only together with others.

Invariants:

* A message is accepted only when the ledger holds it; whatever else was received goes back to its broker.
* The wait ends with exactly one verdict, after everything that was received is recorded, and before the brokers'
  sessions of a group that is over are removed. When Airflow does not take what came before the deadline, those sessions
  stay.
* Nothing is remembered that the ledger does not hold, so a wait that starts again, here or on another triggerer, finds
  what was received and waits for the rest. Two that run at the same time do the same work twice, with the same effect.
* When the condition holds before all events have come, the group's join is marked before anything is skipped, and the
  markers before the verdict: what follows the group is never skipped with them. A restart in between finds the
  condition holding, and does the same again.
* A wait whose try was interrupted ends only when the queues hold nothing any more that is recorded, or can be expected
  to; its markers are green meanwhile. So no message is left behind, however often it is interrupted.
* The deadline does not hide what came in time: a wait that only starts after it (its triggerer was away) still reads
  what the ledger and the logs hold up to then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import anyio

from event_triggers.agenda import Agenda
from event_triggers.choosing import Chooser
from event_triggers.clock import Clock, move_on_after
from event_triggers.connecting import root_cause
from event_triggers.errors import EventTriggersError
from event_triggers.event import Event
from event_triggers.flag import Flag
from event_triggers.hub import Hub
from event_triggers.ledger import Book, GroupRef, Ledger
from event_triggers.message import Message
from event_triggers.near_misses import tell_all, tell_now_and_then
from event_triggers.progress import EventProgress, GroupProgress
from event_triggers.reading import Reader
from event_triggers.recording import Recorder
from event_triggers.subscription import Subscription
from event_triggers.terms import Terms, Timeline
from event_triggers.text import plain_logger
from event_triggers.verdict import Status, Verdict

__all__ = ["FINISH_RECORDING", "FINISH_SETTLING", "JOIN_AGAIN", "GroupWait"]

log = plain_logger(__name__)

FINISH_RECORDING = 30.0
"""Seconds past the deadline that reading and recording what came in time may take."""
FINISH_SETTLING = 15.0
"""Seconds that the brokers' last acknowledgements may take before the verdict goes out."""
JOIN_AGAIN = (1.0, 2.0, 4.0, 8.0)
"""Seconds after which the join behind a failed marker is marked once more, each after the one before."""


class GroupWait:
    """One wait.

    :param group: whose.
    :param events: the events, their templates rendered.
    :param markers: the task id of each event's marker.
    :param timeline: when the time is up.
    :param terms: what completes the group.
    :param handled: with a handler of arrivals: how many messages of each event it has been given; ``None`` without one.
    :param payload_limit: payloads whose JSON is longer (in bytes) are kept as a reference.
    :raises InvalidEventError: when the terms do not fit the events.
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
        timeline: Timeline,
        terms: Terms | None = None,
        handled: Mapping[str, int] | None = None,
        payload_limit: int = 48 * 1024,
    ) -> None:
        self._group = group
        self._markers = markers
        self._hub = hub
        self._ledger = ledger
        self._clock = clock
        self._timeline = timeline
        self._terms = terms or Terms()
        self._handled = handled
        self._payload_limit = payload_limit
        self._progress = GroupProgress(events, self._terms.condition)
        self._book: Book | None = None
        self._subscription: Subscription | None = None
        self._recorder: Recorder | None = None
        self._caught_up = Flag()
        self._concluded = Flag()
        self._looking = asyncio.Lock()
        """Whoever holds it sees to the end of the wait; two must not, one would end it before the other is done."""
        self._keep_sessions = False
        self._verdict: Verdict | None = None
        self._decided = Flag()
        self._agenda = Agenda(clock)
        self._scope: anyio.CancelScope | None = None
        """Of all that runs for the wait, while it does."""

    async def run(self) -> Verdict:
        """Wait, and say how it ended. A broker or an API that is away is waited for."""
        try:
            async with anyio.create_task_group() as group:
                self._agenda.note(self._timeline.deadline, "deadline", self._expire)
                if self._timeline.warn_at is not None:
                    self._agenda.note(self._timeline.warn_at, "warning", self._warn)
                self._scope = group.cancel_scope
                with self._agenda.kept_in(group):
                    await self._work()
                group.cancel_scope.cancel()
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, EventTriggersError):
                return Verdict(Status.ERROR, text=f"{type(cause).__name__}: {cause}")
            raise
        if self._over_for_good():
            await self._hub.forget(self._group.identity, (one.event.source for one in self._progress))
        assert self._verdict is not None  # noqa: S101 - decided above
        return self._verdict

    def _decide(self, status: Status, text: str = "") -> None:
        if self._verdict is None:
            progress = self._progress
            self._verdict = Verdict(status, progress.outcomes(), progress.missing(), text, progress.counts())
            self._keep_sessions = progress.recording
            self._decided.set()
            self._agenda.close()
            if self._scope is not None:
                self._scope.cancel()

    def _over_for_good(self) -> bool:
        """Whether what the brokers keep for this group can go."""
        return self._verdict is not None and self._verdict.final and not self._keep_sessions

    # ------------------------------------------------------------------ when the time is up

    async def _expire(self) -> None:
        await self._finish_recording()
        why = "" if self._progress.complete else await self._why_missing()
        if not self._progress.complete:
            self._decide(Status.TIMEOUT, why)
            return
        if self._terms.join is not None or self._progress.open():
            # An open marker behind a sensor that is through would run, and be green: those are skipped first.
            await self._concluded.wait()
        # The last one came in time, and the verdict only waits for the brokers to be told.
        async with move_on_after(self._clock, FINISH_SETTLING):
            await self._decided.wait()
        self._decide(Status.COMPLETE)

    async def _why_missing(self) -> str:
        """What there is to say of a wait whose time is up: what is wrong with Airflow's API, and what came nearest."""
        trouble = self._book.trouble if self._book else self._ledger.trouble
        misses = await tell_all(self._subscription) if self._subscription is not None else []
        return "; ".join([*([trouble] if trouble else []), *misses])

    async def _finish_recording(self) -> None:
        """Wait, in bounded time, until everything that came until now is recorded."""
        async with move_on_after(self._clock, FINISH_RECORDING):
            await self._caught_up.wait()
            while self._taking_in():
                await self._next_recorded()

    def _taking_in(self) -> bool:
        busy = self._recorder is not None and self._recorder.busy
        return busy or self._progress.recording or bool(self._subscription and self._subscription.waiting)

    async def _expire_event(self, name: str, book: Book, reader: Reader, subscription: Subscription) -> None:
        """Fail the marker of an event whose own time is up."""
        one, moment = self._progress[name], self._timeline.events[name]
        await self._finish_recording()
        while one.recording:
            await self._next_recorded()
        if one.done:
            return
        await self._drop(one, subscription, late=True)
        until = moment.isoformat(timespec="seconds")
        log.error("event %s has not come by %s, its own time is up", name, until)
        await book.end(name, "failed", f"has not come by {until}")
        await self._over(book, reader, subscription)

    async def _warn(self) -> None:
        while self._progress.recording:
            await self._next_recorded()
        if not self._progress.complete:
            self._decide(Status.WARNING)

    def _is_late(self, event: str) -> bool:
        due = self._timeline.events.get(event)
        return due is not None and due <= self._clock.now()

    def _too_late(self, event: str, message: Message) -> bool:
        """Whether it is stamped after the event's time, or the group's, was up. Until then clocks may differ."""
        due = self._timeline.events.get(event, self._timeline.deadline)
        return message.timestamp is not None and message.timestamp > due and self._clock.now() >= due

    # ------------------------------------------------------------------ the parts that run side by side

    async def _work(self) -> None:
        async with self._ledger.open(self._group, self._markers, _tell) as book:
            self._book = book
            self._recorder = self._make_recorder(book)
            reader = Reader(self._progress, book, self._recorder)
            await reader.read_back(self._is_late, selective=self._terms.selective)
            if self._progress.complete:
                await reader.look_up_unknown(self._progress)
            if not self._may_owe() and await self._over(book, reader):
                return
            await self._recorder.restore()
            async with self._hub.subscribe(self._group.identity, self._recorder.interests()) as subscription:
                self._subscription = subscription
                try:
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._follow_marks, book, reader, subscription, name="event_triggers: marks")
                        group.start_soon(self._catch_up, subscription, name="event_triggers: catch up")
                        for event, moment in self._timeline.events.items():
                            expire = partial(self._expire_event, event, book, reader, subscription)
                            self._agenda.note(moment, f"time of {event}", expire)
                        await self._receive(book, reader, subscription)
                        group.cancel_scope.cancel()
                finally:
                    subscription.over = self._over_for_good()

    def _make_recorder(self, book: Book) -> Recorder:
        kind: Callable[..., Recorder] = partial(Chooser, self._terms) if self._terms.selective else Recorder
        return kind(
            progress=self._progress,
            book=book,
            clock=self._clock,
            too_late=self._too_late,
            payload_limit=self._payload_limit,
            timezone=self._terms.timezone,
        )

    def _may_owe(self) -> bool:
        """Whether a queue may deliver again what is recorded, as nobody knows that it was acknowledged."""
        return any(one.received and one.event.source.redelivery > 0 for one in self._progress)

    async def _repaid(self, subscription: Subscription) -> None:
        """Wait, in bounded time, until the queues hold nothing that is recorded. At once, if nothing interrupted us."""
        longest = max((one.event.source.redelivery for one in self._progress if one.received), default=0.0)
        async with move_on_after(self._clock, 2 * longest):
            await subscription.repaid()

    async def _catch_up(self, subscription: Subscription) -> None:
        await subscription.live()
        self._caught_up.set()
        log.info("every source is connected, and nothing that is sent from now on is missed")
        tell_now_and_then(subscription, self._agenda)

    async def _receive(self, book: Book, reader: Reader, subscription: Subscription) -> None:
        assert self._recorder is not None  # noqa: S101 - made with the book
        until = self._timeline.deadline.isoformat(timespec="seconds")
        log.info("waiting for %s until %s", ", ".join(self._progress.missing()), until)
        while not await self._over(book, reader, subscription):
            await self._recorder.take(await subscription.receive(), subscription)

    async def _next_recorded(self) -> None:
        if self._recorder is None:
            await anyio.sleep_forever()
        else:
            await self._recorder.next_recorded()

    async def _follow_marks(self, book: Book, reader: Reader, subscription: Subscription) -> None:
        while True:
            for name, state in (await book.marked()).items():
                one = self._progress[name]
                under_way = one.recording
                while one.recording:
                    await self._next_recorded()
                if one.late or (one.done and (state != "failed" or under_way)):
                    continue  # our own mark, or one that it has overtaken
                if state == "success":
                    await reader.look_up(one)
                else:
                    reader.marked_by_hand(one, state)
                await self._drop(one, subscription)
            if await self._over(book, reader, subscription):
                return

    async def _drop(self, one: EventProgress, subscription: Subscription, *, late: bool = False) -> None:
        """This event is waited for no longer."""
        one.late = late
        subscription.drop(one.name)
        if self._recorder is not None:
            await self._recorder.dropped(one.name, subscription)

    # ------------------------------------------------------------------ what is there, and when it is over

    async def _over(self, book: Book, reader: Reader, subscription: Subscription | None = None) -> bool:
        """Decide if there is something to decide."""
        async with self._looking:
            return self._decided.is_set() or await self._look(book, reader, subscription)

    async def _look(self, book: Book, reader: Reader, subscription: Subscription | None) -> bool:
        progress = self._progress
        if progress.hopeless:
            self._decide_lost()
            return True
        if progress.recording:
            return False  # it goes along; whoever records it asks again
        if progress.open() and not self._terms.selective and subscription is not None and subscription.waiting:
            return False  # more has come meanwhile
        if not progress.complete and not await self._unhandled(reader):
            return False
        await reader.look_up_unknown(progress)
        complete = progress.complete
        if complete:
            await self._conclude(book, subscription)
        self._decide(Status.COMPLETE if complete else Status.ARRIVALS)
        return True

    def _decide_lost(self) -> None:
        late = [one.name for one in self._progress if one.late]
        lost = ", ".join(self._progress.lost)
        condition = self._progress.condition
        rest = "" if condition.is_all else f", and without that {condition.text!r} cannot hold"
        if late:
            self._decide(Status.LATE, f"{lost} has not come in its own time{rest}")
            return
        text = f"the marker of {lost} was marked failed{rest}; clear it together with the sensor to wait again"
        self._decide(Status.FAILED, text)

    async def _conclude(self, book: Book, subscription: Subscription | None) -> None:
        """The condition holds: mark the join, skip what is left, and let the brokers hear."""
        rest = self._progress.open()
        for one in rest:
            # Before anything is awaited: what comes from here on is too late.
            one.left_out = True
            if subscription is not None:
                subscription.drop(one.name)
        if self._terms.join is not None:
            await book.join(self._terms.join)
        if rest:
            names = ", ".join(one.name for one in rest)
            log.info("the condition %r holds; skipped: %s", self._progress.condition.text, names)
        async with anyio.create_task_group() as group:
            for one in rest:
                name = f"event_triggers: skip {one.name}"
                group.start_soon(book.end, one.name, "skipped", "the group was complete without it", name=name)
        self._concluded.set()
        if self._recorder is not None:
            self._recorder.finish()
        if subscription is not None:
            async with move_on_after(self._clock, FINISH_SETTLING):
                await subscription.settled()
        if self._terms.join is not None and self._progress.lost:
            await self._hold_join(book, self._terms.join)
        if subscription is not None and self._may_owe():
            await self._repaid(subscription)

    async def _hold_join(self, book: Book, join: str) -> None:
        """Mark the join until Airflow's scheduler has seen it.

        Behind a failed marker the scheduler makes it ``upstream_failed``, and one that looked just before the mark
        writes that over it.
        """
        for seconds in JOIN_AGAIN:
            await self._clock.sleep(seconds)
            await book.join(join)

    async def _unhandled(self, reader: Reader) -> bool:
        """Whether there is something that the handler of arrivals has not been given yet."""
        if self._handled is None:
            return False
        handled = self._handled
        await reader.look_up_unknown(one for one in self._progress if not handled.get(one.name))
        return any(count > handled.get(name, 0) for name, count in self._progress.counts().items())


def _tell(level: int, text: str) -> None:
    log.log(level, "%s", text)
