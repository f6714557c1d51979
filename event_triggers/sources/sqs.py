"""Amazon SQS: a queue, read by one long poll per triggerer (:mod:`event_triggers.sources._sqs_stream`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from event_triggers.errors import InvalidEventError
from event_triggers.message import Message
from event_triggers.sources import _sqs_client as sqs_client
from event_triggers.sources._shared import beside
from event_triggers.sources._sqs_stream import SqsStream
from event_triggers.sources._sqs_wire import Receipt, queue_name
from event_triggers.sources.base import Opening, Source, Stream

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

__all__ = ["SqsQueue"]

_MOST_VISIBILITY = 43_200
_REDELIVERY_MARGIN = 15.0
"""Seconds that a message may take longer than its visibility timeout until it is received again."""


@dataclass(frozen=True)
class SqsQueue(Source):
    """A queue of Amazon SQS, standard or FIFO.

    Sources with the same connection, region and queue share one long poll per triggerer, so name a queue in the same
    way everywhere: its name and its URL count as two.

    :param queue: the queue's name, or its URL. The URL also reaches queues of other accounts.
    :param conn_id: an Airflow connection of type ``aws``. ``None``, or an ``aws_default`` that is not defined, stands
        for the credentials of the machine (environment, profile, instance role), as everywhere in Airflow.
    :param region: the AWS region; by default the one in the queue's URL, else the connection's, else the machine's.
    :param visibility_timeout: for how many seconds a message that was received stays invisible to others. It is
        extended while a message waits to be recorded, so it only says how soon the messages of a triggerer that died
        come back.
    :param unmatched: what becomes of a message that no group of this triggerer wants: ``"release"`` makes it visible
        again, the first time at once, then after pauses that grow to 60 s; ``"delete"`` deletes it, when all that share
        the queue agree.
    :param wait_time_seconds: how long one long poll lasts at most, 1 to 20 seconds. Shorter ones cost more requests.
    """

    queue: str
    conn_id: str | None = "aws_default"
    region: str | None = None
    visibility_timeout: int = 60
    unmatched: str = "release"
    wait_time_seconds: int = 20

    kind: ClassVar[str] = "sqs"
    conn_type: ClassVar[str] = "aws"
    client: ClassVar[str] = "aiobotocore"
    install: ClassVar[str] = "airflow-event-triggers[sqs]"

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, self.region, self.queue)

    @property
    def name(self) -> str:
        return queue_name(self.queue)

    @property
    def redelivery(self) -> float:
        return self.visibility_timeout + self.wait_time_seconds + _REDELIVERY_MARGIN

    def receipt_of(self, message: Message) -> str | None:
        return getattr(message.receipt, "handle", None)

    def recalled(self, identity: str, receipt: str) -> Message | None:
        known = Receipt(identity, receipt, 1, 0.0, recalled=True)
        return Message(self.kind, self.name, identity, identity, None, receipt=known)

    def validate(self) -> None:
        queue: object = self.queue
        if not isinstance(queue, str) or not queue.strip():
            raise InvalidEventError("SqsQueue needs the name or the URL of a queue")
        if self.queue.startswith("arn:"):
            raise InvalidEventError(f"SqsQueue takes the name or the URL of a queue, not the ARN {self.queue!r}")
        if self.unmatched not in ("release", "delete"):
            raise InvalidEventError(
                f"SqsQueue {self.name!r}: unmatched must be 'release' or 'delete', not {self.unmatched!r}"
            )
        seconds: tuple[tuple[str, object, int, int], ...] = (
            ("visibility_timeout", self.visibility_timeout, 1, _MOST_VISIBILITY),
            ("wait_time_seconds", self.wait_time_seconds, 1, 20),
        )
        for option, value, least, most in seconds:
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InvalidEventError(
                    f"SqsQueue {self.name!r}: {option} must be a whole number of seconds from {least} to {most}, "
                    f"not {value!r}"
                )

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist, or one of its options is wrong.
        :raises MissingExtraError: when aiobotocore is not installed.
        :raises StreamError: when SQS cannot be reached, refuses the credentials, or has no such queue.
        """
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        where = f"SQS queue {self.name!r} (connection {self.conn_id!r})"
        async with sqs_client.connect(self.queue, self.conn_id, self.region, opening, where) as client:
            url = await _url(client, self.queue, where)
            stream = SqsStream(client, url, self, opening, where)
            try:
                async with beside(stream.keep_invisible, f"sqs-visibility-{self.name}"):
                    yield stream
            finally:
                await stream.give_back()


async def _url(client: SQSClient, queue: str, where: str) -> str:
    if "://" in queue:
        return queue
    try:
        return (await client.get_queue_url(QueueName=queue))["QueueUrl"]
    except Exception as error:
        raise sqs_client.translated(error, where) from error
