"""The hub at a glance, for logs, metrics and tests."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ChannelStatistics", "HubStatistics"]


class ChannelStatistics(NamedTuple):
    """What a channel has done so far."""

    label: str
    connected: bool
    """Whether its live stream is open."""
    opened: int
    """How often that was opened."""
    entries: int
    """Events that still want something from it."""
    messages: int
    """Messages that its live stream has yielded."""
    handed_out: int
    """Messages that some group wanted."""
    unanswered: int
    """Of these, the ones that not every group has answered."""
    owed: int
    """Recorded messages of which a copy may still come, because the broker may not know."""
    lingering: bool
    """Whether no group listens any more, and it is only read for such copies."""


class HubStatistics(NamedTuple):
    """What the hub has open."""

    channels: tuple[ChannelStatistics, ...]
    """The channels that groups listen to, or that linger; one that closes is no longer among them."""
