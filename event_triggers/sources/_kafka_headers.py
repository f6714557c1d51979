"""Reading Kafka records whose headers have names that are not UTF-8, as clients in C can write them.

aiokafka stops at such a record, and never gets past it: it reads a whole batch to get to any record behind it. So that
batch is fetched once more here and read by aiokafka's own code in Python, with the names made readable on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords  # type: ignore[import-untyped]
from aiokafka.errors import for_code  # type: ignore[import-untyped]
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]
from aiokafka.record.default_records import _DefaultRecordBatchPy  # type: ignore[import-untyped]
from aiokafka.record.memory_records import _MemoryRecordsPy  # type: ignore[import-untyped]

from event_triggers.errors import StreamError

__all__ = ["read_again"]


async def read_again(consumer: Any, limit: int) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
    """Read up to ``limit`` records of the partition over which ``consumer`` has just raised, and move on behind them.

    :raises StreamError: when it cannot be known which that is.
    :raises KafkaError: when the broker does not answer well.
    """
    fetcher, client = consumer._fetcher, consumer._client
    partition = _stuck(fetcher)
    if partition is None:
        raise StreamError("a message has a header whose name cannot be read")
    offset, size = await consumer.position(partition), fetcher._max_partition_fetch_bytes
    topics = [(partition.topic, [(partition.partition, offset, size)])]
    request = FetchRequest(fetcher._fetch_max_wait_ms, 1, size, fetcher._isolation_level, topics)
    response = await client.send(client.cluster.leader_for_partition(partition), request)
    (_, ((_, error, _, *data),)) = response.topics[0]
    if error:
        raise for_code(error)(partition)
    aborted = None
    if response.API_VERSION >= 4:
        aborted = data[2] if response.API_VERSION >= 11 else data[-2]
    settings = (None, None, fetcher._check_crcs, fetcher._isolation_level)
    unpacked = PartitionRecords(partition, _Records(bytes(data[-1])), aborted, offset, *settings)
    records = list(islice(unpacked, limit))
    consumer.seek(partition, unpacked.next_fetch_offset)
    return {partition: records}


def _stuck(fetcher: Any) -> TopicPartition | None:
    """The partition whose records have just raised: whatever reads them is over."""
    for partition, result in fetcher._records.items():
        records = result._partition_records if isinstance(result, FetchResult) else None
        generator = records._records_iterator if records is not None else None
        if generator is not None and generator.gi_frame is None:
            return partition
    return None


class _Records(_MemoryRecordsPy):  # type: ignore[misc]
    def next_batch(self, *args: Any) -> Any:
        piece = self._next_slice
        batch = super().next_batch(*args)
        return _Batch(piece) if getattr(batch, "magic", 2) >= 2 and piece is not None else batch


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        if not isinstance(self._buffer, _Readable):
            self._buffer = _Readable(self._buffer)


class _Readable(bytearray):
    """Bytes whose slices can always be decoded."""

    def __getitem__(self, place: Any) -> Any:
        part = super().__getitem__(place)
        return _Readable(part) if isinstance(place, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")
