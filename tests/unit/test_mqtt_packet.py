"""Mended PUBLISH packets: whatever their properties hold, the client library can read them; all else stays."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from event_triggers.sources._mqtt_packet import mended

texts = st.binary(max_size=8) | st.sampled_from([b"\xef\xbb\xbf", b"\x00", b"\xed\xa0\x80", b"\xff", "ü".encode()])


def block(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def packet(properties: bytes, *, topic: bytes = b"t", mid: bytes = b"\x00\x07", body: bytes = b"body") -> bytes:
    length = len(properties)
    encoded = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return block(topic) + mid + encoded + properties + body


@given(
    content_type=texts,
    users=st.lists(st.tuples(texts, texts), max_size=20),
    correlation=st.binary(max_size=8),
    subscriptions=st.lists(st.integers(1, 268_435_455), max_size=3),
    qos=st.sampled_from([0, 1, 2]),
    body=st.binary(max_size=20),
)
def test_any_text_can_be_read_afterwards(
    content_type: bytes,
    users: list[tuple[bytes, bytes]],
    correlation: bytes,
    subscriptions: list[int],
    qos: int,
    body: bytes,
) -> None:
    parts = [b"\x01\x01", b"\x02\x00\x00\x00\x09", b"\x03" + block(content_type), b"\x09" + block(correlation)]
    parts += [b"\x26" + block(name) + block(value) for name, value in users]
    parts += [b"\x0b" + varint(number) for number in subscriptions]
    mid = b"\x00\x07" if qos else b""
    result = mended(packet(b"".join(parts), mid=mid, body=body), qos)
    head = block(b"t") + mid
    assert result.startswith(head)
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, length = properties.unpack(result[len(head) :])
    assert result[len(head) + length :] == body
    assert properties.MessageExpiryInterval == 9
    assert properties.CorrelationData == correlation
    assert len(getattr(properties, "UserProperty", [])) == len(users)
    assert getattr(properties, "SubscriptionIdentifier", []) == subscriptions
    assert mended(result, qos) == result


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def test_what_cannot_be_read_is_spelled_out() -> None:
    odd, plain = block(b"a\xff\x00") + block("\ufeffü".encode()), block(b"a\\xff\\u0000") + block("\\ufeffü".encode())
    assert mended(packet(b"\x26" + odd), 1) == packet(b"\x26" + plain)


def test_long_text_stays_within_what_mqtt_allows() -> None:
    result = mended(packet_of_long_text("\ufeff".encode() * 20_000), 1)
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.unpack(result[5:])
    assert 65_000 < len(properties.ContentType) <= 65_535


def packet_of_long_text(text: bytes) -> bytes:
    properties = b"\x03" + block(text)
    return block(b"t") + b"\x00\x07" + varint(len(properties)) + properties


@given(st.binary(max_size=40), st.sampled_from([0, 1]))
def test_what_is_no_packet_is_refused_or_mended(data: bytes, qos: int) -> None:
    try:
        result = mended(data, qos)
    except ValueError:
        return
    assert mended(result, qos) == result


@pytest.mark.parametrize("properties", [b"\x99\x00", b"\x26\x00\x09a", b"\x0b\xff\xff\xff\xff\x01"])
def test_what_no_property_is(properties: bytes) -> None:
    with pytest.raises(ValueError, match=r"unknown|longer|no number"):
        mended(packet(properties, body=b""), 1)
