"""Whatever happens in whatever order, a queue's messages reach those who want them and are settled once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from event_triggers import load
from event_triggers.message import Message
from event_triggers.sources.base import Outcome
from event_triggers.subscription import Interest
from event_triggers.testing import ManualClock, MemoryQueue
from tests.property.stepping import Group, HubModel

# Two queues on one connection, as two topic filters of one client.
QUEUES = {"one": MemoryQueue("one", shared="client"), "two": MemoryQueue("two", shared="client")}
SINCE = ManualClock().now()
MOST = 6
KINDS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


def is_even(message: Message) -> bool:
    return bool(message.json["k"] % 2 == 0)


def is_small(message: Message) -> bool:
    return bool(message.json["k"] < 2)


WANTS = st.sampled_from([None, {"k": [0]}, {"k": [1, 2]}, is_even, is_small])


@st.composite
def interests(draw: st.DrawFn) -> list[Interest]:
    return [
        Interest(
            f"event {number}",
            QUEUES[draw(st.sampled_from(sorted(QUEUES)))],
            pattern=what if isinstance(what, dict) else None,
            accepts=what if callable(what) else None,
            count=draw(st.integers(0, 3)),
            since=draw(st.sampled_from([None, SINCE])),
        )
        for number, what in enumerate(draw(st.lists(WANTS, min_size=1, max_size=3)))
    ]


def fits(interest: Interest, message: Message) -> bool:
    """Whether the message is one that the interest asks for, said plainly."""
    if message.stream != interest.source.name:
        return False
    if interest.since is not None and message.timestamp is not None and message.timestamp < interest.since:
        return False
    if interest.accepts is not None:
        return interest.accepts(message)
    return interest.pattern is None or message.json["k"] in interest.pattern["k"]


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limit = patch.object(load, "MOST_UNANSWERED", MOST)
        self.limit.start()
        self.model = HubModel()
        self.recorded: set[str] = set()
        self.asking = False
        """Whether callables have not answered since the last step, or had not before it."""
        self.settled = dict.fromkeys(QUEUES, 0)
        self.failed_callables = False
        self.settling_fails = False

    @initialize(settling_fails=st.booleans())
    def begin(self, settling_fails: bool) -> None:
        self.settling_fails = settling_fails

    # ------------------------------------------------------------------ what may happen

    @rule(queue=st.sampled_from(sorted(QUEUES)), kinds=KINDS, old=st.booleans())
    def publish(self, queue: str, kinds: list[int], old: bool) -> None:
        at = SINCE - timedelta(hours=1) if old else None

        def send() -> None:
            for kind in kinds:
                self.model.broker.publish(queue, {"k": kind}, timestamp=at)

        self.model.loop.run(send)

    @precondition(lambda self: len(self.model.groups) < 4)
    @rule(interests=interests())
    def subscribe(self, interests: list[Interest]) -> None:
        self.model.subscribe(interests)

    @precondition(lambda self: any(group.unanswered for group in self.model.groups))
    @rule(place=st.integers(0, 99), how=st.sampled_from(["accept", "accept", "accept", "decline", "abandon"]))
    def answer(self, place: int, how: str) -> None:
        unanswered = [(group, one) for group in self.model.groups for one in group.unanswered]
        group, delivery = unanswered[place % len(unanswered)]
        if how == "accept":
            self.recorded.add(delivery.message.id)
        self.model.loop.run(lambda: group.answer(delivery, how))

    @precondition(lambda self: self.model.groups)
    @rule(place=st.integers(0, 9), over=st.booleans(), cancelled=st.booleans())
    def leave(self, place: int, over: bool, cancelled: bool) -> None:
        group = self.model.groups[place % len(self.model.groups)]
        if cancelled:
            self.model.cancel(group)
        else:
            self.model.leave(group, over=over)

    @precondition(lambda self: self.model.groups)
    @rule(place=st.integers(0, 9), event=st.integers(0, 9))
    def drop(self, place: int, event: int) -> None:
        group = self.model.groups[place % len(self.model.groups)]
        name = list(group.interests)[event % len(group.interests)]
        assert group.subscription is not None
        group.dropped.add(name)
        self.model.loop.run(lambda: group.subscription.drop(name))  # type: ignore[union-attr]

    @rule(what=st.sampled_from(["cut", "open"]), times=st.integers(1, 4))
    def break_the_connection(self, what: str, times: int) -> None:
        self.model.break_something(what, times)

    @precondition(lambda self: self.settling_fails)
    @rule(times=st.integers(1, 4))
    def break_settling(self, times: int) -> None:
        self.model.break_something("settle", times)

    @rule(queue=st.sampled_from(sorted(QUEUES)), in_flight=st.booleans())
    def deliver_again(self, queue: str, in_flight: bool) -> None:
        self.model.loop.run(lambda: self.model.broker.redeliver(queue, in_flight=in_flight))

    @precondition(lambda self: self.model.callables.pending)
    @rule(place=st.integers(0, 9), fail=st.sampled_from([False, False, False, True]))
    def answer_a_callable(self, place: int, fail: bool) -> None:
        self.failed_callables |= fail
        self.model.loop.run(lambda: self.model.callables.answer(place, fail=fail))

    @rule(seconds=st.sampled_from([0.3, 1, 5, 40]))
    def wait(self, seconds: float) -> None:
        self.model.advance(seconds)

    # ------------------------------------------------------------------ what must hold, always

    def open_ids(self) -> set[str]:
        return {delivery.message.id for group in self.model.groups for delivery in group.unanswered}

    def messages_settled(self) -> Iterator[tuple[Message, Outcome]]:
        for queue, seen in self.settled.items():
            settlements = self.model.broker.settled(queue)
            self.settled[queue] = len(settlements)
            yield from settlements[seen:]

    @invariant()
    def nothing_is_acknowledged_that_was_not_recorded(self) -> None:
        for message, outcome in self.messages_settled():
            if outcome is Outcome.ACCEPTED:
                assert message.id in self.recorded
                assert message.id not in self.open_ids(), "somebody still records it"
            # What is released late, because of a failure, may be wanted again by then; and one may come while others
            # decline a message, and not yet have been asked about it.
            certain = not self.failed_callables and not self.settling_fails and not self.asking
            if outcome is Outcome.RELEASED and certain:
                assert not [event for group in self.model.groups for event in self.wanting(group, message)]
        self.asking = bool(self.model.callables.pending)

    @staticmethod
    def wanting(group: Group, message: Message) -> list[str]:
        return [
            event
            for event, interest in group.interests.items()
            if group.remaining(event) > 0 and not group.has(event, message) and fits(interest, message)
        ]

    @invariant()
    def events_get_what_they_asked_for_and_no_more(self) -> None:
        for group in self.model.groups:
            for event, interest in group.interests.items():
                taken = group.taken(event)
                assert len(taken) <= interest.count
                assert len({message.id for message in taken}) == len(taken)
                assert all(fits(interest, message) for message in taken)

    @invariant()
    def there_is_one_connection_for_all(self) -> None:
        assert self.model.broker.statistics().open_streams <= 1
        if not self.model.groups:
            self.model.check_nothing_left()

    @invariant()
    def little_is_under_way(self) -> None:
        for channel in self.model.hub._channels.values():
            assert channel._fanout.load.messages <= MOST
            assert channel._fanout.unanswered == len(self.open_ids())

    # ------------------------------------------------------------------ what must come true, once nothing is broken

    @rule()
    def calm_down(self) -> None:
        self.model.calm_down()
        self.nothing_is_acknowledged_that_was_not_recorded()
        open_ids = self.open_ids()
        for group in self.model.groups:
            assert group.subscription is not None
            assert group.subscription._unsettled == len(group.unanswered)
            assert all(entry.live for _, entry in group.subscription.entries)
        wanted = any(group.remaining(event) > 0 for group in self.model.groups for event in group.interests)
        for queue in QUEUES:
            watched = any(one.source.name == queue for group in self.model.groups for one in group.interests.values())
            session = self.model.broker.channel(queue).session("")
            in_flight = {self.model.broker.channel(queue).records[n].identity(queue) for n in session.in_flight}
            full = len(open_ids) >= MOST  # the rest of a batch waits for room
            assert self.settling_fails or full or in_flight <= open_ids, "taken, and neither under way nor settled"
            if wanted and watched and not full:
                assert not session.returned
                assert session.next == len(self.model.broker.channel(queue).records)

    def teardown(self) -> None:
        try:
            while self.model.groups:
                self.model.leave(self.model.groups[0], over=False)
            self.model.check_nothing_left()
            for queue in QUEUES:
                assert not self.model.broker.channel(queue).session("").in_flight
        finally:
            self.limit.stop()
            self.model.close()


QueueMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQueue = QueueMachine.TestCase
