"""Asking a Kafka broker about topics: without creating them, and with their ids where the broker has any.

aiokafka's own request lets the broker create the topics it asks for, and knows no topic ids. The id is what tells a
topic that was deleted and created again from the old one; brokers give it since Kafka 2.8.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka.protocol.api import Request, RequestStruct, Response  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import (  # type: ignore[import-untyped]
    MetadataRequest_v0,
    MetadataRequest_v1,
    MetadataRequest_v2,
    MetadataRequest_v3,
    MetadataRequest_v4,
    MetadataRequest_v5,
    MetadataResponse_v5,
)
from aiokafka.protocol.types import (  # type: ignore[import-untyped]
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

__all__ = ["TopicState", "TopicsRequest", "read_topics"]

_NO_ID = bytes(16)


class _Uuid(AbstractType):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Response(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Request(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


_AnyRequest = (
    MetadataRequest_v0
    | MetadataRequest_v1
    | MetadataRequest_v2
    | MetadataRequest_v3
    | MetadataRequest_v4
    | MetadataRequest_v5
    | _Request
)


class TopicsRequest(Request[_AnyRequest]):  # type: ignore[misc]
    """Asks about these topics and creates none of them (brokers before Kafka 0.11 may)."""

    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = sorted(topics)

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is _Request:
            return _Request([(_NO_ID, topic, {}) for topic in self._topics], False, False, {})
        if request_struct_class.API_VERSION >= 4:
            return request_struct_class(self._topics, False)
        return request_struct_class(self._topics)


class TopicState(NamedTuple):
    """What a broker says of one topic.

    :param error: the protocol's error code, 0 for none.
    :param identity: the topic's id, ``None`` where the broker gives none.
    """

    error: int
    identity: bytes | None


def read_topics(response: Any) -> tuple[dict[str, TopicState], Any]:
    """What the answer says of each topic, and the answer in aiokafka's form, with only the topics that can be read."""
    if response.API_VERSION < 10:
        states = {topic[1]: TopicState(topic[0], None) for topic in response.topics}
        response.topics = [topic for topic in response.topics if not topic[0]]
        return states, response
    states = {}
    topics = []
    for error, topic, identity, internal, partitions, *_ in response.topics:
        states[topic] = TopicState(error, identity if identity != _NO_ID else None)
        if not error:
            # (error, number, leader, [epoch], replicas, isr, offline): aiokafka's form has no epoch and no tags.
            topics.append((error, topic, internal, [(*one[:3], *one[4:7]) for one in partitions]))
    brokers = [tuple(broker[:4]) for broker in response.brokers]
    return states, MetadataResponse_v5(0, brokers, response.cluster_id, response.controller_id, topics)
