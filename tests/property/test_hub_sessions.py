"""Sessions of groups at a broker: never used twice at the same time, removed when they are to be, and read when not."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from event_triggers.entry import Interest
from tests.property.faults import HOW, FaultyQueue
from tests.property.stepping import MANY, HubModel

OWN = FaultyQueue("own", per_group=True)
NAMES = st.sampled_from("ab")


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = HubModel()
        self.removing: list[asyncio.Task[None]] = []
        self.removed: set[str] = set()
        """The groups that are to have no session, once all is calm."""
        self.removing_fails = False

    @initialize(removing_fails=st.booleans())
    def begin(self, removing_fails: bool) -> None:
        self.removing_fails = removing_fails

    # ------------------------------------------------------------------ what may happen

    @rule(name=NAMES, count=st.integers(1, 3))
    def subscribe(self, name: str, count: int) -> None:
        if sum(group.name == name for group in self.model.groups) < 2:
            self.removed.discard(name)
            self.model.subscribe([Interest("event", OWN, count=count)], name=name)

    @rule(place=st.integers(0, 9), over=st.booleans(), cancelled=st.booleans())
    def leave(self, place: int, over: bool, cancelled: bool) -> None:
        if self.model.groups:
            group = self.model.groups[place % len(self.model.groups)]
            self.model.leave(group, over=over, cancelled=cancelled)

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        groups = [group.name for group in (*self.model.groups, *self.model.leaving)]
        if self.model.loop.rested and name not in groups:
            self.removed.add(name)

        def remove() -> None:
            self.removing.append(self.model.loop.create_task(self.model.hub.forget(name, [OWN])))

        self.model.loop.run(remove)

    @rule(many=st.integers(1, 4))
    def publish(self, many: int) -> None:
        self.model.loop.run(lambda: [self.model.broker.publish("own", {"n": n}) for n in range(many)])

    @rule(place=st.integers(0, 99), how=st.sampled_from(["accept", "decline", "abandon"]))
    def answer(self, place: int, how: str) -> None:
        unanswered = [(group, one) for group in self.model.groups for one in group.unanswered]
        if unanswered:
            group, delivery = unanswered[place % len(unanswered)]
            self.model.loop.run(lambda: group.answer(delivery, how))

    @rule()
    def cut(self) -> None:
        self.model.break_something("cut", 1)

    @rule(steps=st.integers(0, 12))
    def hurry(self, steps: int) -> None:
        self.model.hurry(steps)

    @rule(
        where=st.sampled_from(["open", "close", "watch", "pull", "settle", *["forget"] * 4]), how=st.sampled_from(HOW)
    )
    def fault(self, where: str, how: str) -> None:
        if where != "forget" or how == "hang" or self.removing_fails:
            self.model.fault(where, how)

    @rule(seconds=st.sampled_from([0.3, 5, 40]))
    def wait(self, seconds: float) -> None:
        self.model.advance(seconds)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def a_session_is_used_by_one_at_a_time(self) -> None:
        self.model.check_nothing_wrong()

    @rule()
    def calm_down(self) -> None:
        self.model.calm_down()
        for task in self.removing:
            assert task.done(), "removing hangs"
            task.result()
        self.removing.clear()
        sessions = self.model.broker.sessions("own")
        if not self.removing_fails:
            assert not self.removed & sessions, "was to be removed"
        for group in self.model.groups:
            assert group.name in sessions, "was removed under a group that listens"
            assert group.live == {"event"}
            if group.remaining("event") > 0:
                session = self.model.broker.channel("own").session(group.name)
                assert not session.returned
                assert session.next == len(self.model.broker.channel("own").records)

    def teardown(self) -> None:
        try:
            self.calm_down()
            while self.model.groups:
                self.model.leave(self.model.groups[0])
            self.model.calm_down()
            self.model.check_nothing_left()
            self.model.check_nothing_wrong()
        finally:
            self.model.close()


SessionMachine.TestCase.settings = settings(MANY, max_examples=max(1, MANY.max_examples // 2))
# A failure takes minutes to be made short.
TestSessions = pytest.mark.timeout(900)(SessionMachine.TestCase)
