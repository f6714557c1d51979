"""Groups that share a queue through the hub: one long poll, what is recorded is deleted, the rest stays; also while
something breaks. On moto, which never throttles and takes any credentials: a gate before it does that in its place."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from event_triggers.delivery import Delivery
from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources.sqs import SqsQueue
from event_triggers.subscription import Subscription
from servers.proxy import TcpProxy
from servers.sqs import MotoServer, SqsServer
from tests.integration.faults import corrected, live, take, told, until_told
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


# ---------------------------------------------------------------------- recorded, but not acknowledged


class Hidden:
    """A message that somebody received who then died: invisible until it is shown."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._receipt = ""

    async def send(self, body: str) -> str:
        (sent,) = await self.queue.send(body)
        answer = await self.queue.call("receive_message", MaxNumberOfMessages=1, VisibilityTimeout=600)
        assert [raw["MessageId"] for raw in answer["Messages"]] == [sent]
        self._receipt = answer["Messages"][0]["ReceiptHandle"]
        return sent

    async def show(self) -> None:
        """Its time is up."""
        await self.queue.call("change_message_visibility", ReceiptHandle=self._receipt, VisibilityTimeout=0)


async def lingering_ends(hub: Hub) -> None:
    with anyio.fail_after(PATIENCE):
        while hub.statistics().channels:  # noqa: ASYNC110 - nobody tells when it does
            await anyio.sleep(0.05)


async def test_what_was_recorded_before_a_crash_does_not_stay(server: SqsServer) -> None:
    """Its group ends before the message is visible again: it is deleted then, and what nobody wants is not."""
    queue = Queue(server)
    hub = Hub(opening(server.endpoint_url).connection)
    source, hidden = queue.source(visibility_timeout=600, unmatched="delete"), Hidden(queue)
    recorded = await hidden.send("recorded")
    async with hub.subscribe("group", [Interest("x", source, count=1, recorded=frozenset({recorded}))]) as group:
        await queue.send("last")
        (delivery,) = await take(group)
        assert delivery.message.body == b"last"
        group.over = True
    (channel,) = hub.statistics().channels
    assert (channel.lingering, channel.owed) == (True, 1)
    await queue.send("of the next group")
    await hidden.show()
    await lingering_ends(hub)
    await queue.kept(1)


async def test_a_group_that_finds_all_recorded_leaves_nothing(server: SqsServer) -> None:
    queue = Queue(server)
    hub = Hub(opening(server.endpoint_url).connection)
    source, hidden = queue.source(visibility_timeout=600), Hidden(queue)
    recorded = await hidden.send("recorded")
    interest = Interest("x", source, count=0, recorded=frozenset({recorded}))
    async with hub.subscribe("group", [interest]) as group:
        await live(group)
        await hidden.show()
        with anyio.fail_after(PATIENCE):
            await group.repaid()
        group.over = True
    assert hub.statistics().channels == ()
    await queue.kept(0)


async def test_what_another_process_recorded_is_deleted_by_its_receipt(server: SqsServer) -> None:
    """While it is still invisible: nobody has to receive it again, and nobody else can."""
    queue = Queue(server)
    hub = Hub(opening(server.endpoint_url).connection)
    source = queue.source(visibility_timeout=600)
    (identity,) = await queue.send("recorded")
    answer = await queue.call("receive_message", MaxNumberOfMessages=1, VisibilityTimeout=600)
    message = source.recalled(identity, answer["Messages"][0]["ReceiptHandle"])
    assert message is not None
    interest = Interest("x", source, count=0, recorded=frozenset({identity}), recalled=(message,))
    async with hub.subscribe("group", [interest]):
        await queue.kept(0)


def test_how_long_copies_may_take() -> None:
    source = SqsQueue("q", visibility_timeout=100, wait_time_seconds=7)
    assert 107 < source.redelivery < 140
    assert not source.per_group


# ---------------------------------------------------------------------- what breaks


async def test_throttling_is_told_and_ridden_out(
    server: SqsServer, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """It outlasts the SDK's own attempts: the task's log says so, and the message arrives when SQS is well again."""
    queue = Queue(server)
    await queue.send("late")
    # RequestThrottled is SQS's own; 503 with ServiceUnavailable is what an overloaded endpoint answers.
    gate.refuse("ReceiveMessage", "RequestThrottled", "Rate exceeded", times=3, status=403)
    gate.refuse("ReceiveMessage", "ServiceUnavailable", "busy", times=3, status=503)
    hub = Hub(opening(gate.endpoint).connection)
    async with hub.subscribe("group", [Interest("x", queue.source())]) as group:
        assert [one.message.body for one in await take(group)] == [b"late"]
        group.over = True
    assert told(caplog, "SQS asks to slow down: Rate exceeded")
    assert told(caplog, "the connection failed")
    await queue.kept(0)


async def test_queue_that_comes_and_goes_and_comes_again(server: SqsServer, caplog: pytest.LogCaptureFixture) -> None:
    name = f"late-{uuid.uuid4().hex}"
    hub = Hub(opening(server.endpoint_url).connection)
    source = SqsQueue(name, conn_id="somewhere", wait_time_seconds=1)
    async with hub.subscribe("group", [Interest("x", source, count=2)]) as group:
        await until_told(caplog, "the queue does not exist there (yet)")
        url = await anyio.to_thread.run_sync(server.create_queue, name)
        await send(server, url, "first")
        assert [one.message.body for one in await take(group)] == [b"first"]
        caplog.clear()
        await anyio.to_thread.run_sync(lambda: server.client().delete_queue(QueueUrl=url))
        await until_told(caplog, "the queue does not exist there (yet)")
        url = await anyio.to_thread.run_sync(server.create_queue, name)
        await send(server, url, "second")
        assert [one.message.body for one in await take(group)] == [b"second"]
        group.over = True


async def send(server: SqsServer, url: str, body: str) -> None:
    await anyio.to_thread.run_sync(lambda: server.client().send_message(QueueUrl=url, MessageBody=body))


async def test_credentials_that_are_corrected_later(
    server: SqsServer, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(server)
    wrong = await opening(gate.endpoint, login="wrong").connection("somewhere")
    hub = corrected(opening(gate.endpoint, login="right").connection, wrong)
    gate.refuse("GetQueueUrl", "InvalidClientTokenId", "unknown key", status=403)
    async with hub.subscribe("group", [Interest("x", queue.source())]) as group:
        await until_told(caplog, "the credentials are refused")
        await live(group)
        await queue.send("let in")
        assert [one.message.body for one in await take(group)] == [b"let in"]
        group.over = True
    assert [key for key, _ in gate.signers][:2] == ["wrong", "right"]


async def test_missing_permission_is_told(server: SqsServer, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(server)
    gate.refuse("DeleteMessageBatch", "AccessDenied", status=403)
    hub = Hub(opening(gate.endpoint).connection)
    await queue.send("x")
    async with hub.subscribe("group", [Interest("x", queue.source())]) as group:
        await take(group)
        assert "allow sqs:GetQueueUrl" in told(caplog, "access is denied")[0]
        group.over = True
    await queue.kept(0)


@pytest.mark.parametrize("how", ["swallowed", "stopped"])
async def test_network_and_server_that_fail(server: SqsServer, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """Cut without a FIN, or nobody there any more: told, and the group goes on by itself."""
    caplog.set_level(logging.INFO)
    queue = Queue(server)
    impatient = {"config_kwargs": {"read_timeout": 2, "connect_timeout": 2, "retries": {"total_max_attempts": 1}}}
    with TcpProxy(server.port) as proxy:
        hub = Hub(opening(f"http://127.0.0.1:{proxy.port}", extra=impatient).connection)
        async with hub.subscribe("group", [Interest("x", queue.source(visibility_timeout=2))]) as group:
            await live(group)
            if how == "swallowed":
                await anyio.to_thread.run_sync(proxy.black_hole)
            else:
                proxy.refuse()
                await anyio.to_thread.run_sync(proxy.cut)
            await until_told(caplog, "SQS cannot be reached")
            await queue.send("meanwhile")
            await anyio.to_thread.run_sync(proxy.restore)
            assert [one.message.body for one in await take(group)] == [b"meanwhile"]
            assert told(caplog, "connected again", logging.INFO)
            group.over = True
    await queue.kept(0)
