"""Patterns about the message, through the hub: they need no JSON, unless they ask for it."""

from __future__ import annotations

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.sources.base import Outcome
from event_triggers.testing import MemoryQueue
from tests.unit.hub_kit import Kit, idle, want

QUEUE = MemoryQueue("queue")
OF_KEY = {"$message": {"key": ["mine"]}}


async def test_a_pattern_over_the_key_takes_a_message_that_is_no_json(kit: Kit) -> None:
    async with kit.group(want(QUEUE, "key", pattern=OF_KEY), want(QUEUE, "body", pattern={"n": [1]})) as group:
        kit.broker.publish("queue", b"no JSON", key=b"mine")
        (delivery,) = await kit.received(group, 1)
        assert delivery.events == ("key",)


async def test_only_a_message_whose_body_would_decide_is_unreadable(kit: Kit) -> None:
    async with kit.group(want(QUEUE, pattern={"n": [1], **OF_KEY})):
        kit.broker.publish("queue", b"no JSON", key=b"other")
        await idle()
        assert [one.outcome for one in kit.broker.settled("queue")] == [Outcome.RELEASED]
    async with kit.group(want(QUEUE, pattern={"n": [1], **OF_KEY}), name="another"):
        kit.broker.publish("queue", b"no JSON", key=b"mine")
        await idle()
        assert kit.broker.settled("queue")[-1].outcome is Outcome.REJECTED


async def test_a_template_that_was_not_rendered_is_refused_where_it_is_needed(kit: Kit) -> None:
    with pytest.raises(InvalidEventError, match=r"\['n'\]\[0\]\['numeric'\]\[1\]: expected a number"):
        async with kit.group(want(QUEUE, pattern={"n": [{"numeric": [">", "{{ x }}"]}]})):
            pass
