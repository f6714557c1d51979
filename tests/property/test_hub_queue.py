"""Whatever happens in whatever order, a queue's messages reach those who want them and are settled once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from event_triggers import load
from event_triggers.entry import Interest
from event_triggers.message import Message
from event_triggers.sources.base import Outcome
from event_triggers.testing import ManualClock
from tests.property.faults import HOW, FaultyQueue
from tests.property.stepping import MANY, Group, HubModel

# Two queues on one connection, as two topic filters of one client.
QUEUES = {"one": FaultyQueue("one", shared="client"), "two": FaultyQueue("two", shared="client")}
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
        self.recorded_by_all: set[str] = set()
        """Messages that nobody has left before he could record them, or that a group brings along as recorded."""
        self.handed_out: set[str] = set()
        self.acknowledged: set[str] = set()
        self.settled = dict.fromkeys(QUEUES, 0)
        self.failed_callables = False
        self.settling_fails = False
        self.hasty = False

    @initialize(
        settling_fails=st.booleans(),
        hasty=st.booleans(),
        redelivery=st.sampled_from([0.0, 0.0, 60.0]),
        interests=interests(),
    )
    def begin(self, settling_fails: bool, hasty: bool, redelivery: float, interests: list[Interest]) -> None:
        self.settling_fails, self.hasty = settling_fails, hasty
        self.model.faults.redelivery = redelivery
        self.subscribe(interests)

    # ------------------------------------------------------------------ what may happen

    @rule(queue=st.sampled_from(sorted(QUEUES)), kinds=KINDS, old=st.booleans())
    def publish(self, queue: str, kinds: list[int], old: bool) -> None:
        at = SINCE - timedelta(hours=1) if old else None

        def send() -> None:
            for kind in kinds:
                self.model.broker.publish(queue, {"k": kind}, timestamp=at)

        self.model.loop.run(send)

    @rule(interests=interests())
    def subscribe(self, interests: list[Interest]) -> None:
        if len(self.model.groups) == 4:
            return
        # Two of them may be the same group, which has started again.
        self.model.subscribe(interests, name=f"group {len(self.model.groups) % 3}")

    @rule(place=st.integers(0, 99), how=st.sampled_from(["accept", "accept", "accept", "decline", "abandon"]))
    def answer(self, place: int, how: str) -> None:
        unanswered = [(group, one) for group in self.model.groups for one in group.unanswered]
        if not unanswered:
            return
        group, delivery = unanswered[place % len(unanswered)]
        if how == "accept":
            self.recorded.add(delivery.message.id)
        self.model.loop.run(lambda: group.answer(delivery, how))

    @rule(place=st.integers(0, 9), over=st.booleans(), cancelled=st.booleans())
    def leave(self, place: int, over: bool, cancelled: bool) -> None:
        if not self.model.groups:
            return
        group = self.model.groups[place % len(self.model.groups)]
        self.model.leave(group, over=over, cancelled=cancelled)

    @rule(place=st.integers(0, 9))
    def move(self, place: int) -> None:
        """The group is stopped, and starts again with what it has recorded; perhaps before it is quite gone."""
        if not self.model.groups:
            return
        group = self.model.groups[place % len(self.model.groups)]
        again = []
        for event, interest in group.interests.items():
            recorded = {delivery.message.id for delivery in group.recorded if event in delivery.events}
            count = 0 if event in group.dropped else interest.count - len(recorded)
            again.append(replace(interest, count=count, recorded=interest.recorded | recorded))
            self.recorded_by_all |= recorded
        self.model.leave(group)
        # What nobody wants now may be released now, and wanted again by whoever comes next.
        self.nothing_is_acknowledged_that_was_not_recorded()
        self.model.subscribe(again, name=group.name)

    @rule(place=st.integers(0, 9), event=st.integers(0, 9))
    def drop(self, place: int, event: int) -> None:
        if not self.model.groups:
            return
        group = self.model.groups[place % len(self.model.groups)]
        name = list(group.interests)[event % len(group.interests)]
        if group.subscription is None:
            return
        group.dropped.add(name)
        self.model.loop.run(lambda: group.subscription.drop(name))  # type: ignore[union-attr]

    @rule(steps=st.integers(0, 12))
    def hurry(self, steps: int) -> None:
        if self.hasty:
            self.model.hurry(steps)

    @rule(where=st.sampled_from(["open", "close", "watch", "unwatch", "pull"]), how=st.sampled_from(HOW))
    def fault(self, where: str, how: str) -> None:
        if self.hasty or how != "hang":
            self.model.fault(where, how)

    @rule(how=st.sampled_from(HOW))
    def fault_when_settling(self, how: str) -> None:
        if self.settling_fails:
            self.model.fault("settle", how)

    @rule()
    def let_go(self) -> None:
        self.model.loop.run(self.model.faults.let_go)

    @rule(what=st.sampled_from(["cut", "open"]), times=st.integers(1, 4))
    def break_the_connection(self, what: str, times: int) -> None:
        self.model.break_something(what, times)

    @rule(times=st.integers(1, 4))
    def break_settling(self, times: int) -> None:
        if not self.settling_fails:
            return
        self.model.break_something("settle", times)

    @rule(queue=st.sampled_from(sorted(QUEUES)), in_flight=st.booleans())
    def deliver_again(self, queue: str, in_flight: bool) -> None:
        self.model.loop.run(lambda: self.model.broker.redeliver(queue, in_flight=in_flight))

    @rule(place=st.integers(0, 9), fail=st.sampled_from([False, False, False, True]))
    def answer_a_callable(self, place: int, fail: bool) -> None:
        if not self.model.callables.pending:
            return
        self.failed_callables |= fail
        self.model.loop.run(lambda: self.model.callables.answer(place, fail=fail))

    @rule(interests=interests())
    def come_while_it_breaks(self, interests: list[Interest]) -> None:
        """The reader may be busy and not notice; serving who comes does."""
        self.model.broker.cut()
        self.subscribe(interests)

    @rule(seconds=st.sampled_from([0.3, 1, 5, 40]))
    def wait(self, seconds: float) -> None:
        self.model.advance(seconds)

    # ------------------------------------------------------------------ what must hold, always

    def open_ids(self) -> set[str]:
        return self.model.witness.open_ids()

    def messages_settled(self) -> Iterator[tuple[Message, Outcome]]:
        for queue, seen in self.settled.items():
            settlements = self.model.broker.settled(queue)
            self.settled[queue] = len(settlements)
            yield from settlements[seen:]

    def conclude(self) -> None:
        """Find out what all who were handed it have answered for."""
        for answers in self.model.witness.concluded():
            who = {how: set[tuple[str, str]]() for how in ("accepted", "declined", "abandoned")}
            for delivery, how in answers.items():
                who[how] |= {(delivery.subscription.group, event) for event in delivery.events}
                identity = delivery.message.id
            if who["accepted"] and who["accepted"] >= who["abandoned"]:
                self.acknowledged.add(identity)
                self.recorded_by_all.add(identity)

    @invariant()
    def nothing_is_acknowledged_that_was_not_recorded(self) -> None:
        self.conclude()
        assert not self.acknowledged & self.open_ids(), "what has been acknowledged is handed out again"
        for message, outcome in self.messages_settled():
            assert outcome is Outcome.ACCEPTED or message.id not in self.acknowledged
            if outcome is Outcome.ACCEPTED:
                assert message.id in self.recorded
                assert message.id in self.recorded_by_all, "somebody has yet to record it"
                assert message.id not in self.open_ids(), "somebody still records it"
            # What is released late, because of a failure or our haste, may be wanted again by then.
            if outcome is Outcome.RELEASED and not self.settling_fails and not self.hasty:
                assert self.model.groups or message.id in self.handed_out, "nobody is left who could not want it"
                for group in self.model.groups:
                    assert not self.wanting(group, message)
        if not self.model.groups and not self.model.leaving:
            self.acknowledged.clear()  # it is known as long as somebody listens

    def wanting(self, group: Group, message: Message) -> list[str]:
        # Who comes while others decline a message has perhaps not been asked about it yet.
        return [
            event
            for event, interest in group.interests.items()
            if group.subscription is not None
            if interest.accepts is None or (event in group.live and not self.failed_callables)
            if group.remaining(event) > 0 and not group.has(event, message) and fits(interest, message)
        ]

    @invariant()
    def events_get_what_they_asked_for_and_no_more(self) -> None:
        for group in self.model.groups:
            self.handed_out |= {delivery.message.id for delivery in group.deliveries}
            for event, interest in group.interests.items():
                taken = group.taken(event)
                assert len(taken) <= interest.count
                assert len({message.id for message in taken}) == len(taken)
                assert all(fits(interest, message) for message in taken)

    @invariant()
    def what_is_under_way_is_offered_to_all(self) -> None:
        for group in self.model.groups:
            for answers in self.model.witness.answers.values():
                assert not self.wanting(group, next(iter(answers)).message)

    @invariant()
    def there_is_one_connection_for_all(self) -> None:
        self.model.check_nothing_wrong()
        assert self.model.broker.statistics().open_streams <= 1
        if not self.model.groups and self.model.steady and not self.model.faults.redelivery:
            self.model.check_nothing_left()

    @invariant()
    def little_is_under_way(self) -> None:
        for channel in self.model.hub._channels.values():
            # The rest of a batch comes on top, while the broker is not heard.
            assert channel._fanout.load.messages <= MOST + (self.model.broker.batch_size if self.hasty else 0)
            assert channel._fanout.unanswered == len(self.open_ids())

    # ------------------------------------------------------------------ what must come true, once nothing is broken

    @rule()
    def calm_down(self) -> None:
        self.model.calm_down()
        self.nothing_is_acknowledged_that_was_not_recorded()
        if self.settling_fails:
            # The hub has given up telling the broker: so it comes again, and then it is told.
            for queue in QUEUES:
                self.deliver_again(queue, in_flight=True)
            self.model.calm_down()
            self.nothing_is_acknowledged_that_was_not_recorded()
        open_ids = self.open_ids()
        for group in self.model.groups:
            assert group.subscription is not None
            assert group.subscription._unsettled == len(group.unanswered)
            assert group.live == set(group.interests)
        wanted = any(group.remaining(event) > 0 for group in self.model.groups for event in group.interests)
        for queue in QUEUES:
            # What nobody wants more from is not asked for.
            watched = any(
                one.source.name == queue and group.remaining(event) > 0
                for group in self.model.groups
                for event, one in group.interests.items()
            )
            session = self.model.broker.channel(queue).session("")
            in_flight = {self.model.broker.channel(queue).records[n].identity(queue) for n in session.in_flight}
            full = len(open_ids) >= MOST  # the rest of a batch waits for room
            assert full or in_flight <= open_ids, "taken, and neither under way nor settled"
            if wanted and watched and not full:
                assert not session.returned
                assert session.next == len(self.model.broker.channel(queue).records)

    def teardown(self) -> None:
        try:
            while self.model.groups:
                self.model.leave(self.model.groups[0])
            self.model.calm_down()
            self.model.check_nothing_left()
            self.model.check_nothing_wrong()
            for queue in QUEUES:
                assert not self.model.broker.channel(queue).session("").in_flight
        finally:
            self.limit.stop()
            self.model.close()


QueueMachine.TestCase.settings = MANY
# A failure takes minutes to be made short.
TestQueue = pytest.mark.timeout(900)(QueueMachine.TestCase)
