"""What the state machines of the hub share: an event loop that runs until it is idle, and groups that act step by step.

A machine changes one thing, lets the loop run until only the clock or the machine itself could move it on, and looks.
Or it lets the loop run only a few steps, and changes the next thing: so everything can happen at every ``await``.
Any interleaving that hypothesis thinks of can be played again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import anyio
from hypothesis import HealthCheck, Phase, settings

from event_triggers.callables import CallableError, Callables, MatchCallable
from event_triggers.delivery import Answer, Delivery, Handout
from event_triggers.entry import Interest, Responder
from event_triggers.errors import ConnectionMissingError
from event_triggers.hub import Hub
from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection
from event_triggers.subscription import Subscription
from event_triggers.testing import ManualClock, MemoryBroker
from tests.property.faults import Faults

__all__ = ["MANY", "Group", "HubModel", "StepLoop", "SteppedCallables"]


MANY = settings(
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "120")),
    stateful_step_count=int(os.environ.get("PROPERTY_STEPS", "40")),
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


class _IdleSelector(selectors.DefaultSelector):
    """Stops its loop when that would wait."""

    idle: Callable[[], None]

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            self.idle()
        return super().select(0)


class StepLoop(asyncio.SelectorEventLoop):
    """An event loop that runs until nothing is ready."""

    def __init__(self) -> None:
        selector = _IdleSelector()
        selector.idle = self.stop
        self._now = 0.0
        super().__init__(selector)
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))
        self.rested = True
        """Whether nothing could run when it last stopped."""
        self.patience: int | None = None
        """How many steps the next :meth:`run` takes, unless it runs until nothing is ready."""

    def time(self) -> float:
        """Stands still but for :meth:`advance`."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Timers that are due by then run next."""
        self._now += seconds

    def run_until_idle(self) -> None:
        """Run whatever can run."""
        self.run_forever()
        self.rested = True
        assert not self.errors, self.errors

    def step(self) -> None:
        """Run what is ready now, once."""
        self.call_soon(self.stop)
        self.run_forever()
        self.rested = False
        assert not self.errors, self.errors

    def run(self, act: Callable[[], Any]) -> Any:
        """Call something inside the loop, and then let everything run, or as much as patience allows."""
        result: list[Any] = []

        async def call() -> None:
            result.append(act())

        task = self.create_task(call())
        steps, self.patience = self.patience, None
        if steps is None:
            self.run_until_idle()
        else:
            for _ in range(steps + 1):
                self.step()
        task.result()
        return result[0]


class SteppedCallables(Callables):
    """Match callables that answer when the machine lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[tuple[asyncio.Future[bool], MatchCallable, Message]] = []

    def apart(self) -> Callables:
        return self

    async def ask(self, accepts: MatchCallable, message: Message) -> bool:
        question: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asked = (question, accepts, message)
        self.pending.append(asked)
        try:
            return await question
        finally:
            self.pending.remove(asked)

    def answer(self, place: int, *, fail: bool = False) -> None:
        """Let one of those asked answer."""
        question, accepts, message = self.pending[place % len(self.pending)]
        if fail:
            question.set_exception(CallableError("failed"))
        else:
            question.set_result(accepts(message))


class Witness:
    """Sees every message handed out and every answer, at the moment it happens."""

    def __init__(self) -> None:
        self.handed: dict[Subscription, list[Delivery]] = {}
        self.answers: dict[Handout, dict[Delivery, str]] = {}
        """Of each message on its way, whoever was handed it, and how he answered (``""`` if he has not)."""
        self._offer, self._answer = Subscription.offer, Delivery.answer

    def offer(self, to: Subscription, handout: Handout, names: Sequence[str], responder: Responder) -> None:
        """Stands for the subscription's."""
        self._offer(to, handout, names, responder)
        delivery = next(reversed(to._open))
        self.handed.setdefault(to, []).append(delivery)
        self.answers.setdefault(handout, {})[delivery] = ""

    def answer(self, delivery: Delivery, answer: Answer) -> None:
        """Stands for the delivery's."""
        answers = self.answers[delivery._handout]
        answers[delivery] = answers[delivery] or answer.value
        self._answer(delivery, answer)

    def watching(self) -> ExitStack:
        """See all that happens in this context."""
        stack = ExitStack()
        stack.enter_context(patch.object(Subscription, "offer", lambda *args: self.offer(*args)))
        stack.enter_context(patch.object(Delivery, "answer", lambda *args: self.answer(*args)))
        return stack

    def open_ids(self) -> set[str]:
        """The messages that somebody has not answered for."""
        return {one.message.id for answers in self.answers.values() for one, how in answers.items() if not how}

    def concluded(self) -> list[dict[Delivery, str]]:
        """The answers for those messages for which the last has come since this was asked before."""
        over = [handout for handout, answers in self.answers.items() if all(answers.values())]
        return [self.answers.pop(handout) for handout in over]


@dataclass(eq=False)
class Group:
    """A group that a machine moves."""

    interests: dict[str, Interest]
    name: str = "group"
    witness: Witness = field(default_factory=Witness)
    subscription: Subscription | None = None
    unanswered: list[Delivery] = field(default_factory=list)
    """What it has received and not answered."""
    recorded: list[Delivery] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    over: bool = False
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def listen(self, hub: Hub) -> None:
        """Take what comes until it is to leave."""
        async with hub.subscribe(self.name, self.interests.values()) as self.subscription:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._collect, self.subscription)
                await self.leaving.wait()
                tasks.cancel_scope.cancel()
            self.subscription.over = self.over

    async def _collect(self, subscription: Subscription) -> None:
        while True:
            self.unanswered += await subscription.receive()

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """All it was ever handed."""
        return [] if self.subscription is None else self.witness.handed.get(self.subscription, [])

    @property
    def live(self) -> set[str]:
        """The events that see every message."""
        entries = [] if self.subscription is None else self.subscription.entries
        return {entry.interest.name for entry in entries if entry.live}

    def answer(self, delivery: Delivery, how: str) -> None:
        """Answer one of the unanswered."""
        self.unanswered.remove(delivery)
        if how == "accept":
            self.recorded.append(delivery)
        getattr(delivery, how)()

    def taken(self, event: str) -> list[Message]:
        """What an event was handed so far, in order."""
        return [delivery.message for delivery in self.deliveries if event in delivery.events]

    def remaining(self, event: str) -> int:
        """How many messages it still wants."""
        return 0 if event in self.dropped else self.interests[event].count - len(self.taken(event))

    def has(self, event: str, message: Message) -> bool:
        """Whether it has had this message, here or before."""
        seen = self.interests[event].recorded | {one.id for one in self.taken(event)}
        return message.id in seen


async def _no_connection(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


class HubModel:
    """A hub on a broker in memory, in a loop of its own, and the groups that listen."""

    def __init__(self) -> None:
        logging.getLogger("event_triggers").setLevel(logging.CRITICAL)
        self.loop = StepLoop()
        asyncio.set_event_loop(self.loop)
        self.clock = ManualClock()
        self.broker = MemoryBroker(clock=self.clock, batch_size=3)
        self.faults = Faults()
        self.hub = Hub(_no_connection, clock=self.clock)
        self.hub._callables = self.callables = SteppedCallables()
        self.witness = Witness()
        self._watching = self.witness.watching()
        self.groups: list[Group] = []
        self.leaving: list[Group] = []
        self.steady = True
        """Whether nothing has hung, and everything has always run to its end, since it was calm."""

    def subscribe(self, interests: Iterable[Interest], name: str = "group") -> Group:
        """One more group."""
        group = Group({interest.name: interest for interest in interests}, name, self.witness)

        def start() -> None:
            group.task = self.loop.create_task(group.listen(self.hub))

        self.groups.append(group)
        self.loop.run(start)
        return group

    def leave(self, group: Group, *, over: bool = False, cancelled: bool = False) -> None:
        """The group goes, and may leave messages unanswered; or its task is cancelled."""
        assert group.task is not None
        group.over = over
        self.groups.remove(group)
        self.leaving.append(group)
        self.loop.run(group.task.cancel if cancelled else group.leaving.set)
        if self.steady and not self.faults.redelivery:  # else it waits a little for the broker to be told
            self.check_left()

    def check_left(self) -> None:
        """Whoever was to go is gone."""
        for group in self.leaving:
            assert group.task is not None
            assert group.task.done(), "leaving hangs"
            assert group.task.cancelled() or group.task.exception() is None
        self.leaving.clear()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.advance(seconds)
        self.loop.run(lambda: self.clock.advance(seconds))

    def hurry(self, steps: int) -> None:
        """Let only a few steps happen after the next thing that is done."""
        self.steady = False
        self.loop.patience = steps

    def fault(self, where: str, how: str) -> None:
        """The next such call at the broker goes wrong."""
        self.steady = self.steady and how != "hang"
        self.faults.add(where, how)

    def break_something(self, what: str, times: int) -> None:
        """The connection, the next openings, or the next settlements fail."""
        if what in ("open", "settle"):
            for _ in range(times):
                self.fault(what, "fail")
        if what in ("cut", "open"):
            self.loop.run(self.broker.cut)

    def calm_down(self) -> None:
        """Nothing fails any more: let callables answer and time pass until all is mended."""
        self.loop.patience = None
        self.loop.run(self.faults.end)
        for turn in range(30):
            while self.callables.pending:
                self.loop.run(lambda: self.callables.answer(0))
            if turn > 1 and not self.clock.sleepers:
                break  # nobody pauses before he tries again
            self.advance(40)
        self.check_left()
        self.steady = True

    def check_nothing_wrong(self) -> None:
        """No call at the broker that must not be."""
        assert not self.faults.wrong, self.faults.wrong

    def check_nothing_left(self) -> None:
        """After the last group: no connection, no task."""
        assert self.groups == []
        assert self.hub.statistics().channels == ()
        assert self.broker.statistics().open_streams == 0
        left = asyncio.all_tasks(self.loop)
        assert not left, left

    def close(self) -> None:
        """End the loop."""
        self._watching.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()  # only after a failure
        self.loop.run_forever()
        self.loop.close()
        logging.getLogger("event_triggers").setLevel(logging.NOTSET)
        asyncio.set_event_loop(None)
