"""Streams as unit tests open and read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from event_triggers.message import Message
from event_triggers.sources.base import Opening, Outcome, Position, Settlement, Source, Stream

__all__ = ["bodies", "opened", "pull", "settle"]


@asynccontextmanager
async def opened(source: Source, *, group: str = "", start: Position | None = None) -> AsyncIterator[Stream]:
    with anyio.fail_after(10):
        async with source.open(Opening(group=group, start=start)) as stream:
            await stream.watch(source)
            yield stream


async def pull(stream: Stream) -> list[Message]:
    async for batch in stream:
        return list(batch)
    raise AssertionError("a stream never ends")


async def bodies(stream: Stream) -> list[bytes | None]:
    return [message.body for message in await pull(stream)]


async def settle(stream: Stream, messages: Sequence[Message], outcome: Outcome = Outcome.ACCEPTED) -> None:
    await stream.settle([Settlement(message, outcome) for message in messages])
