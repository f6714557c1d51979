"""Whatever happens in whatever order, a log's readers get what lies behind their ``since``: all, once, and in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from event_triggers import load
from event_triggers.entry import Interest
from event_triggers.message import Message
from event_triggers.testing import ManualClock
from tests.property.faults import HOW, FaultyLog
from tests.property.stepping import MANY, Group, HubModel

LOG = FaultyLog("log")
KEYED = FaultyLog("log", keys=("x",))
BEGIN = ManualClock().now()
MOST = 8


def is_even(message: Message) -> bool:
    return bool(message.json["k"] % 2 == 0)


WANTS = st.sampled_from([None, {"k": [0]}, {"k": [1, 2]}, is_even])
SINCES = st.sampled_from([None, *(BEGIN + timedelta(minutes=m) for m in (-10, 0, 2))])


@st.composite
def interests(draw: st.DrawFn) -> list[Interest]:
    return [
        Interest(
            f"event {number}",
            draw(st.sampled_from([LOG, KEYED])),
            pattern=what if isinstance(what, dict) else None,
            accepts=what if callable(what) else None,
            count=draw(st.sampled_from([1, 2, 5, 99])),
            since=draw(SINCES),
        )
        for number, what in enumerate(draw(st.lists(WANTS, min_size=1, max_size=3)))
    ]


@dataclass(frozen=True)
class Sent:
    """A message of the log."""

    id: str
    kind: int
    key: str
    at: datetime
    number: int


def fits(interest: Interest, sent: Sent) -> bool:
    """Whether it is one that the interest asks for, said plainly."""
    if interest.source is KEYED and sent.key != "x":
        return False
    if sent.id in interest.recorded or (interest.since is not None and sent.at < interest.since):
        return False
    if interest.accepts is not None:
        return sent.kind % 2 == 0
    return interest.pattern is None or sent.kind in interest.pattern["k"]


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limit = patch.object(load, "MOST_UNANSWERED", MOST)
        self.limit.start()
        self.model = HubModel()
        self.sent: dict[str, list[Sent]] = {}
        self.count = 0
        self.live: dict[Group, dict[str, int]] = {}
        """How many messages had been sent, at most, when an event of a group was live."""
        self.hasty = False

    @initialize(partitions=st.integers(1, 3), hasty=st.booleans(), unread=st.booleans(), interests=interests())
    def begin(self, partitions: int, hasty: bool, unread: bool, interests: list[Interest]) -> None:
        self.hasty = hasty
        self.model.faults.unread = unread
        self.model.broker.partitions("log", partitions)
        self.subscribe(interests)

    # ------------------------------------------------------------------ what may happen

    @rule(
        kinds=st.lists(st.integers(0, 3), min_size=1, max_size=5),
        partition=st.integers(0, 3),
        key=st.sampled_from("xy"),
        ago=st.sampled_from([0, 0, 0, 60, 3600]),
    )
    def publish(self, kinds: list[int], partition: int, key: str, ago: int) -> None:
        at = self.model.clock.now() - timedelta(seconds=ago)

        def send() -> None:
            for kind in kinds:
                body = {"k": kind}
                identity = self.model.broker.publish("log", body, key=key, timestamp=at, partition=partition)
                self.sent.setdefault(str(partition), []).append(Sent(identity, kind, key, at, self.count))
                self.count += 1

        self.model.loop.run(send)

    @rule(partition=st.integers(0, 1), count=st.integers(1, 3))
    def leave_a_gap(self, partition: int, count: int) -> None:
        self.model.loop.run(lambda: self.model.broker.skip("log", count, partition=partition))

    @rule(interests=interests())
    def subscribe(self, interests: list[Interest]) -> None:
        if len(self.model.groups) == 4:
            return
        self.live[self.model.subscribe(interests)] = {}

    @rule(place=st.integers(0, 99), how=st.sampled_from(["accept", "accept", "accept", "decline"]))
    def answer(self, place: int, how: str) -> None:
        unanswered = [(group, one) for group in self.model.groups for one in group.unanswered]
        if not unanswered:
            return
        group, delivery = unanswered[place % len(unanswered)]
        self.model.loop.run(lambda: group.answer(delivery, how))

    @rule()
    def accept_all(self) -> None:
        def accept() -> None:
            for group in self.model.groups:
                for delivery in list(group.unanswered):
                    group.answer(delivery, "accept")

        self.model.loop.run(accept)

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
        if any(interest.since is None for interest in group.interests.values()):
            return
        self.model.leave(group)
        again = []
        for event, interest in group.interests.items():
            recorded = {delivery.message.id for delivery in group.recorded if event in delivery.events}
            count = 0 if event in group.dropped else interest.count - len(recorded)
            again.append(replace(interest, count=count, recorded=interest.recorded | recorded))
        self.subscribe(again)

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

    @rule(where=st.sampled_from(["open", "close", "watch", "unwatch", "pull", "locate"]), how=st.sampled_from(HOW))
    def fault(self, where: str, how: str) -> None:
        if self.hasty or how != "hang":
            self.model.fault(where, how)

    @rule()
    def let_go(self) -> None:
        self.model.loop.run(self.model.faults.let_go)

    @rule(what=st.sampled_from(["cut", "open"]), times=st.integers(1, 4))
    def break_the_connection(self, what: str, times: int) -> None:
        self.model.break_something(what, times)

    @rule(place=st.integers(0, 9))
    def answer_a_callable(self, place: int) -> None:
        if not self.model.callables.pending:
            return
        self.model.loop.run(lambda: self.model.callables.answer(place))

    @rule(interests=interests())
    def come_while_it_breaks(self, interests: list[Interest]) -> None:
        """The reader may be busy and not notice; serving who comes does."""
        self.model.broker.cut()
        self.subscribe(interests)

    @rule(seconds=st.sampled_from([0.3, 1, 5, 40, 400]))
    def wait(self, seconds: float) -> None:
        self.model.advance(seconds)

    # ------------------------------------------------------------------ what must hold, always

    @invariant()
    def everybody_gets_his_messages_once_and_in_order(self) -> None:
        for group in self.model.groups:
            self.note_who_is_live(group)
            for event, interest in group.interests.items():
                taken = group.taken(event)
                assert len(taken) <= interest.count
                for partition, sent in self.sent.items():
                    got = [message.id for message in taken if message.partition == partition]
                    assert got in self.possible(group, event, sent, len(got)), (event, interest, got)

    def note_who_is_live(self, group: Group) -> None:
        for event in group.live:
            self.live[group].setdefault(event, self.count)

    def possible(self, group: Group, event: str, sent: Sequence[Sent], length: int) -> list[list[str]]:
        """What the event may have received from a partition when it has received so many messages."""
        interest = group.interests[event]
        fitting = [one for one in sent if fits(interest, one)]
        if interest.since is not None:
            return [[one.id for one in fitting[:length]]]
        # It sees what the shared stream has yet to deliver, and certainly all that came after it was live.
        latest = self.live[group].get(event, self.count)
        begins = [n for n in range(len(fitting) + 1) if not any(one.number >= latest for one in fitting[:n])]
        return [[one.id for one in fitting[n : n + length]] for n in begins]

    @invariant()
    def nothing_is_settled(self) -> None:
        assert self.model.broker.settled("log") == []

    @invariant()
    def little_is_open(self) -> None:
        assert self.model.broker.statistics().open_streams <= 1 + 4, "one is live, and there are two rounds of each age"
        needed = [group for group in self.model.groups if group.unanswered or self.wants(group)]
        if not self.model.steady:
            return  # it is closed as soon as it can be
        if not needed:
            assert self.model.broker.statistics().open_streams == 0, "nobody needs the stream any more"
        if not self.model.groups:
            self.model.check_nothing_left()

    @staticmethod
    def wants(group: Group) -> bool:
        return any(group.remaining(event) > 0 for event in group.interests)

    # ------------------------------------------------------------------ what must come true, once nothing is broken

    @rule()
    def calm_down(self) -> None:
        # What is unanswered could keep others waiting.
        self.model.calm_down()
        while any(group.unanswered for group in self.model.groups):
            self.accept_all()
            self.model.calm_down()
        self.everybody_gets_his_messages_once_and_in_order()
        for group in self.model.groups:
            for event, interest in group.interests.items():
                if event in group.dropped:
                    continue
                since = 0 if interest.since is not None else self.live[group][event]
                missing = [
                    one.id
                    for sent in self.sent.values()
                    for one in sent
                    if one.number >= since and fits(interest, one) and one.id not in {m.id for m in group.taken(event)}
                ]
                assert not missing or len(group.taken(event)) == interest.count, (event, interest)
        wanted = any(self.wants(group) for group in self.model.groups)
        assert self.model.broker.statistics().open_streams == (1 if wanted else 0)
        for channel in self.model.hub._channels.values():
            assert (channel._fanout.load.messages, channel._fanout.load.bytes) == (0, 0)

    def teardown(self) -> None:
        try:
            self.calm_down()
            while self.model.groups:
                self.model.leave(self.model.groups[0])
            self.model.calm_down()
            self.model.check_nothing_left()
        finally:
            self.limit.stop()
            self.model.close()


LogMachine.TestCase.settings = MANY
# A failure takes minutes to be made short.
TestLog = pytest.mark.timeout(900)(LogMachine.TestCase)
