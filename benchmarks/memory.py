"""What a waiting group takes of memory, beyond an idle trigger of Airflow's own.

``python -m benchmarks.memory`` prints it, with where it was allocated.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from airflow.triggers.base import BaseTrigger

from benchmarks.waiting import EVENTS, SilentTopic, all_live, group_trigger, idle_trigger, running, triggerer

__all__ = ["Memory", "memory_per_group"]

_MOST_SHOWN = 40


class Memory(NamedTuple):
    """Bytes per trigger, as Python's allocator was asked for them."""

    groups: int
    ours: float
    """Of a group."""
    idle: float
    """Of Airflow's own."""
    places: list[tuple[str, float]]
    """File and line, and how much of ``ours`` was allocated there; most first."""

    @property
    def beyond(self) -> float:
        """What a group takes more."""
        return self.ours - self.idle


async def memory_per_group(groups: int = 200, events: int = EVENTS) -> Memory:
    """Measure it. The broker is silent and takes nothing itself."""
    async with triggerer() as shared:

        async def live(count: int) -> None:
            await all_live(shared.hub, count * events)

        # What is made once, by the first of each kind, is not the others'.
        async with running([group_trigger(-1, SilentTopic, events=events), idle_trigger(-1)]):
            await live(1)
            ours, places = await _taken(lambda: _groups(groups, events), lambda: live(groups + 1), groups)
            idle, _ = await _taken(lambda: map(idle_trigger, range(groups)), lambda: asyncio.sleep(0), groups)
    return Memory(groups, ours, idle, places)


def _groups(count: int, events: int) -> Iterable[BaseTrigger]:
    return (group_trigger(number, SilentTopic, events=events) for number in range(count))


async def _taken(
    make: Callable[[], Iterable[BaseTrigger]], settled: Callable[[], object], count: int
) -> tuple[float, list[tuple[str, float]]]:
    gc.collect()
    said = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # whoever keeps what is logged would be measured with it
    tracemalloc.start()
    try:
        async with running(list(make())):
            await settled()  # type: ignore[misc]
            for _ in range(50):
                await asyncio.sleep(0)
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
            snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
        logging.disable(said)
    by_place: Counter[str] = Counter()
    for statistic in snapshot.statistics("lineno"):
        frame = statistic.traceback[0]
        by_place[f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"] += statistic.size
    return taken / count, [(place, size / count) for place, size in by_place.most_common()]


def main() -> int:
    """Measure and print."""
    measured = asyncio.run(memory_per_group())
    for place, size in measured.places[:_MOST_SHOWN]:
        print(f"{size:9.0f}  {place}")
    print(
        f"a group of {EVENTS} events takes {measured.ours / 1024:.1f} KB, Airflow's own idle trigger "
        f"{measured.idle / 1024:.1f} KB: {measured.beyond / 1024:.1f} KB more (of {measured.groups} each)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
