"""``python -m benchmarks.paced_producer BOOTSTRAP TOPIC MESSAGES RATE``: sends so many a second.

By librdkafka, which leaves the cores to what is measured.
"""

from __future__ import annotations

import sys
import time

import msgspec
from confluent_kafka import Producer

from benchmarks.stream import LAST, body

__all__: list[str] = []

_TICK = 0.005


def main(bootstrap: str, topic: str, messages: str, rate: str) -> None:
    """Send; ends when the broker has all of them."""
    total, per_second = int(messages), float(rate)
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "queue.buffering.max.messages": total + 1, "acks": 1}
    )
    bodies = [body(number) for number in range(total)]
    began, sent = time.perf_counter(), 0
    while sent < total:
        due = min(total, int((time.perf_counter() - began) * per_second) + 1)
        for one in bodies[sent:due]:
            producer.produce(topic, one)
        sent = due
        producer.poll(0)
        time.sleep(_TICK)
    producer.flush(60)
    producer.produce(topic, msgspec.json.encode(LAST))
    producer.flush(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
