"""A message on its way through the groups that want it: one :class:`Delivery` for each of them.

Every delivery is answered exactly once: accepted, declined (the group is over and does not want it) or abandoned (the
group leaves without having recorded it). What all of them have answered together is the message's outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from event_triggers.message import Message
from event_triggers.sources.base import Outcome

if TYPE_CHECKING:
    from event_triggers.entry import Responder
    from event_triggers.subscription import Subscription

__all__ = ["Answer", "Delivery", "Handout"]


class Answer(Enum):
    """What a group says of a message it was handed."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    ABANDONED = "abandoned"


@dataclass(slots=True, eq=False)
class Handout:
    """One message on its way through all the groups that want it."""

    message: Message
    open: int = 0
    accepted_for: set[tuple[str, str]] = field(default_factory=set)
    """The events, each with its group, that have recorded it."""
    abandoned_for: set[tuple[str, str]] = field(default_factory=set)
    """The events that were left before they could."""
    held: bool = False
    """Whether a group keeps it, so that it does not count as under way: see :meth:`Delivery.hold`."""

    @property
    def outcome(self) -> Outcome:
        """How it ended, once nothing is open."""
        # A group may be here twice for a moment, when it starts again; then it is enough that one has recorded it. But
        # one of its events does not answer for another, which may have been handed the message later.
        if self.abandoned_for - self.accepted_for:
            return Outcome.ABANDONED
        return Outcome.ACCEPTED if self.accepted_for else Outcome.RELEASED


class Delivery:
    """A message handed to one group, for one or several of its events."""

    __slots__ = ("_answered", "_handout", "_responder", "_subscription", "events", "message")

    def __init__(
        self, handout: Handout, events: tuple[str, ...], subscription: Subscription, responder: Responder
    ) -> None:
        self.message = handout.message
        self.events = events
        self._handout = handout
        self._subscription = subscription
        self._responder = responder
        self._answered = False

    def accept(self) -> None:
        """It is recorded: the broker may forget it. Twice is the same as once."""
        self.answer(Answer.ACCEPTED)

    def decline(self) -> None:
        """The group does not need it after all."""
        self.answer(Answer.DECLINED)

    def abandon(self) -> None:
        """The group leaves before it could record it: its queue is to deliver it again, to whoever waits then."""
        self.answer(Answer.ABANDONED)

    def answer(self, answer: Answer) -> None:
        """Say how it ended. Only the first answer counts."""
        if self._answered:
            return
        self._answered = True
        events = ((self._subscription.group, event) for event in self.events)
        if answer is Answer.ACCEPTED:
            self._handout.accepted_for.update(events)
        elif answer is Answer.ABANDONED:
            self._handout.abandoned_for.update(events)
        self._handout.open -= 1
        self._subscription.answered(self)
        self._responder.answered(self, self._handout)

    def hold(self) -> None:
        """It is not answered for long: until then it does not count among what its channel has under way.

        So who waits for other messages to go with it does not pause the broker that is to bring them. Whoever holds
        messages bounds how many.
        """
        if not self._answered:
            self._responder.hold(self._handout)

    def is_from(self, responder: Responder) -> bool:
        """Whether it came over this channel."""
        return self._responder is responder

    @property
    def subscription(self) -> Subscription:
        """The group's."""
        return self._subscription

    def settlement_done(self) -> None:
        """The broker has been told, or need not be."""
        self._subscription.settlement_done()
