"""Mending PUBLISH packets of MQTT 5 whose properties hold text that the client library cannot stand.

It takes such a packet for a broken connection. With a durable session the same packet comes again over the next
connection, so one message would stop the stream for ever. U+FEFF is such a character, which MQTT allows, and so is
whatever a broker passes on without looking.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["mended"]

_NUMBERS = {0x01: 1, 0x02: 4, 0x23: 2}
"""Bytes of the properties that are numbers: payload format, expiry, topic alias."""
_TEXTS = {0x03: 1, 0x08: 1, 0x26: 2}
"""How many texts make up a property: content type, response topic, user property."""
_BINARY = 0x09
_SUBSCRIPTION = 0x0B
_MOST_BYTES = 0xFFFF


def mended(packet: bytes, qos: int) -> bytes:
    """The packet, with what cannot be read in the texts of its properties spelled out: ``\\xff``, ``\\ufeff``.

    :param packet: what follows the fixed header.
    :raises ValueError: when it is no PUBLISH packet of MQTT 5.
    """
    start = 2 + int.from_bytes(packet[:2], "big") + (2 if qos else 0)
    length, begin = _varint(packet, start)
    end = begin + length
    if end > len(packet):
        raise ValueError("the properties are longer than the packet")
    properties = b"".join(_properties(packet[:end], begin))
    return packet[:start] + _as_varint(len(properties)) + properties + packet[end:]


def _properties(packet: bytes, place: int) -> Iterator[bytes]:
    while place < len(packet):
        kind, begin = packet[place], place + 1
        if kind in _TEXTS:
            mended_property = bytes([kind])
            for _ in range(_TEXTS[kind]):
                text, begin = _block(packet, begin)
                mended_property += _readable(text)
            yield mended_property
        else:
            if kind in _NUMBERS:
                begin += _NUMBERS[kind]
            elif kind == _BINARY:
                _, begin = _block(packet, begin)
            elif kind == _SUBSCRIPTION:
                _, begin = _varint(packet, begin)
            else:
                raise ValueError(f"property {kind} is unknown")
            yield packet[place:begin]
        place = begin


def _block(packet: bytes, place: int) -> tuple[bytes, int]:
    begin = place + 2
    end = begin + int.from_bytes(packet[place:begin], "big")
    if end > len(packet):
        raise ValueError("a property is longer than the packet")
    return packet[begin:end], end


def _readable(text: bytes) -> bytes:
    plain = "".join(
        f"\\u{ord(char):04x}" if char in "\0\ufeff" else char for char in text.decode("utf-8", "backslashreplace")
    ).encode()[:_MOST_BYTES]
    plain = plain.decode("utf-8", "ignore").encode()  # the cut may have gone through a character
    return len(plain).to_bytes(2, "big") + plain


def _varint(packet: bytes, place: int) -> tuple[int, int]:
    number = 0
    for count in range(4):
        if place + count >= len(packet):
            break
        byte = packet[place + count]
        number |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            return number, place + count + 1
    raise ValueError("a length is no number")


def _as_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
