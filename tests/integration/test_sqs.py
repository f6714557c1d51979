"""What SqsQueue promises beyond the conformance suite, on moto and on ElasticMQ."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from event_triggers.errors import StreamError
from event_triggers.sources.base import Outcome
from event_triggers.sources.sqs import SqsQueue
from event_triggers.testing import ManualClock
from servers.process import ServerFailed
from servers.sqs import ElasticMqServer, MotoServer, SqsServer
from tests.integration.sqs_support import PATIENCE, Gate, Queue, asleep, opening, pull, settle
from tests.support import missing


@pytest.fixture(scope="module", params=[MotoServer, ElasticMqServer], ids=lambda server: server.name)
def server(request: pytest.FixtureRequest) -> Iterator[SqsServer]:
    server: SqsServer = request.param()
    try:
        server.start()
    except ServerFailed as error:
        server.close()
        missing(str(error))
    yield server
    server.close()


@pytest.fixture
async def gate(server: SqsServer) -> AsyncIterator[Gate]:
    async with Gate.before(server) as gate:
        yield gate


class TestMessages:
    async def test_attributes_become_headers_and_times(self, server: SqsServer) -> None:
        queue = Queue(server)
        attributes = {
            "text": {"DataType": "String", "StringValue": "f\u00fcnf"},
            "bytes": {"DataType": "Binary", "BinaryValue": b"\xff\x00"},
        }
        (sent,) = await queue.send('{"a": 1}', MessageAttributes=attributes)
        async with queue.source().open(opening(server.endpoint_url)) as stream:
            (message,) = await pull(stream)
            assert (message.id, message.position, message.stream) == (sent, sent, queue.name)
            assert dict(message.headers) == {"text": "f\u00fcnf".encode(), "bytes": b"\xff\x00"}
            assert message.key is None
            assert message.timestamp is not None
            assert message.attempt == 1
            await settle(stream, message, outcome=Outcome.RELEASED)
            (again,) = await pull(stream)
            assert (again.id, again.attempt, again.timestamp) == (message.id, 2, message.timestamp)

    async def test_fifo_queue_keeps_order_and_shows_its_attributes(self, server: SqsServer) -> None:
        queue = Queue(server, fifo=True)
        bodies = [f"{n:02}" for n in range(25)]
        for body in bodies:
            await queue.send(body, group="orders")
        seen: list[str] = []
        async with queue.source().open(opening(server.endpoint_url)) as stream:
            while len(seen) < len(bodies):
                messages = await pull(stream)
                for message in messages:
                    headers = dict(message.headers)
                    assert message.key == headers["MessageGroupId"] == b"orders"
                    assert headers["MessageDeduplicationId"]
                    assert headers["SequenceNumber"].isdigit()
                    seen.append(message.text)
                await settle(stream, *messages)
        assert seen == bodies

    async def test_fifo_order_survives_a_release(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server, fifo=True)
        await queue.send("1", "2", "3", group="a")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream, 3)
            await settle(stream, *messages, outcome=Outcome.RELEASED)
            (asked,) = gate.asked("ChangeMessageVisibilityBatch")
            assert [entry["ReceiptHandle"] for entry in asked["Entries"]] == [
                message.receipt.handle for message in reversed(messages)
            ]
            again = await pull(stream, 3)
            assert [m.text for m in again] == ["1", "2", "3"]
            await settle(stream, *again)
        await queue.kept(0)

    async def test_queue_by_url(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("x")
        source = SqsQueue(queue.url, conn_id="somewhere")
        assert source.name == queue.name
        async with source.open(opening(server.endpoint_url)) as stream:
            (message,) = await pull(stream)
            assert message.stream == queue.name
            await settle(stream, message)
        await queue.kept(0)


class TestHolding:
    async def test_held_message_stays_invisible_beyond_its_timeout(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("mine")
        async with queue.source(visibility_timeout=4).open(opening(server.endpoint_url)) as stream:
            (message,) = await pull(stream)
            assert await queue.receive(6) == []
            await settle(stream, message)
        await queue.kept(0)

    async def test_extends_what_is_held_and_nothing_else(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        clock = ManualClock()
        await queue.send(*(str(n) for n in range(12)))
        async with queue.source(visibility_timeout=40).open(opening(gate.endpoint, clock=clock)) as stream:
            messages = await pull(stream, 12)
            await settle(stream, *messages[:10])
            await asleep(clock)
            for rounds in (1, 2, 3):
                clock.advance(10)
                extended = await gate.wait_for("ChangeMessageVisibilityBatch", rounds)
                entries = extended[-1]["Entries"]
                assert {entry["ReceiptHandle"] for entry in entries} == {m.receipt.handle for m in messages[10:]}
                assert {entry["VisibilityTimeout"] for entry in entries} == {40}
                await asleep(clock)
            await settle(stream, *messages[10:])
            clock.advance(10)
            await asleep(clock)
            clock.advance(10)
            await asleep(clock)
            assert len(gate.asked("ChangeMessageVisibilityBatch")) == 3
        assert len(gate.asked("ChangeMessageVisibilityBatch")) == 3, "closing gave back what was settled"

    async def test_fresh_messages_are_not_extended_yet(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        clock = ManualClock()
        async with queue.source(visibility_timeout=40).open(opening(gate.endpoint, clock=clock)) as stream:
            await asleep(clock)
            clock.advance(5)
            await queue.send("fresh")
            await pull(stream)
            clock.advance(5)
            await asleep(clock)
            assert gate.asked("ChangeMessageVisibilityBatch") == []

    async def test_many_are_extended_in_batches(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        clock = ManualClock()
        await queue.send(*(str(n) for n in range(23)))
        async with queue.source().open(opening(gate.endpoint, clock=clock)) as stream:
            messages = await pull(stream, 23)
            await asleep(clock)
            clock.advance(15)
            batches = await gate.wait_for("ChangeMessageVisibilityBatch", 3)
            assert [len(batch["Entries"]) for batch in batches] == [10, 10, 3]
            await settle(stream, *messages)
            assert [len(batch["Entries"]) for batch in gate.asked("DeleteMessageBatch")] == [10, 10, 3]
        await queue.kept(0)

    async def test_lost_delivery_is_dropped_and_comes_again(
        self, server: SqsServer, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        queue = Queue(server)
        clock = ManualClock()
        await queue.send("x")
        caplog.set_level(logging.WARNING, logger="event_triggers")
        async with queue.source().open(opening(gate.endpoint, clock=clock)) as stream:
            (message,) = await pull(stream)
            # Somebody deletes it behind our back: no receipt is good any more.
            await queue.call("delete_message", ReceiptHandle=message.receipt.handle)
            await asleep(clock)
            clock.advance(15)
            await gate.wait_for("ChangeMessageVisibilityBatch", 1)
            await asleep(clock)
            assert message.id in caplog.text
            assert "will come again" in caplog.text
            clock.advance(30)
            await asleep(clock)
            assert len(gate.asked("ChangeMessageVisibilityBatch")) == 1

    async def test_closing_gives_back_at_once(self, server: SqsServer) -> None:
        queue = Queue(server)
        sent = await queue.send("a", "b", "c")
        async with queue.source(visibility_timeout=600).open(opening(server.endpoint_url)) as stream:
            messages = await pull(stream, 3)
            await settle(stream, messages[0])
        again = await queue.receive(5)
        assert {raw["MessageId"] for raw in again} == set(sent) - {messages[0].id}

    async def test_cancelling_gives_back_at_once(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("a")
        got = asyncio.Event()

        async def hold() -> None:
            async with queue.source(visibility_timeout=600).open(opening(server.endpoint_url)) as stream:
                await pull(stream)
                got.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hold(), name="holder")
        with anyio.fail_after(PATIENCE):
            await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await queue.receive(5)) == 1

    async def test_error_of_the_body_comes_out_as_it_is(self, server: SqsServer) -> None:
        queue = Queue(server)
        with pytest.raises(LookupError, match=r"^'as it is'$"):
            async with queue.source().open(opening(server.endpoint_url)):
                raise KeyError("as it is")


class TestSettling:
    async def test_release_takes_longer_with_every_delivery(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("nobody wants me")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            for outcome in (Outcome.RELEASED, Outcome.REJECTED, Outcome.RELEASED):
                await settle(stream, *await pull(stream), outcome=outcome)
            # Who wanted it and could not record it must not wait for it.
            await settle(stream, *await pull(stream), outcome=Outcome.ABANDONED)
            await settle(stream, *await pull(stream))
        asked = gate.asked("ChangeMessageVisibilityBatch")
        assert [request["Entries"][0]["VisibilityTimeout"] for request in asked] == [0, 1, 2, 0]
        await queue.kept(0)

    async def test_unmatched_delete(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("a")
        source = queue.source(unmatched="delete")
        async with source.open(opening(server.endpoint_url)) as stream:
            await settle(stream, *await pull(stream), outcome=Outcome.RELEASED)  # nobody asks for messages: it is kept
            await stream.watch(source)
            for outcome in (Outcome.REJECTED, Outcome.ABANDONED):
                await settle(stream, *await pull(stream), outcome=outcome)
            await queue.kept(1)
            await settle(stream, *await pull(stream), outcome=Outcome.RELEASED)
            await queue.kept(0)

    async def test_unmatched_delete_needs_everybody(self, server: SqsServer) -> None:
        queue = Queue(server)
        deleting, releasing = queue.source(unmatched="delete"), queue.source()
        assert deleting.key("a") == releasing.key("b")
        await queue.send("a")
        async with deleting.open(opening(server.endpoint_url)) as stream:
            await stream.watch(deleting)
            await stream.watch(releasing)
            await settle(stream, *await pull(stream), outcome=Outcome.RELEASED)
            await queue.kept(1)
            await stream.unwatch(releasing)
            await settle(stream, *await pull(stream), outcome=Outcome.RELEASED)
            await queue.kept(0)

    async def test_rejected_messages_go_to_the_dead_letter_queue(self, server: SqsServer) -> None:
        dead = Queue(server)
        policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "2"})
        queue = Queue(server, RedrivePolicy=policy)
        (sent,) = await queue.send("{broken")
        async with queue.source().open(opening(server.endpoint_url)) as stream:
            for _ in range(2):
                await settle(stream, *await pull(stream), outcome=Outcome.REJECTED)
            # moving it takes another poll, which finds nothing
            waiting = asyncio.create_task(pull(stream), name="waiting")
            await dead.kept(1)
            waiting.cancel()
            await asyncio.wait({waiting})
        assert [raw["MessageId"] for raw in await dead.receive(5)] == [sent]

    # Not on moto, which deletes with any receipt handle.
    @pytest.mark.parametrize("server", [ElasticMqServer], indirect=True, ids=["elasticmq"])
    async def test_expired_receipt_is_named_and_the_next_delivery_counts(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("x")
        clock = ManualClock()  # nothing is extended: its time stands still
        # One poll outlasts the second for which the other consumer has it: on this clock no other would follow.
        source = queue.source(visibility_timeout=1, wait_time_seconds=10)
        async with source.open(opening(server.endpoint_url, clock=clock)) as stream:
            (old,) = await pull(stream)
            (raw,) = await queue.receive(5)  # another consumer has it for a second
            assert raw["MessageId"] == old.id
            with pytest.raises(StreamError, match=old.id):
                await settle(stream, old)
            (new,) = await pull(stream)
            assert new.id == old.id
            # The newest receipt is used, whichever copy of the message is settled.
            await settle(stream, old)
        await queue.kept(0)


class TestQueueThatIsNotThere:
    async def test_created_later(self, server: SqsServer) -> None:
        source = SqsQueue("not-yet", conn_id="somewhere")
        with pytest.raises(StreamError, match=r"SQS queue 'not-yet' \(connection 'somewhere'\).*create it"):
            async with source.open(opening(server.endpoint_url)):
                pass
        server.create_queue("not-yet")
        async with source.open(opening(server.endpoint_url)):
            pass

    async def test_deleted_while_it_is_read(self, server: SqsServer) -> None:
        queue = Queue(server)
        async with queue.source().open(opening(server.endpoint_url)) as stream:
            await queue.call("delete_queue")
            with pytest.raises(StreamError, match="does not exist"):
                await pull(stream)
