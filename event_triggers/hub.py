"""The hub: one per event loop, shared by all groups of a triggerer.

Flow: a group subscribes with all its interests; each goes to the channel of its source's key, made when the first
asks and closed when nobody is left who needs it. See :mod:`event_triggers.channel` for what happens in one.

Invariants:

* At most one live channel per key, so at most one connection per key; one that closes is waited for before its key is
  opened again, or its group's session removed (a durable MQTT session must not be fought over by ourselves).
* A channel's tasks belong to the hub and to no group: they run outside every group's context and end with the last
  group. Only a queue that may deliver again what its last group has recorded is read for a while longer; a new group
  joins it, and a loop that ends cancels it like everything else.

The hub keeps nothing over a restart; see the channel.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from event_triggers.callables import Callables
from event_triggers.channel import Channel
from event_triggers.clock import Clock, SystemClock
from event_triggers.delivery import Answer
from event_triggers.entry import Interest
from event_triggers.errors import EventTriggersError
from event_triggers.matching import check_pattern
from event_triggers.owed import Owed
from event_triggers.sources.base import AirflowCall, BrokerConnection, Opening, Source
from event_triggers.statistics import HubStatistics
from event_triggers.subscription import Subscription
from event_triggers.text import plain_logger
from event_triggers.told import Told

__all__ = ["Hub"]

log = plain_logger(__name__)

_TELL_WITHIN = 5.0
"""Seconds that leaving waits for the last acknowledgements, where the channel itself stays a while longer."""

_LEAVE_WITHIN = 20.0
"""Seconds that leaving (last acknowledgements, disconnecting) or removing a session may take."""


class Hub:
    """Shared streams for the groups of one event loop.

    :param connection: looks an Airflow connection up by its id.
    :param clock: the time to go by.
    :param airflow: opens a client of Airflow's API, for sources that are a part of it.
    """

    def __init__(
        self,
        connection: Callable[[str], Awaitable[BrokerConnection]],
        *,
        clock: Clock | None = None,
        airflow: Callable[[], AbstractAsyncContextManager[AirflowCall]] | None = None,
    ) -> None:
        self._connection = connection
        self._airflow = airflow
        self._clock = clock or SystemClock()
        self._channels: dict[Hashable, Channel] = {}
        self._closing: dict[Hashable, asyncio.Task[None]] = {}
        self._lost_sessions: set[str] = set()
        self._callables = Callables()
        self._told = Told()
        self._comparing = asyncio.Lock()

    @asynccontextmanager
    async def subscribe(self, group: str, interests: Iterable[Interest]) -> AsyncIterator[Subscription]:
        """Listen for a group's events while the context is open.

        What the group leaves unanswered is given back to the brokers.

        :param group: an identity that is the same after a restart and on another triggerer.
        :raises InvalidEventError: when a pattern is none.
        """
        # A log that a group wants nothing from need not be opened; a queue may deliver again what it has recorded.
        wanted = [interest for interest in interests if interest.count > 0 or not interest.source.replayable]
        for interest in wanted:
            if interest.pattern is not None:
                check_pattern(interest.pattern, rendered=True)
        subscription = Subscription(group, self._clock, self._comparing)
        joined: dict[Channel, Hashable] = {}
        try:
            for interest in wanted:
                key = _key(interest.source, group)
                channel = self._channel(key, interest.source, group)
                joined[channel] = key
                channel.add(subscription, interest)
            yield subscription
        finally:
            with anyio.move_on_after(_LEAVE_WITHIN, shield=True):
                await self._leave(subscription, joined)

    async def forget(self, group: str, sources: Iterable[Source], *, killed: bool = False) -> None:
        """The group has ended for good: remove what it left at the brokers. Never raises; what fails is logged.

        :param killed: a person has ended it.
        """
        self._lost_sessions.discard(group)
        tasks = []
        for key, source in {_key(source, group): source for source in sources}.items():
            channel = self._channels.get(key)
            if channel is not None:
                if channel.has_groups or not source.per_group:
                    continue  # somebody else (a new try of the same group) listens already
                self._retire(key, channel)
            task = self._spawn(
                self._remove_session(source, group, self._closing.get(key), killed), f"forget {source.label}"
            )
            self._wait_for_before_opening(key, task)
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)

    def has_lost_session(self, group: str) -> bool:
        """Whether a broker has lost the session of this group since this was asked last.

        Perhaps because the group was waited for by another process, too, and has ended there: then the session that was
        made anew here is nobody's. :meth:`forget` removes it.
        """
        lost = group in self._lost_sessions
        self._lost_sessions.discard(group)
        return lost

    def statistics(self) -> HubStatistics:
        """What all channels have done so far."""
        return HubStatistics(tuple(channel.statistics() for channel in self._channels.values()))

    def _opening(self, group: str) -> Opening:
        lost = partial(self._lost_sessions.add, group)
        opening = Opening(group=group, connection=self._connection, clock=self._clock, session_lost=lost)
        return opening if self._airflow is None else replace(opening, airflow=self._airflow)

    def _channel(self, key: Hashable, source: Source, group: str) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = Channel(
                source,
                self._opening(group),
                callables=self._callables.apart(),
                owed=Owed(self._clock, self._told, key),
                on_over=lambda over: self._retire(key, over),
            )
            self._channels[key] = channel
            channel.start(self._closing.get(key), contextvars.Context().run)
        return channel

    def _retire(self, key: Hashable, channel: Channel) -> None:
        """Nobody listens to this channel any more, or nobody can: close it. Safe to repeat."""
        if self._channels.get(key) is channel:
            del self._channels[key]
            self._wait_for_before_opening(key, self._spawn(channel.close(), f"close {channel.source.label}"))

    async def _leave(self, subscription: Subscription, joined: dict[Channel, Hashable]) -> None:
        answer = Answer.DECLINED if subscription.over else Answer.ABANDONED
        for channel in joined:
            channel.remove(subscription, answer)
        closing = {self._closing[key] for key in joined.values() if key in self._closing}
        if closing:
            await asyncio.wait(closing)
        if any(channel.lingers and channel.connected for channel in joined):
            with anyio.move_on_after(_TELL_WITHIN), suppress(EventTriggersError):
                await subscription.settled()

    async def _remove_session(self, source: Source, group: str, after: asyncio.Task[None] | None, killed: bool) -> None:
        try:
            with anyio.fail_after(_LEAVE_WITHIN):
                if after is not None:
                    await asyncio.wait({after})
                await source.forget(replace(self._opening(group), killed=killed))
        except Exception as error:
            log.warning(
                "%s: what group %s left at the broker could not be removed (%s: %s)",
                source.label,
                group,
                type(error).__name__,
                error,
            )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        # An empty context: the hub's tasks outlive the group that happens to start them, and must not log in its name.
        loop = asyncio.get_running_loop()
        return contextvars.Context().run(loop.create_task, work, name=f"event_triggers: {name}")

    def _wait_for_before_opening(self, key: Hashable, task: asyncio.Task[None]) -> None:
        self._closing[key] = task
        task.add_done_callback(lambda _: self._closing.pop(key, None) if self._closing.get(key) is task else None)


def _key(source: Source, group: str) -> Hashable:
    return (source.family, source.key(group))
