"""Apache Kafka in KRaft mode, without ZooKeeper: one broker or a cluster, from Maven Central's jars.

Every node is broker and controller at once. Ports and folders belong to the node, not to its process, so a node that is
stopped (or killed) and started again is the same node with the same data. Every node has a ``PLAINTEXT`` listener named
``INTERNAL``, which brokers and tests use among themselves; further listeners (TLS, SASL, behind a proxy) are asked for.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import struct
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from servers.jars import class_path, java
from servers.ports import free_port
from servers.process import ManagedProcess

__all__ = ["KafkaCluster", "KafkaListener", "KafkaNode"]

_SETTINGS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "INTERNAL",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "true",
    "log.cleaner.dedupe.buffer.size": "2097152",
    "transaction.state.log.num.partitions": "2",
    "offsets.topic.num.partitions": "2",
    "share.coordinator.state.topic.num.partitions": "2",
    # A stop waits for this long at most to move leaders away.
    "controlled.shutdown.enable": "true",
    "log.retention.check.interval.ms": "1000",
    "log.initial.task.delay.ms": "500",
    "file.delete.delay.ms": "200",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
}

_JAVA_OPTIONS = [
    "-Xms96m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
]


@dataclass(frozen=True)
class KafkaListener:
    """One more way into a node.

    :param name: upper case, unique in the node.
    :param protocol: ``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``.
    :param advertised: the port that clients are told, when it is not the listener's own (a proxy in front of it).
    :param settings: Kafka's settings of this listener, without the prefix ``listener.name.<name>.``.
    """

    name: str
    protocol: str = "PLAINTEXT"
    port: int = field(default_factory=free_port)
    advertised: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


class KafkaNode:
    """One broker-and-controller. Made by :class:`KafkaCluster`.

    :param voters: ``controller.quorum.voters`` of the whole cluster.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        *,
        cluster_id: str,
        voters: str,
        controller_port: int,
        listeners: Sequence[KafkaListener],
        settings: Mapping[str, str],
    ) -> None:
        self.number = number
        self.port = free_port()
        self.folder = folder
        self._data = folder / "data"
        all_listeners = [KafkaListener("INTERNAL", port=self.port), *listeners]
        self._settings = {
            "node.id": str(number),
            "controller.quorum.voters": voters,
            "log.dirs": str(self._data),
            **_listener_settings(all_listeners, controller_port),
            **settings,
        }
        self._cluster_id = cluster_id
        self._process: ManagedProcess | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the ``INTERNAL`` listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def log(self) -> Path:
        """The file that takes what the process prints."""
        return self.folder / "kafka.log"

    def start(self, *, timeout: float = 90) -> KafkaNode:
        """Start it, again on the same ports and data if it ran before, and return when it answers clients."""
        self._prepare()
        self._process = ManagedProcess(
            f"kafka {self.number}",
            [java(), *_JAVA_OPTIONS, "-cp", class_path("kafka"), "kafka.Kafka", self.folder / "server.properties"],
            log=self.log,
            env={**os.environ, "LC_ALL": "C"},
            cwd=self.folder,
        )
        self._process.start(lambda: answers(self.port), timeout=timeout)
        return self

    def _prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        lines = (f"{name}={_escaped(value)}\n" for name, value in self._settings.items())
        (self.folder / "server.properties").write_text("".join(lines))
        identity = self._data / "meta.properties"
        if not identity.exists():
            # What Kafka's own storage tool writes for a node whose voters are configured; starting that takes seconds.
            identity.write_text(
                f"version=1\ncluster.id={self._cluster_id}\nnode.id={self.number}\ndirectory.id={kafka_uuid()}\n"
            )

    def stop(self) -> None:
        """End it in order: leaders move away, logs are flushed."""
        if self._process is not None:
            self._process.stop(timeout=30)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()


class KafkaCluster:
    """One or several nodes. A context manager: they run inside, and nothing is left afterwards.

    :param brokers: how many nodes; internal topics are replicated to all of them.
    :param listeners: further listeners, by node (first node first); a missing entry adds none.
    :param settings: Kafka's settings for every node, over ours.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        listeners: Sequence[Sequence[KafkaListener]] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="event-triggers-kafka-"))
        controllers = [free_port() for _ in range(brokers)]
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, start=1))
        replicas = {
            "offsets.topic.replication.factor": str(brokers),
            "transaction.state.log.replication.factor": str(brokers),
            "transaction.state.log.min.isr": str(max(1, brokers - 1)),
            "share.coordinator.state.topic.replication.factor": str(brokers),
            "share.coordinator.state.topic.min.isr": str(max(1, brokers - 1)),
        }
        cluster_id = kafka_uuid()
        self.nodes = [
            KafkaNode(
                number,
                self.home / f"node-{number}",
                cluster_id=cluster_id,
                voters=voters,
                controller_port=port,
                listeners=listeners[number - 1] if number <= len(listeners) else (),
                settings={**_SETTINGS, **replicas, **(settings or {})},
            )
            for number, port in enumerate(controllers, start=1)
        ]

    @property
    def bootstrap(self) -> str:
        """The ``bootstrap.servers`` of all ``INTERNAL`` listeners."""
        return ",".join(node.address for node in self.nodes)

    def start(self) -> KafkaCluster:
        """Start all nodes and return when each answers clients."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            # A node of a quorum is only ready when the others are there, so none can be waited for alone.
            list(threads.map(KafkaNode.start, self.nodes))
        return self

    def close(self) -> None:
        """End all nodes and remove their folders."""
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            for node in self.nodes:
                stack.callback(node.kill)

    def __enter__(self) -> KafkaCluster:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _listener_settings(listeners: Sequence[KafkaListener], controller_port: int) -> dict[str, str]:
    bound = [f"{one.name}://127.0.0.1:{one.port}" for one in listeners] + [f"CONTROLLER://127.0.0.1:{controller_port}"]
    settings = {
        "listeners": ",".join(bound),
        "advertised.listeners": ",".join(f"{one.name}://127.0.0.1:{one.advertised or one.port}" for one in listeners),
        "listener.security.protocol.map": ",".join(
            [f"{one.name}:{one.protocol}" for one in listeners] + ["CONTROLLER:PLAINTEXT"]
        ),
    }
    for one in listeners:
        settings |= {f"listener.name.{one.name.lower()}.{name}": value for name, value in one.settings.items()}
    return settings


def answers(port: int, *, timeout: float = 2) -> bool:
    """Whether a Kafka broker on this port of the loopback interface answers an unencrypted client's request."""
    # ApiVersions, version 0, correlation id 1, no client id: the one request every broker answers before any login.
    request = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            header = connection.recv(8, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(header) == 8 and struct.unpack(">ii", header)[1] == 1


def kafka_uuid() -> str:
    """A fresh id in Kafka's notation."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode("ascii")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
