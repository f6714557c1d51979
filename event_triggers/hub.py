"""The hub: one per event loop, shared by all groups of a triggerer.

Flow: a group subscribes with all its interests; each goes to the channel of its source's key, made when the first asks and
closed when the last leaves. See :mod:`event_triggers.channel` for what happens in one.

Invariants:

* At most one live channel per key, so at most one connection per key; one that closes is waited for before its key is opened
  again (a durable MQTT session must not be fought over by ourselves).
* A channel's tasks belong to the hub and to no group: they run outside every group's context and end with the last group.

The hub keeps nothing over a restart; see the channel.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio

from event_triggers.channel import Channel, ChannelStatistics
from event_triggers.clock import Clock, SystemClock
from event_triggers.sources.base import BrokerConnection, Opening, Source
from event_triggers.subscription import Answer, Interest, Subscription

__all__ = ["Hub", "HubStatistics"]

log = logging.getLogger(__name__)

_LEAVE_WITHIN = 20.0
"""Seconds that leaving (last acknowledgements, disconnecting, removing sessions) may take."""


class HubStatistics(NamedTuple):
    """The hub at a glance."""

    channels: tuple[ChannelStatistics, ...]


class Hub:
    """Shared streams for the groups of one event loop.

    :param connection: looks an Airflow connection up by its id.
    :param clock: the time to go by.
    """

    def __init__(
        self, connection: Callable[[str], Awaitable[BrokerConnection]], *, clock: Clock | None = None
    ) -> None:
        self._connection = connection
        self._clock = clock or SystemClock()
        self._channels: dict[Hashable, Channel] = {}
        self._closing: dict[Hashable, asyncio.Task[None]] = {}
        self._threads = anyio.CapacityLimiter(8)

    @asynccontextmanager
    async def subscribe(self, group: str, interests: Iterable[Interest]) -> AsyncIterator[Subscription]:
        """Listen for a group's events while the context is open.

        What the group leaves unanswered is given back to the brokers.

        :param group: an identity that is the same after a restart and on another triggerer.
        """
        subscription = Subscription(group)
        keys: dict[Hashable, None] = {}
        try:
            for interest in interests:
                key = (type(interest.source), interest.source.key(group))
                keys[key] = None
                self._channel(key, interest.source, group).add(subscription, interest)
            yield subscription
        finally:
            with anyio.move_on_after(_LEAVE_WITHIN, shield=True):
                await self._leave(subscription, keys)

    def _opening(self, group: str) -> Opening:
        return Opening(group=group, connection=self._connection, clock=self._clock)

    def _channel(self, key: Hashable, source: Source, group: str) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = Channel(source, self._opening(group), lambda failed: self._failed(key, failed), self._threads)
            self._channels[key] = channel
            # An empty context: a channel outlives the group that happens to open it, and must not log in its name.
            channel.start(self._closing.get(key), contextvars.Context().run)
        return channel

    def _failed(self, key: Hashable, channel: Channel) -> None:
        if self._channels.get(key) is channel:
            del self._channels[key]

    async def _leave(self, subscription: Subscription, keys: Iterable[Hashable]) -> None:
        answer = Answer.DECLINED if subscription.over else Answer.ABANDONED
        channels = dict.fromkeys(channel for channel, _ in subscription.entries)
        closing = []
        for channel in channels:
            if channel.remove(subscription, answer):
                for key in [key for key in keys if self._channels.get(key) is channel]:
                    del self._channels[key]
                    closing.append(self._close(key, channel))
        if closing:
            await asyncio.wait(closing)

    def _close(self, key: Hashable, channel: Channel) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(channel.close(), name=f"event_triggers: close {channel.source.label}")
        self._closing[key] = task
        task.add_done_callback(lambda _: self._closing.pop(key, None) if self._closing.get(key) is task else None)
        return task

    async def forget(self, group: str, sources: Iterable[Source]) -> None:
        """The group has ended for good: remove what it left at the brokers. Never raises; what fails is logged."""
        distinct = {(type(source), source.key(group)): source for source in sources}
        for key, source in distinct.items():
            if key in self._channels:
                continue  # somebody else (a new try of the same group) listens already
            try:
                with anyio.fail_after(_LEAVE_WITHIN):
                    await source.forget(self._opening(group))
            except Exception as error:
                log.warning(
                    "%s: what this group left at the broker could not be removed (%s: %s)", source.label, type(error).__name__, error
                )

    def statistics(self) -> HubStatistics:
        """What all channels have done so far."""
        return HubStatistics(tuple(channel.statistics() for channel in self._channels.values()))
