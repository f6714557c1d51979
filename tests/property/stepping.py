"""What the state machines of the hub share: an event loop that runs until it is idle, and groups that act step by step.

A machine changes one thing, lets the loop run until only the clock or the machine itself could move it on, and looks.
So any interleaving that hypothesis thinks of can be played again.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio
from hypothesis import HealthCheck, Phase, settings

from event_triggers.callables import CallableError, Callables, MatchCallable
from event_triggers.errors import ConnectionMissingError, StreamError
from event_triggers.hub import Hub
from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection
from event_triggers.subscription import Delivery, Interest, Subscription
from event_triggers.testing import ManualClock, MemoryBroker

__all__ = ["MANY", "Group", "HubModel", "StepLoop", "SteppedCallables"]


MANY = settings(
    max_examples=200,
    stateful_step_count=40,
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
        super().__init__(selector)
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def run_until_idle(self) -> None:
        """Run whatever can run; due or not, timers do not count."""
        self.run_forever()
        assert not self.errors, self.errors

    def run(self, act: Callable[[], Any]) -> Any:
        """Call something inside the loop, and then let everything run."""
        result: list[Any] = []

        async def call() -> None:
            result.append(act())

        task = self.create_task(call())
        self.run_until_idle()
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


@dataclass(eq=False)
class Group:
    """A group that a machine moves."""

    interests: dict[str, Interest]
    name: str = "group"
    subscription: Subscription | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    """All it was ever handed."""
    unanswered: list[Delivery] = field(default_factory=list)
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
            deliveries = await subscription.receive()
            self.deliveries += deliveries
            self.unanswered += deliveries

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
        self.hub = Hub(_no_connection, clock=self.clock)
        self.hub._callables = self.callables = SteppedCallables()
        self.groups: list[Group] = []

    def subscribe(self, interests: Iterable[Interest], name: str = "group") -> Group:
        """One more group."""
        group = Group({interest.name: interest for interest in interests}, name)

        def start() -> None:
            group.task = self.loop.create_task(group.listen(self.hub))

        self.groups.append(group)
        self.loop.run(start)
        return group

    def leave(self, group: Group, *, over: bool) -> None:
        """The group goes, and may leave messages unanswered."""
        group.over = over
        self.loop.run(group.leaving.set)
        self._gone(group)

    def cancel(self, group: Group) -> None:
        """The group's task is cancelled."""
        assert group.task is not None
        self.loop.run(group.task.cancel)
        assert group.task.cancelled()
        self._gone(group)

    def _gone(self, group: Group) -> None:
        assert group.task is not None
        assert group.task.done(), "leaving hangs"
        self.groups.remove(group)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run(lambda: self.clock.advance(seconds))

    def break_something(self, what: str, times: int) -> None:
        """The connection, the next openings, or the next settlements fail."""
        error = StreamError(f"{what} failed")
        if what == "open":
            self.broker.fail_next_open(error, times=times)
        elif what == "settle":
            self.broker.fail_next_settle(error, times=times)
        if what in ("cut", "open"):
            self.loop.run(self.broker.cut)

    def calm_down(self, rounds: int = 5) -> None:
        """Nothing fails any more: let callables answer and time pass until all is mended."""
        self.broker._failing_opens.clear()
        self.broker._failing_settles.clear()
        for _ in range(rounds):
            while self.callables.pending:
                self.loop.run(lambda: self.callables.answer(0))
            self.advance(40)

    def check_nothing_left(self) -> None:
        """After the last group: no connection, no task."""
        assert self.groups == []
        assert self.hub.statistics().channels == ()
        assert self.broker.statistics().open_streams == 0
        left = asyncio.all_tasks(self.loop)
        assert not left, left

    def close(self) -> None:
        """End the loop."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()  # only after a failure
        self.loop.run_forever()
        self.loop.close()
        logging.getLogger("event_triggers").setLevel(logging.NOTSET)
        asyncio.set_event_loop(None)
