"""What the hub takes in: messages per second beside the bare client, and what the event loop feels of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import hub
from benchmarks.lag import lag as loop_lag
from benchmarks.report import Report
from benchmarks.world import Brokers

__all__ = ["measure_lag", "measure_throughput"]


def measure_throughput(
    brokers: Brokers, report: Report, *, messages: int, rounds: int, waiting: tuple[int, ...] = (1, 1000, 20_000)
) -> None:
    """Hub and bare client in turns, in the same process."""
    with _without_logs():
        found = asyncio.run(hub.throughput(brokers.kafka.bootstrap, waiting=waiting, messages=messages, rounds=rounds))
    for one in found:
        report.add("hub", one.hub, "messages/s", at=one.waiting)
        report.add("bare", one.bare, "messages/s", at=one.waiting)
        report.add("hub of bare", one.ratio, "times", at=one.waiting)


def measure_lag(brokers: Brokers, report: Report, *, seconds: float, rate: int = 20_000) -> None:
    """How late the event loop is while so many messages a second come."""
    with _without_logs():
        lag = asyncio.run(loop_lag(brokers.kafka.bootstrap, waiting=20_000, messages=int(rate * seconds), rate=rate))
    report.add("lag rate", lag.rate, "messages/s")
    report.add("lag p50", lag.p50, "s")
    report.add("lag p99", lag.p99, "s")
    report.add("lag most", lag.most, "s")


@contextmanager
def _without_logs() -> Iterator[None]:
    """What the hub logs of each connection is not what is measured."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
