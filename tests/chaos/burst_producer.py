"""Sends the lines of a file to a Kafka topic as fast as it can, in a process of its own.

Usage: ``python -m tests.chaos.burst_producer BOOTSTRAP TOPIC FILE``; ends when the broker has all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from confluent_kafka import Producer


def main(bootstrap: str, topic: str, file: str) -> int:
    """Send, in the order of the file within each partition."""
    refused: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )

    def told(error: object, message: object) -> None:
        if error is not None:
            refused.append(str(error))

    for body in Path(file).read_bytes().splitlines():
        while True:
            try:
                producer.produce(topic, body, on_delivery=told)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush(120)
    print(f"{len(refused)} refused {refused[:1]}")
    return 1 if refused or len(producer) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
