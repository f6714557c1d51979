"""What brokers were told lately, over all channels of one hub: of these messages no copy can come any more.

A channel ends with its last group, and forgets. But a group that was interrupted often comes back soon, and brings
along what it has recorded: when arrivals were handed over, after a retry, when somebody has cleared its sensor. What is
noted here it need not wait for then.

The newest :data:`MOST_TOLD` are kept; of one that is not there a copy is expected, as after a restart, which nothing
here survives.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["MOST_TOLD", "Told"]

MOST_TOLD = 10_000
"""Of how many messages it is remembered that their broker was told."""


class Told:
    """Which messages of which channels brokers were told of."""

    def __init__(self) -> None:
        self._told: dict[tuple[Hashable, str], None] = {}

    def note(self, channel: Hashable, identity: str) -> None:
        """The broker was told of this message, and has agreed.

        :param channel: the key of the channel that it came over.
        """
        # Noted again it counts as new.
        self._told.pop((channel, identity), None)
        self._told[channel, identity] = None
        if len(self._told) > MOST_TOLD:
            del self._told[next(iter(self._told))]

    def forget(self, channel: Hashable, identity: str) -> None:
        """A copy of this message could not be acknowledged: the broker had not heard after all."""
        self._told.pop((channel, identity), None)

    def knows(self, channel: Hashable, identity: str) -> bool:
        """Whether that is remembered."""
        return (channel, identity) in self._told
