"""The live stream of one SQS queue.

Flow::

    ReceiveMessage (long poll) -> held -> yielded -> settle -> DeleteMessageBatch          accepted
                                   |                       `-> ChangeMessageVisibilityBatch  everything else
                                   `-> visibility extended in the background while held

Invariants:

* A message is deleted only in ``settle``, and only when it was accepted, or unwanted where ``unmatched="delete"``.
* From its receipt until it is settled a message is *held*: the background task keeps extending its visibility timeout,
  so that nobody else gets it. When SQS says that a delivery is not ours any more, it is dropped and comes again.
* Extending and giving back exclude each other, so nothing that was given back is hidden again.
* What is still held when the stream closes is given back, in bounded time.

A restart loses nothing: whatever a dead triggerer held becomes visible when its visibility timeout ends, under the same
message id; what it had recorded is deleted by the receipt that is kept with it, or when it comes again. A long poll
that is cut off on its way may have taken messages along; they come back in the same way.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import anyio

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources import _sqs_client as sqs_client
from event_triggers.sources._shared import release_delay
from event_triggers.sources._sqs_wire import BATCH_SIZE, Failure, Receipt, advice, chunks, is_gone, to_message
from event_triggers.sources.base import Opening, Outcome, Settlement, Source, Stream
from event_triggers.text import plain_logger

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

    from event_triggers.sources.sqs import SqsQueue

__all__ = ["SqsStream"]

log = plain_logger(__name__)

_TRIES = 3
"""How often a batch entry that SQS refuses is sent in all, before ``settle`` raises."""
_FIRST_PAUSE = 0.2
_CLOSE_SECONDS = 3.0
_SHORTEST_POLL = 1.0


class SqsStream(Stream):
    """One queue, on one client. Also its own iterator: a pull that is cancelled can be made again."""

    def __init__(self, client: SQSClient, url: str, source: SqsQueue, opening: Opening, where: str) -> None:
        self._client = client
        self._url = url
        self._name = source.name
        self._where = where
        self._clock = opening.clock
        self._tell = opening.tell
        self._sources = {source}
        """Who asks for messages; the last one's options stay in force."""
        self._watched = False
        self._held: dict[str, Receipt] = {}
        self._changing = anyio.Lock()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self

    async def __anext__(self) -> Sequence[Message]:
        while True:
            started = self._clock.monotonic()
            messages = await self._receive()
            if messages:
                return messages
            # A server without long polling answers at once, and must not be asked in a tight loop.
            await self._clock.sleep(max(0, _SHORTEST_POLL - (self._clock.monotonic() - started)))

    async def _receive(self) -> list[Message]:
        # With this id a FIFO queue gives the same messages when the SDK repeats a request whose answer was lost.
        attempt = {"ReceiveRequestAttemptId": uuid.uuid4().hex} if self._name.endswith(".fifo") else {}
        try:
            answer = await self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=BATCH_SIZE,
                WaitTimeSeconds=min(source.wait_time_seconds for source in self._sources),
                VisibilityTimeout=self._visibility,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
                **attempt,  # type: ignore[arg-type]
            )
        except Exception as error:
            raise sqs_client.translated(error, self._where) from error
        now = self._clock.monotonic()
        messages = [to_message(raw, stream=self._name, now=now) for raw in answer.get("Messages", ())]
        for message in messages:
            # A copy of a message that is held takes its place: only the newest receipt is good for anything.
            self._held[message.id] = message.receipt
        return messages

    async def watch(self, source: Source) -> None:
        if not self._watched:
            self._sources.clear()
        # The hub joins sources of one kind only.
        self._sources.add(cast("SqsQueue", source))
        self._watched = True

    async def unwatch(self, source: Source) -> None:
        # A stream that nobody watches is only pulled for copies of what was recorded: it deletes nothing else.
        if len(self._sources) > 1:
            self._sources.discard(cast("SqsQueue", source))
        elif source in self._sources:
            self._watched = False

    @property
    def _visibility(self) -> int:
        return max(source.visibility_timeout for source in self._sources)

    @property
    def _deletes_unmatched(self) -> bool:
        return self._watched and all(source.unmatched == "delete" for source in self._sources)

    # -- holding -----------------------------------------------------------------------------------------------------

    async def keep_invisible(self) -> None:
        """Extend the visibility timeout of what is held, for as long as the stream lives.

        A message is extended at an age of a quarter to a half of the timeout, so one failed round does no harm.
        """
        while True:
            await self._clock.sleep(self._visibility / 4)
            now = self._clock.monotonic()
            due = [receipt for receipt in self._held.values() if now - receipt.since >= self._visibility / 4]
            for chunk in chunks(due):
                await self._extend(chunk)

    async def _extend(self, chunk: Sequence[Receipt]) -> None:
        async with self._changing:
            receipts = [receipt for receipt in chunk if self._held.get(receipt.message_id) is receipt]
            if not receipts:
                return
            now = self._clock.monotonic()
            try:
                answer = await self._client.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {"Id": str(n), "ReceiptHandle": receipt.handle, "VisibilityTimeout": self._visibility}
                        for n, receipt in enumerate(receipts)
                    ],
                )
            except Exception as error:
                # The next round tries again; if the connection is gone, receiving says so.
                reason = sqs_client.translated(error, self._where)
                text = "%d messages that wait to be recorded could not be kept invisible: %s"
                self._tell(logging.WARNING, text, len(receipts), reason)
                return
            for done in answer.get("Successful", ()):
                receipts[int(done["Id"])].since = now
            for failed in answer.get("Failed", ()):
                if is_gone(failed):
                    self._lose(receipts[int(failed["Id"])], advice(failed))

    def _lose(self, receipt: Receipt, reason: str) -> None:
        if receipt.deleted:
            return  # it was settled while we asked
        receipt.returned = True
        self._drop(receipt)
        text = "%s: message %s could not be kept invisible and will come again: %s"
        self._tell(logging.WARNING, text, self._where, receipt.message_id, reason)

    def _drop(self, receipt: Receipt) -> None:
        if self._held.get(receipt.message_id) is receipt:
            del self._held[receipt.message_id]

    # -- settling ----------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Delete what was accepted, give back the rest.

        :raises StreamError: naming the messages that SQS could not be told of, after bounded repetition.
        """
        delete: dict[str, Receipt] = {}
        give_back: dict[str, tuple[Receipt, int]] = {}
        for message, outcome in settlements:
            receipt = self._held.get(message.id) or message.receipt
            if outcome is Outcome.ACCEPTED or (outcome is Outcome.RELEASED and self._deletes_unmatched):
                if not receipt.deleted:
                    delete[message.id] = receipt
            elif receipt.held:
                grows = outcome in (Outcome.RELEASED, Outcome.REJECTED)
                give_back[message.id] = receipt, release_delay(receipt.attempt) if grows else 0
        failures = await self._delete(list(delete.values()))
        failures += await self._give_back([one for one in give_back.values() if one[0].message_id not in delete])
        if failures:
            what = ", ".join(f"{failure.receipt.message_id}: {failure.reason}" for failure in failures)
            raise StreamError(
                f"{self._where}: {len(failures)} messages could not be settled and may come again: {what}"
            )

    async def _delete(self, receipts: Sequence[Receipt]) -> list[Failure]:
        async def send(pending: Mapping[str, Receipt]) -> Mapping[str, Any]:
            return await self._client.delete_message_batch(
                QueueUrl=self._url,
                Entries=[{"Id": key, "ReceiptHandle": receipt.handle} for key, receipt in pending.items()],
            )

        failures: list[Failure] = []
        for chunk in chunks(receipts):
            failed = await self._in_one_batch(chunk, send)
            failures += failed
            refused = {failure.receipt.message_id for failure in failed}
            for receipt in chunk:
                receipt.deleted = receipt.message_id not in refused
                self._drop(receipt)
        return failures

    async def _give_back(self, delays: Sequence[tuple[Receipt, int]]) -> list[Failure]:
        seconds = {receipt.message_id: delay for receipt, delay in delays}

        async def send(pending: Mapping[str, Receipt]) -> Mapping[str, Any]:
            async with self._changing:
                return await self._client.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {
                            "Id": key,
                            "ReceiptHandle": receipt.handle,
                            "VisibilityTimeout": seconds[receipt.message_id],
                        }
                        for key, receipt in pending.items()
                    ],
                )

        failures: list[Failure] = []
        # Latest first: the first message of a FIFO group becomes visible last, so none overtakes another.
        for chunk in chunks([receipt for receipt, _ in reversed(delays)]):
            # A delivery that is not ours any more needs no giving back.
            failures += await self._in_one_batch(chunk, send, gone_is_done=True)
            for receipt in chunk:
                receipt.returned = True
                self._drop(receipt)
        return failures

    async def _in_one_batch(
        self,
        receipts: Sequence[Receipt],
        send: Callable[[Mapping[str, Receipt]], Awaitable[Mapping[str, Any]]],
        *,
        gone_is_done: bool = False,
    ) -> list[Failure]:
        """Send one batch, and again what SQS refused of it; what is refused for good."""
        pending = {str(n): receipt for n, receipt in enumerate(receipts)}
        failures: list[Failure] = []
        for attempt in range(_TRIES):
            if attempt:
                await self._clock.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                answer = await send(pending)
            except Exception as error:
                reason = str(sqs_client.translated(error, self._where))
                return failures + [Failure(receipt, reason) for receipt in pending.values()]
            refused = {entry["Id"]: entry for entry in answer.get("Failed", ())}
            for key, entry in refused.items():
                if is_gone(entry) and not (gone_is_done or pending[key].recalled):
                    failures.append(Failure(pending[key], advice(entry)))
            pending = {key: pending[key] for key, entry in refused.items() if not is_gone(entry)}
            if not pending:
                return failures
        return failures + [Failure(receipt, advice(refused[key])) for key, receipt in pending.items()]

    async def give_back(self) -> None:
        """The stream closes: make what is held visible to others, as far as that is possible in bounded time."""
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            failures = await self._give_back([(receipt, 0) for receipt in self._held.values()])
            for failure in failures:
                log.info(
                    "%s: message %s stays invisible until its visibility timeout ends: %s",
                    self._where,
                    failure.receipt.message_id,
                    failure.reason,
                )
