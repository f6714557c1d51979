"""What the event loop feels of 20,000 messages a second: how late it runs what is due.

The messages come live, from a process of their own that keeps to the rate.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.stream import first_seen, topic, waiting_hub

__all__ = ["Lag", "lag"]

_LOOK = 0.002
_ROOT = Path(__file__).parents[1]


class Lag(NamedTuple):
    """How late the event loop runs what is due, in seconds, while messages come at ``rate`` a second."""

    rate: float
    p50: float
    p99: float
    most: float


async def lag(bootstrap: str, *, waiting: int = 20_000, messages: int = 100_000, rate: float = 20_000) -> Lag:
    """How late the loop runs what is due, from the first message to the last."""
    late: list[float] = []

    async def look() -> None:
        while True:
            due = time.perf_counter() + _LOOK
            await asyncio.sleep(_LOOK)
            late.append(time.perf_counter() - due)

    async with topic(bootstrap) as name, waiting_hub(bootstrap, name, waiting) as (hub, subscription):
        arguments = ("-m", "benchmarks.paced_producer", bootstrap, name, str(messages), str(rate))
        producer = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=_ROOT)
        looking = None
        try:
            seen = await first_seen(hub)
            began = time.perf_counter()
            looking = asyncio.create_task(look(), name="lag")
            (delivery,) = await subscription.receive()
            reached = (messages + 1 - seen) / (time.perf_counter() - began)
            delivery.accept()
        finally:
            if looking is not None:
                looking.cancel()
            if producer.returncode is None:
                producer.terminate()
            await producer.wait()
    late.sort()
    return Lag(reached, late[len(late) // 2], late[int(len(late) * 0.99)], late[-1])
