"""The fan-out of one channel: from a message to the groups that want it, and from their answers back to the broker.

Flow::

    ask (callables, may take time) -> dispatch: index -> hand_out -> groups ... answered -> settler -> broker
    pass_over (what a log has that nobody wants)

Invariants:

* :meth:`Fanout.dispatch` and :meth:`Fanout.hand_out` await nothing, so a message is offered to everybody or to nobody.
* Who comes to a queue while others are recording a message is offered it too: it is in the queue as long as that.
* Every message that a queue delivered is settled exactly once, after every group it was handed to has answered. A
  copy that comes while it is under way only renews its receipt (and is offered to those who have come since).
* A copy that comes after it was acknowledged is acknowledged and handed to nobody. A copy of one that some group
  recorded before it came here (:attr:`Interest.recorded`) is that group's no more, but others may still need it.
* What is recorded is owed to the broker until it was told: see :mod:`event_triggers.owed`.

What is remembered of acknowledged messages does not survive a restart; a group brings along what it has recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from event_triggers.callables import Callables
from event_triggers.clock import Clock
from event_triggers.delivery import Delivery, Handout
from event_triggers.entry import Entry, Responder
from event_triggers.interests import InterestIndex
from event_triggers.load import Load
from event_triggers.message import Message
from event_triggers.misses import Misses
from event_triggers.owed import Owed
from event_triggers.settling import Settler
from event_triggers.sources.base import Outcome, Source
from event_triggers.subscription import Subscription
from event_triggers.unread import Unread

__all__ = ["MOST_REMEMBERED", "Fanout"]

MOST_REMEMBERED = 10_000
"""How many recorded messages of one channel are known again when their queue delivers them once more."""

_MOST_AT_ONCE = 500
"""How many messages are passed over before others may run."""
_UNREADABLE_SHOWN = 20
"""How many unreadable messages of one channel are logged one by one."""


class Fanout:
    """Where the messages of one channel go.

    :param source: any of the channel's sources.
    :param callables: runs match callables.
    :param owed: what the channel owes to its broker.
    :param responder: whom the groups answer, the channel.
    :param satisfied: called when an entry has all it wants.
    :param tell: writes into the logs of all groups that listen.
    """

    def __init__(
        self,
        source: Source,
        *,
        callables: Callables,
        clock: Clock,
        owed: Owed,
        responder: Responder,
        satisfied: Callable[[Entry], None],
        tell: Callable[..., None],
    ) -> None:
        self.load = Load()
        self.settler = Settler(source.label, tell, clock)
        self.owed = owed
        self.misses = Misses()
        self.handed_out = 0
        self.unanswered = 0
        self._label = source.label
        self._is_queue = not source.replayable
        self._callables = callables
        self._responder = responder
        self._satisfied = satisfied
        self._tell = tell
        self._under_way: dict[str, Handout] = {}
        self._acknowledged: dict[str, None] = {}
        self._recorded_before: dict[str, None] = {}
        self._unreadable = 0

    # ------------------------------------------------------------------ from the broker to the groups

    async def ask(self, message: Message, index: InterestIndex) -> list[Entry]:
        """The entries whose callables want this message: true until something is awaited."""
        if self._is_queue and message.id in self._acknowledged and not message.stored:
            return []
        return await index.agreeing(message, self._callables)

    def pass_over(self, batch: Unread, index: InterestIndex, begin: int, end: int) -> int:
        """Go over messages of a log that nobody wants; gives the place of the first that is to be dispatched.

        Not over more of them than take some milliseconds. Those are seen to, as far as they need be.
        """
        wanted = index.first_wanted(batch.bodies, begin, min(end, begin + _MOST_AT_ONCE))
        index.seen += wanted - begin
        if wanted > begin:
            self.misses.passed_over(batch, begin, wanted)
        return wanted

    def dispatch(self, message: Message, index: InterestIndex, agreed: Sequence[Entry], *, live: bool) -> None:
        """Hand a message out to the entries that want it, or give it back when there are none.

        :param agreed: what :meth:`ask` has just given.
        :param live: whether it came over the channel's live stream.
        """
        if self._is_queue and message.id in self._acknowledged and not message.stored:
            self._settle(message, Outcome.ACCEPTED)
            return
        index.seen += message.attempt <= 1
        self.misses.saw(message)
        wanting = index.matching(message)
        if (wanting or agreed) and self.hand_out(message, [*wanting, *agreed], live=live):
            return
        unreadable = index.unreadable(message)
        if unreadable:
            self._note_unreadable(message)
        if not self._is_queue:
            return
        under_way = self._under_way.get(message.id)
        if under_way is not None:
            # One more copy of what groups are still recording: only the newest receipt can settle it.
            under_way.message.receipt = message.receipt
        elif message.id in self._recorded_before:
            self._settle(message, Outcome.ACCEPTED)
        else:
            self._settle(message, Outcome.REJECTED if unreadable else Outcome.RELEASED)

    def hand_out(self, message: Message, entries: Iterable[Entry], *, live: bool) -> bool:
        """Offer the message to the groups of these entries; ``False`` when none of them wants it any more."""
        names: dict[Subscription, list[str]] = {}
        wanted = False
        for entry in entries:
            if not entry.open_for(message):
                continue
            wanted = True
            if live and entry.past is not None:
                entry.past.hold(message, entry)
                continue
            names.setdefault(entry.subscription, []).append(entry.interest.name)
            entry.took(message)
            if not entry.remaining:
                self._satisfied(entry)
        if names:
            handout = self._handout(message)
            self.load.woke(len(names))
            for subscription, events in names.items():
                subscription.offer(handout, events, self._responder)
        return wanted

    def offer_under_way(self, entry: Entry) -> None:
        """Offer what others are recording to one that comes only now; its callable is asked apart."""
        index = InterestIndex([entry])
        for handout in list(self._under_way.values()):
            self.hand_out(handout.message, index.matching(handout.message), live=True)

    async def ask_under_way(self, entries: Iterable[Entry]) -> None:
        """Ask the callables of those who have come about what others are recording, and offer it to them."""
        index = InterestIndex(entries)
        for handout in list(self._under_way.values()):
            agreed = await index.agreeing(handout.message, self._callables)
            if self._under_way.get(handout.message.id) is handout:
                self.hand_out(handout.message, agreed, live=True)

    def _handout(self, message: Message) -> Handout:
        handout = self._under_way.get(message.id) if self._is_queue else None
        if handout is not None:
            handout.message.receipt = message.receipt
            return handout
        handout = Handout(message)
        if self._is_queue:
            self._under_way[message.id] = handout
        self.handed_out += 1
        self.unanswered += 1
        self.load.take(message)
        return handout

    def _note_unreadable(self, message: Message) -> None:
        self._unreadable += 1
        if self._unreadable <= _UNREADABLE_SHOWN:
            more = "; further ones are not logged" if self._unreadable == _UNREADABLE_SHOWN else ""
            self._tell(
                logging.WARNING,
                "%s: the message at %s is not JSON, so no pattern can match it; it is skipped%s",
                self._label,
                message.position,
                more,
            )

    # ------------------------------------------------------------------ from the groups to the broker

    def answered(self, delivery: Delivery, handout: Handout) -> None:
        """One group has answered; the last answer settles the message."""
        if handout.open:
            # The others see it through: this group need not wait for them.
            delivery.settlement_done()
            return
        self.unanswered -= 1
        if not self._is_queue:
            self._release(handout)
            delivery.settlement_done()
            return
        message, outcome = handout.message, handout.outcome
        del self._under_way[message.id]
        accepted = outcome is Outcome.ACCEPTED
        if accepted:
            _remember(self._acknowledged, message.id)
            self.owed.add([message.id], being_told=True)

        def done(told: bool) -> None:
            self._release(handout)
            if accepted:
                self._told(message, told)
            delivery.settlement_done()

        self.settler.add(message, outcome, done)

    def _release(self, handout: Handout) -> None:
        if not handout.held:
            self.load.release(handout.message)

    def hold(self, handout: Handout) -> None:
        """A group keeps this message for long; it does not count as under way any more."""
        if not handout.held:
            handout.held = True
            self.load.release(handout.message)

    def know(self, recorded: Collection[str], recalled: Iterable[Message] = ()) -> None:
        """A group has recorded these messages before; copies that nobody needs are to be acknowledged.

        :param recalled: those that can be acknowledged again now. Whether that still means anything to the broker is
            not known, so a copy is expected all the same.
        """
        if self._is_queue:
            for message in recalled:
                if self.owed.is_told(message.id):
                    continue
                self.load.take(message)
                self.settler.add(message, Outcome.ACCEPTED, lambda _, message=message: self.load.release(message))  # type: ignore[misc]
            for identity in recorded:
                _remember(self._recorded_before, identity)
            unheard = (one for one in recorded if one not in self._acknowledged and not self.owed.is_told(one))
            self.owed.add(unheard)

    def recorded_before(self) -> Collection[str]:
        """The ids that groups brought along as recorded."""
        return self._recorded_before.keys()

    def give_back(self, messages: Iterable[Message]) -> None:
        """These were taken from a queue and cannot be dispatched any more."""
        if self._is_queue:
            for message in messages:
                self._settle(message, Outcome.ABANDONED)

    def _settle(self, message: Message, outcome: Outcome) -> None:
        self.load.take(message)

        def done(told: bool) -> None:
            self.load.release(message)
            if outcome is Outcome.ACCEPTED:
                self._told(message, told)

        self.settler.add(message, outcome, done)

    def _told(self, message: Message, told: bool) -> None:
        if told:
            self.owed.told(message.id)
        else:
            self.owed.not_told(message.id)


def _remember(identities: dict[str, None], identity: str) -> None:
    """The newest ones are kept: a copy that comes late is rare, and one that is not known is only handed out again."""
    identities[identity] = None
    if len(identities) > MOST_REMEMBERED:
        del identities[next(iter(identities))]
