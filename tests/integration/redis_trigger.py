"""A trigger of Airflow that takes messages from a list of a real Redis, where they stay until somebody takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

__all__ = ["RedisListTrigger"]


class RedisListTrigger(BaseTrigger):
    """Fires for every message of a list, in order, and never ends.

    It speaks Redis's protocol by itself: a client that loses a cancellation now and then would go on taking messages.
    """

    def __init__(self, port: int, key: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.port = port
        self.key = key

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"port": self.port, "key": self.key}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def ask(command: str) -> bytes:
            writer.write(f"{command} {self.key}\r\n".encode())
            await writer.drain()
            return await reader.readuntil(b"\r\n")

        try:
            while True:
                # An idle trigger that is cancelled takes nothing: a command may outlive its caller.
                if await ask("LLEN") == b":0\r\n":
                    await asyncio.sleep(0.02)
                    continue
                length = int((await ask("LPOP"))[1:])
                if length >= 0:
                    data = (await reader.readexactly(length + 2))[:-2]
                    yield TriggerEvent({"data": data})  # type: ignore[no-untyped-call]
        finally:
            writer.close()
