"""What aiokafka has fetched, as a batch whose messages are made when somebody looks at them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import accumulate
from typing import Any, Final, NamedTuple

from event_triggers.message import Message
from event_triggers.unread import Unread

__all__ = ["KafkaRecords", "RecordPlace"]

_LATEST: Final = datetime.max.replace(tzinfo=timezone.utc)


class RecordPlace(NamedTuple):
    """What all messages of an assigned partition have in common."""

    topic: str
    partition: str
    before_offset_in_position: str
    before_offset_in_id: str


class KafkaRecords(Unread):
    """A batch of records.

    :param fetched: by partition, as they were fetched.
    """

    __slots__ = ("_fetched",)

    def __init__(self, fetched: Sequence[tuple[RecordPlace, Sequence[Any]]]) -> None:
        bodies = [record.value for _, records in fetched for record in records]
        super().__init__(bodies, list(accumulate(len(records) for _, records in fetched)))
        self._fetched = fetched

    def part(self, begin: int, end: int) -> KafkaRecords:
        number = bisect_right(self.ends, begin)
        common, records = self._fetched[number]
        before = self.ends[number] - len(records)
        return KafkaRecords([(common, records[begin - before : end - before])])

    def message(self, place: int) -> Message:
        number = bisect_right(self.ends, place)
        common, records = self._fetched[number]
        record = records[place - self.ends[number]]  # counted from the end
        offset = str(record.offset)
        return Message(
            source="kafka",
            stream=common.topic,
            position=common.before_offset_in_position + offset,
            id=common.before_offset_in_id + offset,
            body=record.value,
            key=record.key,
            headers=_without_null(record.headers) if record.headers else record.headers,
            timestamp=_moment(record.timestamp),
            partition=common.partition,
            offset=record.offset,
        )


def _without_null(headers: tuple[tuple[str, bytes | None], ...]) -> tuple[tuple[str, bytes], ...]:
    """A header without a value has an empty one."""
    for _, value in headers:
        if value is None:
            return tuple((name, value or b"") for name, value in headers)
    return headers  # type: ignore[return-value]


def _moment(milliseconds: int) -> datetime | None:
    """Kafka's stamp; ``None`` when there is none. Producers write any number: what is no date becomes the last date."""
    if milliseconds < 0:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return _LATEST
