"""Ids of MQTT messages, against brokers that hand packet identifiers out in every way there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_triggers.message import same_message
from event_triggers.sources._mqtt_identity import Incoming, LiveTopics, SessionMemory, SubscriptionIds, Verdict


def incoming(
    mid: int,
    body: bytes = b"x",
    *,
    dup: bool = False,
    retain: bool = False,
    under: tuple[int, ...] = (),
    topic: str = "t",
) -> Incoming:
    return Incoming(topic, body, mid, 1, dup, retain, under)


def memory(*, resumed: bool = False, name: str = "session") -> SessionMemory:
    made = SessionMemory(name)
    made.begin(resumed=resumed)
    return made


def identify(known: SessionMemory, packet: Incoming) -> str:
    return known.identify(packet, overlap=False, now=0.0)[0].id


def settle(known: SessionMemory, identity: str) -> list[int]:
    """Settle and acknowledge; tells the packet identifiers."""
    due = known.settle(identity, known.connection)
    for delivery in due:
        known.acknowledged(delivery)
    return [delivery.mid for delivery in due]


def test_a_message_that_waited_at_the_broker_is_known_after_two_restarts() -> None:
    """Queued while nobody was connected, first seen by a process that recorded it and died before it acknowledged."""
    under = (SubscriptionIds().number(0) or 0,)
    second, third = memory(resumed=True), memory(resumed=True)
    recorded = identify(second, incoming(1, under=under))
    again, verdict = third.identify(
        incoming(1, under=under, dup=True), overlap=False, now=0.0, recorded={"another", recorded}
    )
    assert (again.id, verdict) == (recorded, Verdict.HAND_OVER)


def test_one_that_was_not_recorded_is_not_taken_for_another_one() -> None:
    under = (SubscriptionIds().number(0) or 0,)
    seen = identify(memory(resumed=True), incoming(1, b"a", under=under))
    for other in (incoming(1, b"b", under=under, dup=True), incoming(2, b"a", under=under, dup=True)):
        again, _ = memory(resumed=True).identify(other, overlap=False, now=0.0, recorded={seen})
        assert again.id != seen


def test_two_processes_that_run_one_session_call_a_message_the_same() -> None:
    """Whoever has it again cannot know the epoch of the one that saw it first, nor whether that has recorded it."""
    under = (SubscriptionIds().number(0) or 0,)
    first, second = memory(resumed=True), memory(resumed=True)
    seen = identify(first, incoming(1, under=under))
    again = identify(second, incoming(1, under=under, dup=True))
    first.begin(resumed=True)
    assert identify(first, incoming(1, under=under, dup=True)) == seen
    assert same_message(again, seen)
    assert same_message(seen, again)
    assert not same_message(identify(second, incoming(2, under=under, dup=True)), seen)


def test_an_identical_message_of_later_is_another_one_though_the_first_is_recorded() -> None:
    """By the broker's own word (no DUP) it is new, whatever is recorded under its packet identifier."""
    under = (SubscriptionIds().number(0) or 0,)
    first = identify(memory(resumed=True), incoming(1, under=under, dup=True))
    later, _ = memory(resumed=True).identify(incoming(1, under=under), overlap=False, now=0.0, recorded={first})
    assert later.id != first


# ---------------------------------------------------------------------- a broker, as far as ids are concerned


@dataclass
class Sent:
    """One message on the broker's side."""

    number: int
    body: bytes
    under: int
    mid: int = 0
    dup: bool = False
    ids: list[str] = field(default_factory=list)
    """The ids that it was given, by whom ever."""
    settled: bool = False
    ambiguous: bool = False

    @property
    def key(self) -> tuple[int, bytes, int]:
        return self.mid, self.body, self.under


@dataclass
class Broker:
    """A session at a broker; ``policy`` says how it chooses packet identifiers."""

    policy: str
    subscription_ids: bool
    known: SessionMemory = field(default_factory=memory)
    others: list[SessionMemory] = field(default_factory=list)
    """Processes that had the session before, and may come back."""
    queued: list[Sent] = field(default_factory=list)
    flying: list[Sent] = field(default_factory=list)
    all: list[Sent] = field(default_factory=list)
    epochs: int = 0
    last: int = 0
    under: int = 0
    used: set[tuple[int, bytes, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.subscribe()

    def subscribe(self) -> None:
        self.under = self.known.ids.number(0) or 0

    def publish(self, body: bytes) -> None:
        sent = Sent(len(self.all), body, self.under)
        self.all.append(sent)
        self.queued.append(sent)

    def free_mid(self) -> int:
        taken = {sent.mid for sent in self.flying}
        start = 1 if self.policy == "lowest free" else self.last + 1
        self.last = next(mid for mid in range(start, start + 100_000) if mid not in taken)
        return self.last

    def deliver(self) -> None:
        """Send what is queued."""
        while self.queued:
            sent = self.queued.pop(0)
            sent.mid = self.free_mid()
            self.flying.append(sent)
            self.send(sent)

    def send(self, sent: Sent) -> None:
        under = (sent.under,) if self.subscription_ids else ()
        packet = incoming(sent.mid, sent.body, dup=sent.dup, under=under)
        key = (sent.mid, sent.body, sent.under if self.subscription_ids else 0)
        if not sent.dup:
            sent.ambiguous = key in self.used
            self.used.add(key)
        delivery, verdict = self.known.identify(packet, overlap=False, now=0.0)
        self.check(sent, delivery.id)
        if verdict is Verdict.ACKNOWLEDGE:
            assert sent.settled or sent.ambiguous
            self.known.acknowledged(delivery)
            self.flying.remove(sent)
        else:
            assert verdict is Verdict.HAND_OVER

    def check(self, sent: Sent, identity: str) -> None:
        if not sent.ambiguous:
            assert all(same_message(identity, one) for one in sent.ids)
        sent.ids.append(identity)

    def settle(self, number: int, *, arrives: bool) -> None:
        """Our side is done with one; its acknowledgement arrives, or is lost with the connection."""
        if self.flying:
            sent = self.flying[number % len(self.flying)]
            sent.settled = True
            assert settle(self.known, sent.ids[-1]) == [sent.mid]
            if arrives:
                self.flying.remove(sent)
            else:
                self.reconnect()

    def reconnect(self) -> None:
        self.known.begin(resumed=True)
        self.resume()

    def restart(self) -> None:
        """Another process takes the session over; it knows nothing of the settled ones that did not arrive."""
        self._take_over(memory(resumed=True))

    def come_back(self, number: int) -> None:
        """A process that lost the session to another one, and lives, takes it back; or there is none, and it is new."""
        self._take_over(self.others.pop(number % len(self.others)) if self.others else memory(resumed=True))

    def _take_over(self, known: SessionMemory) -> None:
        self.others.append(self.known)
        self.known = known
        known.begin(resumed=True)
        for sent in self.flying:
            sent.settled = False
        self.resume()

    def resume(self) -> None:
        if self.policy == "anew per connection":
            self.last = 0
        for sent in list(self.flying):
            sent.dup = True
            self.send(sent)
        self.subscribe()
        self.deliver()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from([b"same", b"other"])),
        st.tuples(st.just("settle"), st.integers(0, 5)),
        st.tuples(st.just("settle, unheard"), st.integers(0, 5)),
        st.tuples(st.just("reconnect"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("come back"), st.integers(0, 5)),
        st.tuples(st.just("publish while away"), st.sampled_from([b"same", b"other"])),
    ),
    max_size=30,
)


@pytest.mark.parametrize("subscription_ids", [True, False], ids=["mqtt-5", "mqtt-3.1.1"])
@pytest.mark.parametrize("policy", ["increasing", "lowest free", "anew per connection"])
@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_one_message_one_id(policy: str, subscription_ids: bool, steps: list[tuple[str, int | bytes]]) -> None:
    """Every delivery of a message has its id, also in the next process, and no other message has it.

    Left out is what cannot be told apart (see the module): a message in flight when another process takes over that is
    identical to another one of its packet identifier, and with MQTT 3.1.1 identical ones on both sides of that.
    """
    broker = Broker(policy, subscription_ids)
    for what, value in steps:
        if what == "publish":
            assert isinstance(value, bytes)
            broker.publish(value)
            broker.deliver()
        elif what == "publish while away":
            assert isinstance(value, bytes)
            broker.publish(value)
        elif what.startswith("settle"):
            assert isinstance(value, int)
            broker.settle(value, arrives=what == "settle")
        elif what == "reconnect":
            broker.reconnect()
        elif what == "come back":
            assert isinstance(value, int)
            broker.come_back(value)
        else:
            broker.restart()
    unclear = {sent.key for sent in broker.all if sent.ids and sent.ambiguous and (sent.dup or not subscription_ids)}
    unsure = {sent.key for sent in broker.all if sent.dup}
    ambiguous = {sent.key for sent in broker.all if sent.ids and sent.ambiguous}
    certain = [sent for sent in broker.all if sent.ids and sent.key not in unclear | (unsure & ambiguous)]
    for one, other in itertools.combinations(certain, 2):
        assert not any(same_message(a, b) for a in one.ids for b in other.ids)


# ---------------------------------------------------------------------- single rules


def test_sessions_and_topics_differ() -> None:
    packets = [incoming(1), incoming(1, topic="u"), incoming(1, b"y"), incoming(2)]
    ids = {identify(memory(name=name), packet) for name in ("a", "b") for packet in packets}
    assert len(ids) == 8


def test_content_includes_the_properties() -> None:
    plain = incoming(1)
    with_extras = plain._replace(extras=(("a", b"bc"),))
    assert len({identify(memory(), p) for p in (plain, with_extras, plain._replace(extras=(("ab", b"c"),)))}) == 3


def test_redelivery_in_one_process_needs_no_dup_flag() -> None:
    """Some brokers forget it; the packet identifier cannot be another message's while it is not acknowledged."""
    known = memory()
    first = identify(known, incoming(7))
    known.begin(resumed=True)
    delivery, verdict = known.identify(incoming(7), overlap=False, now=0)
    assert (delivery.id, delivery.attempt, verdict) == (first, 2, Verdict.HAND_OVER)


def test_settled_without_a_connection_is_acknowledged_when_it_comes_again() -> None:
    known = memory()
    first = identify(known, incoming(7))
    number = known.connection
    known.begin(resumed=True)
    assert known.settle(first, number + 1) == []
    delivery, verdict = known.identify(incoming(7, dup=True), overlap=False, now=0)
    assert (delivery.id, verdict) == (first, Verdict.ACKNOWLEDGE)


def test_lost_session_begins_anew() -> None:
    known = memory()
    first = identify(known, incoming(1))
    known.filters["t"] = 1
    known.begin(resumed=False)
    assert known.filters == {}
    assert identify(known, incoming(1)) != first
    assert settle(known, first) == []


def test_settling_an_unknown_message_does_nothing() -> None:
    assert settle(memory(), "nothing") == []


def test_memory_is_bounded() -> None:
    known = memory()
    for number in range(20_000):
        settle(known, identify(known, incoming(number % 65_535 + 1, b"%d" % number)))
    assert len(known._deliveries) <= 1024
    assert len(known._given) <= 4096
    assert len(known._by_id) <= 1024


def test_stored_message_is_known_by_its_content() -> None:
    one, two = memory(name="one"), memory(name="two")
    first = identify(one, incoming(1, retain=True))
    assert identify(one, incoming(9, retain=True)) == first
    assert identify(two, incoming(5, retain=True)) == first
    assert two.passing(incoming(0, retain=True), overlap=False, now=0) == first
    assert identify(one, incoming(10, b"y", retain=True)) != first
    assert identify(one, incoming(11, retain=False)) != first


def test_one_settlement_acknowledges_every_packet_of_a_stored_message() -> None:
    known = memory()
    identity = identify(known, incoming(1, retain=True))
    assert identify(known, incoming(2, retain=True)) == identity
    assert sorted(settle(known, identity)) == [1, 2]


def test_stored_message_that_came_live_is_that_message() -> None:
    live = LiveTopics()
    before, after = SessionMemory("before", live), SessionMemory("after", live)
    older = before.passing(incoming(0, b"older"), overlap=False, now=0)
    newest = before.passing(incoming(0, b"newest"), overlap=False, now=0)
    assert after.passing(incoming(0, b"newest", retain=True), overlap=False, now=0) == newest
    assert after.passing(incoming(0, b"older", retain=True), overlap=False, now=0) not in (older, newest)


def copies(known: SessionMemory, *packets: Incoming, now: float = 0.0) -> list[tuple[str, Verdict]]:
    found = [known.identify(packet, overlap=True, now=now) for packet in packets]
    return [(delivery.id, verdict) for delivery, verdict in found]


def test_copies_come_under_different_subscriptions() -> None:
    known = memory()
    a, b, c = (known.ids.number(index) or 0 for index in range(3))
    found = copies(known, *(incoming(mid, under=(u,)) for mid, u in enumerate((a, b, c, a, b), start=1)))
    assert [verdict for _, verdict in found] == [
        Verdict.HAND_OVER,
        Verdict.HELD,
        Verdict.HELD,
        Verdict.HAND_OVER,
        Verdict.HELD,
    ]
    first, second = found[0][0], found[3][0]
    assert [identity for identity, _ in found] == [first, first, first, second, second]
    assert first != second
    assert sorted(settle(known, first)) == [1, 2, 3]
    # A copy that comes after its message was settled needs its acknowledgement only.
    assert copies(known, incoming(6, under=(c,))) == [(second, Verdict.HELD)]
    assert sorted(settle(known, second)) == [4, 5, 6]


def test_copies_may_be_interleaved() -> None:
    known = memory()
    a, b = (known.ids.number(index) or 0 for index in range(2))
    found = copies(known, *(incoming(mid, under=(u,)) for mid, u in enumerate((a, a, b, b), start=1)))
    assert [identity for identity, _ in found] == [found[0][0], found[1][0], found[0][0], found[1][0]]
    assert found[0][0] != found[1][0]


def test_late_copy_of_a_settled_message_is_acknowledged() -> None:
    known = memory()
    a, b = (known.ids.number(index) or 0 for index in range(2))
    ((identity, _),) = copies(known, incoming(1, under=(a,)))
    settle(known, identity)
    assert copies(known, incoming(2, under=(b,))) == [(identity, Verdict.ACKNOWLEDGE)]


def test_look_alikes_are_no_copies() -> None:
    known = memory()
    a, b = (known.ids.number(index) or 0 for index in range(2))
    ids = [copies(known, incoming(1, under=(a,)))[0][0]]
    ids += [copies(known, incoming(2, under=(a,)))[0][0]]  # under the same subscription
    ids += [copies(known, incoming(3, under=(b,)), now=60.0)[0][0]]  # much later
    known.filters_changed()
    ids += [copies(known, incoming(4, under=(a,)), now=60.0)[0][0]]  # subscriptions have changed meanwhile
    ids += [copies(known, incoming(5), now=60.0)[0][0]]  # nobody tells
    ids += [known.identify(incoming(6, under=(b,)), overlap=False, now=60.0)[0].id]  # one filter only takes this topic
    assert len(set(ids)) == len(ids)


def test_reused_packet_identifiers_are_noticed() -> None:
    known = memory()
    for mid in (1, 2, 3):
        settle(known, identify(known, incoming(mid)))
        assert not known.reuses_packet_ids
    identify(known, incoming(1, b"y"))
    assert known.reuses_packet_ids
