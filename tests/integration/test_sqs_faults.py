"""SqsQueue when SQS refuses: whole requests, single messages of a batch, credentials. On moto, behind a gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import Outcome
from event_triggers.testing import ManualClock
from servers.proxy import TcpProxy
from servers.sqs import MotoServer, SqsServer
from tests.integration.sqs_support import Edit, Gate, Queue, asleep, opening, pull, settle


@pytest.fixture(scope="module")
def server() -> Iterator[SqsServer]:
    with MotoServer() as server:
        yield server


@pytest.fixture
async def gate(server: SqsServer) -> AsyncIterator[Gate]:
    async with Gate.before(server) as gate:
        yield gate


def refusing(*ids: str, code: str = "InternalError", sender_fault: bool = False) -> Edit:
    """Make a batch's answer say that these entries failed."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        failed = [{"Id": one, "Code": code, "Message": "not now", "SenderFault": sender_fault} for one in ids]
        return {"Successful": [done for done in answer["Successful"] if done["Id"] not in ids], "Failed": failed}

    return edit


class TestPartialFailures:
    async def test_refused_deletes_are_sent_again(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a", "b", "c")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream, 3)
            gate.edit("DeleteMessageBatch", refusing("0", "2"))
            gate.edit("DeleteMessageBatch", refusing("2"))
            await settle(stream, *messages)
        asked = [[entry["Id"] for entry in request["Entries"]] for request in gate.asked("DeleteMessageBatch")]
        assert asked == [["0", "1", "2"], ["0", "2"], ["2"]]

    async def test_deletes_that_stay_refused_are_named_after_three_times(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a", "b")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            one, two = await pull(stream, 2)
            gate.edit("DeleteMessageBatch", refusing("1"), times=3)
            with pytest.raises(StreamError, match="not now") as caught:
                await settle(stream, one, two)
            assert two.id in str(caught.value)
            assert one.id not in str(caught.value)
            assert len(gate.asked("DeleteMessageBatch")) == 3
            # Settling all again only asks for what is still due.
            await settle(stream, one, two)
            (last,) = gate.asked("DeleteMessageBatch")[3:]
            assert [entry["ReceiptHandle"] for entry in last["Entries"]] == [two.receipt.handle]

    async def test_what_cannot_be_mended_is_not_repeated(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream)
            gate.edit("DeleteMessageBatch", refusing("0", code="ReceiptHandleIsInvalid", sender_fault=True))
            with pytest.raises(StreamError, match="ReceiptHandleIsInvalid"):
                await settle(stream, *messages)
            assert len(gate.asked("DeleteMessageBatch")) == 1

    async def test_a_receipt_of_another_process_may_be_used_up(self, server: SqsServer, gate: Gate) -> None:
        """Only that process knew whether it had deleted the message."""
        queue = Queue(server)
        source = queue.source()
        message = source.recalled("an id", "a receipt")
        assert message is not None
        async with source.open(opening(gate.endpoint)) as stream:
            gate.edit("DeleteMessageBatch", refusing("0", code="ReceiptHandleIsInvalid"))
            await settle(stream, message)
        assert len(gate.asked("DeleteMessageBatch")) == 1

    async def test_one_failed_batch_does_not_stop_the_others(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send(*(str(n) for n in range(15)))
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream, 15)
            gate.refuse("DeleteMessageBatch", "AccessDenied", status=403)
            with pytest.raises(StreamError, match=r"10 messages could not be settled.*sqs:DeleteMessage"):
                await settle(stream, *messages)
        await queue.kept(10)

    async def test_release_of_what_is_gone_is_done(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream)
            code = "AWS.SimpleQueueService.MessageNotInflight"
            gate.edit("ChangeMessageVisibilityBatch", refusing("0", code=code, sender_fault=True))
            await settle(stream, *messages, outcome=Outcome.RELEASED)
            assert len(gate.asked("ChangeMessageVisibilityBatch")) == 1

    async def test_refused_releases_are_sent_again(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            messages = await pull(stream)
            gate.edit("ChangeMessageVisibilityBatch", refusing("0"), times=3)
            with pytest.raises(StreamError, match=messages[0].id):
                await settle(stream, *messages, outcome=Outcome.RELEASED)
            assert len(gate.asked("ChangeMessageVisibilityBatch")) == 3

    async def test_failed_extension_is_tried_again_in_the_next_round(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        clock = ManualClock()
        await queue.send("a")
        async with queue.source().open(opening(gate.endpoint, clock=clock)) as stream:
            await pull(stream)
            gate.refuse("ChangeMessageVisibilityBatch", "AccessDenied")
            gate.edit("ChangeMessageVisibilityBatch", refusing("0"))
            for rounds in (1, 2, 3):
                await asleep(clock)
                clock.advance(15)
                await gate.wait_for("ChangeMessageVisibilityBatch", rounds)


class TestRefusedRequests:
    async def test_throttling_is_ridden_out(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("a")
        async with queue.source().open(opening(gate.endpoint)) as stream:
            gate.refuse("ReceiveMessage", "ThrottlingException", times=2)
            await settle(stream, *await pull(stream))
        await queue.kept(0)

    async def test_lasting_throttling_is_an_error(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        async with queue.source().open(opening(gate.endpoint)) as stream:
            gate.refuse("ReceiveMessage", "ThrottlingException", times=3)
            with pytest.raises(StreamError, match="slow down"):
                await pull(stream)

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("AccessDenied", "allow sqs:GetQueueUrl"),
            ("AccessDeniedException", "kms:Decrypt"),
            ("InvalidClientTokenId", "the credentials are refused"),
            ("ExpiredToken", "the credentials are refused"),
            ("SignatureDoesNotMatch", "the credentials are refused"),
            ("AWS.SimpleQueueService.NonExistentQueue", "create it"),
            ("SomethingNew", "SomethingNew"),
        ],
    )
    async def test_refusals_say_what_to_do(self, server: SqsServer, gate: Gate, code: str, says: str) -> None:
        queue = Queue(server)
        async with queue.source().open(opening(gate.endpoint)) as stream:
            gate.refuse("ReceiveMessage", code, "No.\nx-amz-security-token:TOPSECRET", status=403)
            with pytest.raises(StreamError, match=says) as caught:
                await pull(stream)
        assert f"SQS queue {queue.name!r} (connection 'somewhere')" in str(caught.value)
        assert "TOPSECRET" not in str(caught.value)
        assert not isinstance(caught.value, ConfigurationError)

    async def test_refused_when_opened(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        gate.refuse("GetQueueUrl", "AccessDenied", status=403)
        with pytest.raises(StreamError, match="access is denied"):
            async with queue.source().open(opening(gate.endpoint)):
                pass

    async def test_server_errors_end_the_stream_after_three_attempts(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        async with queue.source().open(opening(gate.endpoint)) as stream:
            gate.refuse("ReceiveMessage", "InternalFailure", times=3, status=500)
            with pytest.raises(StreamError, match="InternalFailure"):
                await pull(stream)
            assert len(gate.asked("ReceiveMessage")) == 3


class TestBrokenNetwork:
    async def test_closing_is_bounded_when_nothing_passes(self, server: SqsServer) -> None:
        queue = Queue(server)
        await queue.send("a")
        with TcpProxy(server.port) as proxy:
            clock = ManualClock()
            context = queue.source().open(opening(f"http://127.0.0.1:{proxy.port}", clock=clock))
            stream = await context.__aenter__()
            await pull(stream)
            proxy.black_hole()
            started = time.monotonic()
            await context.__aexit__(None, None, None)
            assert time.monotonic() - started < 20, "it waited for the SDK, which gives up after 35 s"
            proxy.restore()
        await queue.kept(1)

    async def test_server_without_long_polling_is_not_asked_in_a_tight_loop(
        self, server: SqsServer, gate: Gate
    ) -> None:
        queue = Queue(server)
        clock = ManualClock()
        async with queue.source().open(opening(gate.endpoint, clock=clock)) as stream:
            pulling = asyncio.create_task(pull(stream), name="pulling")
            await gate.wait_for("ReceiveMessage", 1)
            await asleep(clock, 2)
            assert min(clock.sleepers) == 1.0
            pulling.cancel()
            await asyncio.wait({pulling})
