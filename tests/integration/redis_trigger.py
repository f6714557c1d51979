"""A trigger of Airflow that takes messages from a list of a real Redis, where they stay until somebody takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from airflow.triggers.base import BaseTrigger, TriggerEvent

__all__ = ["RedisListTrigger"]


class RedisListTrigger(BaseTrigger):
    """Fires for every message of a list, in order, and never ends."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.port = port
        self.key = key

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"port": self.port, "key": self.key}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with redis.asyncio.Redis(host="127.0.0.1", port=self.port) as client:
            while True:
                data = await client.lpop(self.key)
                if data is None:
                    await asyncio.sleep(0.02)
                else:
                    yield TriggerEvent({"data": data})  # type: ignore[no-untyped-call]
