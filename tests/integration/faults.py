"""What the fault tests share that look at a broker through the hub: a group's task log, and taking messages."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
import pytest

from event_triggers.delivery import Delivery
from event_triggers.hub import Hub
from event_triggers.sources.base import BrokerConnection
from event_triggers.subscription import Subscription

__all__ = ["PATIENCE", "corrected", "live", "take", "told", "until_told"]

PATIENCE = 40.0
"""Seconds that any wait of these tests may take."""


def told(caplog: pytest.LogCaptureFixture, text: str, level: int = logging.WARNING) -> list[str]:
    """The lines with this text in them, from this level on, that went into the log of a task that waits."""
    ours = (one for one in caplog.records if one.name == "event_triggers.subscription" and one.levelno >= level)
    return [line for line in (one.getMessage() for one in ours) if text in line]


async def until_told(
    caplog: pytest.LogCaptureFixture, text: str, level: int = logging.WARNING, *, patience: float = PATIENCE
) -> str:
    """Wait for such a line; gives the first one.

    :param patience: seconds; for what is only told after several of a broker's own time limits, take more.
    """
    with anyio.move_on_after(patience):
        while not (lines := told(caplog, text, level)):  # noqa: ASYNC110 - nobody tells when it does
            await anyio.sleep(0.02)
        return lines[0]
    raise AssertionError("\n".join([f"nobody told {text!r} within {patience:g} s, only:", *told(caplog, "", 0)]))


async def live(subscription: Subscription) -> None:
    """Wait until the group can miss nothing any more."""
    with anyio.fail_after(PATIENCE):
        await subscription.live()


async def take(subscription: Subscription, count: int = 1) -> list[Delivery]:
    """Receive so many messages, accept them, and wait until the broker knows."""
    taken: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(taken) < count:
            for delivery in await subscription.receive():
                delivery.accept()
                taken.append(delivery)
        await subscription.settled()
    assert len(taken) == count
    return taken


def corrected(look_up: Callable[[str], Awaitable[BrokerConnection]], wrong: BrokerConnection) -> Hub:
    """A hub that finds a wrong connection the first time, and then one that somebody has corrected."""
    asked = 0

    async def first_wrong(conn_id: str) -> BrokerConnection:
        nonlocal asked
        asked += 1
        return wrong if asked == 1 else await look_up(conn_id)

    return Hub(first_wrong)
