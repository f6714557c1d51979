"""Groups that share a queue through the hub: one long poll, what is recorded is deleted, the rest stays. On moto."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from event_triggers.hub import Hub
from event_triggers.subscription import Delivery, Interest, Subscription
from servers.sqs import MotoServer, SqsServer
from tests.integration.sqs_support import PATIENCE, Gate, Queue, opening


@pytest.fixture(scope="module")
def server() -> Iterator[SqsServer]:
    with MotoServer() as server:
        yield server


@pytest.fixture
async def gate(server: SqsServer) -> AsyncIterator[Gate]:
    async with Gate.before(server) as gate:
        yield gate


async def deliveries(subscription: Subscription, count: int) -> list[Delivery]:
    arrived: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(arrived) < count:
            arrived += await subscription.receive()
    return arrived


async def test_groups_share_one_long_poll(server: SqsServer, gate: Gate) -> None:
    queue = Queue(server)
    hub = Hub(opening(gate.endpoint).connection)
    source = queue.source()
    colours = ["red", "green", "blue"]
    async with anyio.create_task_group() as groups:

        async def wait_for(colour: str) -> None:
            interest = Interest(colour, source, pattern={"colour": [colour]}, count=2)
            async with hub.subscribe(f"group-{colour}", [interest]) as subscription:
                for delivery in await deliveries(subscription, 2):
                    assert delivery.message.json["colour"] == colour
                    delivery.accept()
                with anyio.fail_after(PATIENCE):
                    await subscription.settled()

        for colour in colours:
            groups.start_soon(wait_for, colour, name=colour)
        await gate.wait_for("ReceiveMessage", 1)
        assert len(hub.statistics().channels) == 1
        nobody = await queue.send('{"colour": "grey"}', "{broken")
        await queue.send(*(json.dumps({"colour": colour}) for colour in colours * 2))
    assert gate.most_polls == 1
    # What nobody wanted, and what nobody could read, is there still; everything else is gone.
    await queue.kept(2)
    left: set[str] = set()
    with anyio.fail_after(PATIENCE):
        while left != set(nobody):
            left |= {raw["MessageId"] for raw in await queue.receive(5)}


async def test_group_that_leaves_gives_its_message_back_at_once(server: SqsServer, gate: Gate) -> None:
    queue = Queue(server)
    hub = Hub(opening(gate.endpoint).connection)
    source = queue.source(visibility_timeout=600, unmatched="delete")
    (sent,) = await queue.send("x")
    async with hub.subscribe("one", [Interest("x", source)]) as subscription:
        (delivery,) = await deliveries(subscription, 1)
        assert delivery.message.id == sent
    async with hub.subscribe("two", [Interest("x", source)]) as subscription:
        (delivery,) = await deliveries(subscription, 1)
        assert delivery.message.id == sent
        delivery.accept()
        with anyio.fail_after(PATIENCE):
            await subscription.settled()
    await queue.kept(0)
