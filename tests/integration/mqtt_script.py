"""A broker that answers as it is told: for what real brokers do too, but cannot be brought to do in a test.

It understands just enough of MQTT to read what a client sends; what it sends is put together by the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from event_triggers.sources.base import BrokerConnection
from tests.integration.mqtt_support import PATIENCE, mqtt_connection

__all__ = ["Script", "scripted"]

CONNECT, PUBACK, PUBREC, PUBCOMP, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 4, 5, 7, 8, 10, 12, 14


class Script:
    """The broker's side of its newest connection.

    :param version: 5 or 4 (which is 3.1.1).
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.connack = b""
        """Properties of the CONNACK (MQTT 5)."""
        self.connect_code = 0
        self.session_present = False
        self.granted: int | None = None
        """What SUBACK says; the QoS that was asked for if ``None``."""
        self.subscribed: list[bytes] = []
        """The bodies of the SUBSCRIBE packets."""
        self.answers: list[tuple[int, int]] = []
        """Packet type and packet identifier of every acknowledgement."""
        self.one_by_one = False
        """Whether it looks at its connection again after each packet, as brokers do."""
        self.port = 0
        self._writer: asyncio.StreamWriter | None = None

    def connection(self, **extra: Any) -> BrokerConnection:
        """How to get here."""
        return mqtt_connection(self.port, **{"protocol": "5" if self.version == 5 else "3.1.1", **extra})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            while True:
                kind = (await reader.readexactly(1))[0] >> 4
                await self._answer(kind, await reader.readexactly(await _length(reader)))
                for _ in range(3 if self.one_by_one else 0):
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, kind: int, body: bytes) -> None:
        properties = bytes([len(self.connack)]) + self.connack if self.version == 5 else b""
        if kind == CONNECT:
            await self.send(0x20, bytes([self.session_present, self.connect_code]) + properties)
        elif kind in (SUBSCRIBE, UNSUBSCRIBE):
            if kind == SUBSCRIBE:
                self.subscribed.append(body)
            code = self.granted if self.granted is not None and kind == SUBSCRIBE else body[-1] & 3
            nothing = b"\0" if self.version == 5 else b""
            codes = bytes([code]) if kind == SUBSCRIBE or self.version == 5 else b""
            await self.send(0x90 if kind == SUBSCRIBE else 0xB0, body[:2] + nothing + codes)
        elif kind in (PUBACK, PUBREC, PUBCOMP):
            mid = int.from_bytes(body[:2], "big")
            self.answers.append((kind, mid))
            if kind == PUBREC:
                await self.send(0x62, body[:2])
        elif kind == PINGREQ:
            await self.send(0xD0, b"")

    def stop_reading(self) -> None:
        """Leave what the client sends to the network."""
        assert self._writer is not None
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def go_on_reading(self) -> None:
        """Read on, and all that has come meanwhile."""
        assert self._writer is not None
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def publish(
        self, topic: bytes, body: bytes, mid: int, *, qos: int = 1, dup: bool = False, under: tuple[int, ...] = ()
    ) -> None:
        """Send a PUBLISH, under these subscription identifiers."""
        properties = b"".join(b"\x0b" + _number(one) for one in under)
        header = len(topic).to_bytes(2, "big") + topic + (mid.to_bytes(2, "big") if qos else b"")
        if self.version == 5:
            header += _number(len(properties)) + properties
        await self.send(0x30 | dup << 3 | qos << 1, header + body)

    async def send(self, first: int, body: bytes) -> None:
        """Send one packet."""
        assert self._writer is not None
        self._writer.write(bytes([first]) + _number(len(body)) + body)
        await self._writer.drain()

    async def until_answered(self, *expected: tuple[int, int]) -> None:
        """Wait until these acknowledgements have come, and no others."""
        with anyio.fail_after(PATIENCE):
            while len(self.answers) < len(expected):  # noqa: ASYNC110 - it takes the network's time
                await anyio.sleep(0.01)
        assert self.answers == list(expected)


async def _length(reader: asyncio.StreamReader) -> int:
    value = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _number(value: int) -> bytes:
    found = bytearray()
    while True:
        value, byte = divmod(value, 128)
        found.append(byte | (128 if value else 0))
        if not value:
            return bytes(found)


@asynccontextmanager
async def scripted(version: int = 5) -> AsyncIterator[Script]:
    """A broker of this version, listening."""
    script = Script(version)
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = script.serve
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        script.port = server.sockets[0].getsockname()[1]
        yield script
