"""A broker that speaks Kafka's protocol, needs no Java, and forgets everything: librdkafka's own mock cluster.

It lives inside a producer of ``confluent-kafka``: in this process or, by ``python -m servers.embedded_kafka``, in
its own. Topics appear when somebody first produces to them, with :data:`PARTITIONS` partitions. It has no time index (a
look for the first message since a moment finds nothing), no logins, no encryption, and forgets all when it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from servers.process import ManagedProcess, ServerFailed

__all__ = ["PARTITIONS", "EmbeddedKafka", "MockKafka"]

PARTITIONS = 4
"""How many partitions the mock cluster gives a topic."""


class MockKafka:
    """The mock cluster inside this process. A context manager: it answers inside, and is gone afterwards.

    :param brokers: how many brokers it pretends to be.
    :raises ServerFailed: when ``confluent-kafka`` is not installed, or the cluster does not come up.
    """

    def __init__(self, brokers: int = 1) -> None:
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError as error:
            raise ServerFailed("confluent-kafka is not installed: pip install confluent-kafka") from error
        # The mock cluster replaces the given address by its own.
        self._producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": brokers})
        try:
            metadata = self._producer.list_topics(timeout=10)
        except KafkaException as error:
            raise ServerFailed(f"librdkafka's mock cluster did not answer: {error}") from error
        self.bootstrap = ",".join(f"{one.host}:{one.port}" for one in metadata.brokers.values())

    def close(self) -> None:
        """End the cluster: with the producer goes the mock cluster inside it."""
        self._producer.flush(1)
        del self._producer

    def __enter__(self) -> MockKafka:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class EmbeddedKafka:
    """The mock cluster in a process of its own. A context manager, as :class:`MockKafka`."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self._folder = tempfile.TemporaryDirectory(prefix="event-triggers-embedded-kafka-")
        self._address = Path(self._folder.name) / "address"
        self._process: ManagedProcess | None = None

    @property
    def bootstrap(self) -> str:
        """``host:port`` of every broker, for ``bootstrap.servers``."""
        return self._address.read_text().strip()

    def start(self, *, timeout: float = 30) -> EmbeddedKafka:
        """Start it and return when it has an address."""
        options = ["--port-file", str(self._address), "--brokers", str(self._brokers)]
        self._process = ManagedProcess(
            "embedded kafka",
            [sys.executable, "-m", "servers.embedded_kafka", *options],
            log=Path(self._folder.name) / "embedded-kafka.log",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        self._process.start(self._address.exists, timeout=timeout)
        return self

    def close(self) -> None:
        """End it and remove its folder."""
        if self._process is not None:
            self._process.stop()
        self._folder.cleanup()

    def __enter__(self) -> EmbeddedKafka:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def main() -> None:
    """Run the mock cluster until SIGTERM or SIGINT; its ``host:port`` goes into the file once it answers."""
    parser = argparse.ArgumentParser(prog="python -m servers.embedded_kafka", description=main.__doc__)
    parser.add_argument("--port-file", type=Path, required=True, help="takes host:port (several: with commas between)")
    parser.add_argument("--brokers", type=int, default=1, help="how many brokers to pretend to be")
    arguments = parser.parse_args()
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with MockKafka(arguments.brokers) as kafka:
        scratch = arguments.port_file.with_suffix(".new")
        scratch.write_text(kafka.bootstrap + "\n")
        scratch.replace(arguments.port_file)  # at once: whoever sees the file can read all of it
        ended.wait()


if __name__ == "__main__":
    main()
