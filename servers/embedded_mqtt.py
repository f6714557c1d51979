"""An MQTT 3.1.1 broker that needs nothing but Python, for the demo and for websockets in tests: amqtt, as a process.

It speaks MQTT 3.1.1 only, takes any login and password, and forgets everything when it ends. It keeps a durable session
and queues for it while its client is away, but three things are not as a grown-up broker does them, so it is no place
to test durability: a message that is not acknowledged within 5 s, or before the connection breaks, is dropped instead
of sent again; what was queued comes with the retain flag set; overlapping filters bring one copy each.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from servers.ports import free_port
from servers.process import ManagedProcess

__all__ = ["EmbeddedMqtt"]


class EmbeddedMqtt:
    """The broker in a process of its own. A context manager: it answers inside, and is gone afterwards."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="event-triggers-embedded-mqtt-")
        self._addresses = Path(self._folder.name) / "addresses"
        self._process: ManagedProcess | None = None

    @property
    def port(self) -> int:
        """Where it speaks MQTT over TCP."""
        return self._port(0)

    @property
    def websocket_port(self) -> int:
        """Where it speaks MQTT over websockets, under any path."""
        return self._port(1)

    def _port(self, line: int) -> int:
        return int(self._addresses.read_text().splitlines()[line].rpartition(":")[2])

    def start(self, *, timeout: float = 30) -> EmbeddedMqtt:
        """Start it and return when it answers.

        :raises ServerFailed: when it does not, for example because amqtt is not installed.
        """
        self._process = ManagedProcess(
            "embedded mqtt",
            [sys.executable, "-m", "servers.embedded_mqtt", "--port-file", str(self._addresses)],
            log=Path(self._folder.name) / "embedded-mqtt.log",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        self._process.start(self._addresses.exists, timeout=timeout)
        return self

    def close(self) -> None:
        """End it and remove its folder."""
        if self._process is not None:
            self._process.stop()
        self._folder.cleanup()

    def __enter__(self) -> EmbeddedMqtt:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


async def serve(port_file: Path) -> None:
    """Run the broker until SIGTERM or SIGINT; its addresses go into the file once it answers, TCP first."""
    from amqtt.broker import Broker  # type: ignore[import-untyped]
    from amqtt.session import Session  # type: ignore[import-untyped]

    class OpenBroker(Broker):  # type: ignore[misc]
        """Lets everybody in, by name: for those it lets in as anonymous amqtt keeps no session."""

        async def _authenticate(self, session: Session, _: object) -> bool:
            return True

    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    listeners = {
        "default": {"type": "tcp", "bind": addresses[0]},
        "websockets": {"type": "ws", "bind": addresses[1]},
    }
    broker = OpenBroker({"listeners": listeners, "plugins": {}})
    await broker.start()
    try:
        scratch = port_file.with_suffix(".new")
        scratch.write_text("".join(f"{address}\n" for address in addresses))
        scratch.replace(port_file)  # at once: whoever sees the file can read all of it
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
    finally:
        await broker.shutdown()


def main() -> None:
    """Run an MQTT broker until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m servers.embedded_mqtt", description=main.__doc__)
    help_text = "takes host:port of MQTT over TCP, and in the second line of MQTT over websockets, once it answers"
    parser.add_argument("--port-file", type=Path, required=True, help=help_text)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(arguments.port_file))


if __name__ == "__main__":
    main()
