"""What Amazon SQS sends and answers, read without its SDK: messages, refused batch entries, errors, queue URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from event_triggers.message import Message

__all__ = [
    "BATCH_SIZE",
    "Failure",
    "Receipt",
    "advice",
    "chunks",
    "code_of",
    "is_gone",
    "queue_name",
    "region_of",
    "said",
    "to_message",
]

BATCH_SIZE = 10
"""The most messages that SQS takes in one request, or gives in one answer."""

_HEADER_ATTRIBUTES = (
    "MessageGroupId",
    "MessageDeduplicationId",
    "SequenceNumber",
    "AWSTraceHeader",
    "DeadLetterQueueSourceArn",
)
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class Receipt:
    """One delivery of one message, and what became of it.

    :param handle: what SQS wants to see for this delivery.
    :param since: when it was last made invisible, in seconds of the clock's ``monotonic``.
    :param deleted: SQS has been told to delete it, and agreed.
    :param returned: it is not ours any more: given back, or its time ran out.
    :param recalled: another process had this delivery, and may have deleted it.
    """

    message_id: str
    handle: str
    attempt: int
    since: float
    deleted: bool = False
    returned: bool = False
    recalled: bool = False

    @property
    def held(self) -> bool:
        return not (self.deleted or self.returned)


class Failure(NamedTuple):
    """One message for which SQS refused a batch request, and why."""

    receipt: Receipt
    reason: str


def to_message(raw: Mapping[str, Any], *, stream: str, now: float) -> Message:
    """Read one message of a ``ReceiveMessage`` answer, received at ``now``."""
    # Servers other than AWS send an attribute that a message does not have as null.
    system = {name: str(value) for name, value in (raw.get("Attributes") or {}).items() if value is not None}
    headers = [(name, _bytes(system[name])) for name in _HEADER_ATTRIBUTES if system.get(name)]
    for name, attribute in (raw.get("MessageAttributes") or {}).items():
        value = attribute.get("BinaryValue")
        headers.append((name, value if value is not None else _bytes(attribute.get("StringValue") or "")))
    sent = system.get("SentTimestamp")
    attempt = int(system.get("ApproximateReceiveCount", 1))
    message_id = raw["MessageId"]
    group = system.get("MessageGroupId")
    return Message(
        source="sqs",
        stream=stream,
        position=message_id,
        id=message_id,
        body=_bytes(raw.get("Body") or ""),
        key=_bytes(group) if group is not None else None,
        headers=tuple(headers),
        timestamp=datetime.fromtimestamp(int(sent) / 1000, timezone.utc) if sent else None,
        receipt=Receipt(message_id, raw["ReceiptHandle"], attempt, now),
        attempt=attempt,
    )


def _bytes(text: str) -> bytes:
    """As UTF-8. Half of a surrogate pair, which SQS itself refuses and other servers pass on, makes it no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The items in portions of one request."""
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]


def queue_name(queue: str) -> str:
    """The name of a queue that is given by name or URL."""
    return queue.rstrip("/").rpartition("/")[2] if "://" in queue else queue


_AWS_HOST = re.compile(
    r"^(?:(?:[\w-]+\.)*sqs(?:-fips)?\.(?P<new>[a-z0-9-]+)|(?P<old>[a-z0-9-]+)\.queue|queue)"
    r"\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)$"
)


def region_of(queue: str) -> str | None:
    """The region that a queue's URL names; ``None`` for a bare name or a URL that is not of AWS."""
    found = _AWS_HOST.match(urlsplit(queue).hostname or "") if "://" in queue else None
    if found is None:
        return None
    return found["new"] or found["old"] or "us-east-1"


# Codes come with and without the prefix "AWS.SimpleQueueService.", depending on the protocol that the client speaks.
_GONE = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue", "InvalidIdFormat"})
_NO_QUEUE = frozenset({"NonExistentQueue", "QueueDoesNotExist"})
_DELETED = frozenset({"QueueDeletedRecently"})
_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset(
    {"OverLimit", "RequestLimitExceeded", "RequestThrottled", "SlowDown", "Throttling", "ThrottlingException"}
)


def code_of(error: Mapping[str, Any]) -> str:
    """The error code of an error answer, or of a failed batch entry, without its prefix."""
    return str(error.get("Code", "")).rpartition(".")[2]


def is_gone(error: Mapping[str, Any]) -> bool:
    """Whether the delivery is not ours any more: its time ran out, or it was deleted. Asking again cannot help."""
    return code_of(error) in _GONE


def said(error: Mapping[str, Any]) -> str:
    """What an error answer says, in one bounded line.

    Only the first line is shown: AWS answers a wrong signature with the whole signed request, session token included.
    """
    lines = str(error.get("Message") or "").strip().splitlines() or ["no text"]
    return f"{lines[0][:300].rstrip('. ')} ({code_of(error) or 'no code'})"


def advice(error: Mapping[str, Any]) -> str:
    """What SQS said, and what to do about it."""
    code = code_of(error)
    text = said(error)
    if code in _NO_QUEUE:
        return (
            f"the queue does not exist there (yet): {text}; create it, or correct the queue's name, region or account"
        )
    if code in _DELETED:
        return f"{text}; SQS lets a queue be created again 60 s after it was deleted"
    if code in _DENIED:
        return (
            f"access is denied: {text}; allow sqs:GetQueueUrl, sqs:ReceiveMessage, sqs:DeleteMessage and "
            f"sqs:ChangeMessageVisibility on the queue (and kms:Decrypt, if it is encrypted with a key of yours)"
        )
    if code in _CREDENTIALS:
        return f"the credentials are refused: {text}; correct the connection's access key, secret, token or role"
    if code in _THROTTLED:
        return f"SQS asks to slow down: {text}"
    return text
