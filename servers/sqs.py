"""Servers that speak Amazon SQS, each as a process of its own: moto (Python) and ElasticMQ (Java, from Maven Central).

Both keep everything in memory: what is stopped has forgotten its queues and messages. They differ from SQS, and from
each other, in small things. moto takes any body, also an empty one, deletes with any receipt handle, and serves other
AWS services on the same port (STS, among them). ElasticMQ refuses the bodies that SQS refuses, and every receipt handle
but the newest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servers.jars import class_path, java
from servers.ports import free_port
from servers.process import accepts_connections
from servers.server import Server

__all__ = ["ElasticMqServer", "MotoServer", "SqsServer"]


class SqsServer(Server):
    """One server.

    :param port: the port on the loopback interface; a free one by default.
    """

    ready_within = 60
    region = "us-east-1"
    access_key = "access"
    secret_key = "secret"

    def __init__(self, port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()
        self._clients: dict[str, Any] = {}
        self.authority: Path | None = None
        """The file of the certificate that clients must trust; ``None`` without TLS."""

    @property
    def endpoint_url(self) -> str:
        """What belongs into ``endpoint_url`` of an AWS connection's extra."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return accepts_connections(self.port)

    def stop(self) -> None:
        # Nothing is kept, so nothing has to be put in order.
        self.kill()

    def close(self) -> None:
        """End it and remove its folder."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        super().close()

    def client(self, service: str = "sqs") -> Any:
        """A blocking client of the AWS SDK for this server, safe to use from any thread."""
        from botocore.session import Session

        if service not in self._clients:
            self._clients[service] = Session().create_client(
                service,
                region_name=self.region,
                endpoint_url=self.endpoint_url,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                verify=str(self.authority) if self.authority is not None else None,
            )
        return self._clients[service]

    def create_queue(self, name: str, **attributes: str) -> str:
        """Make a queue (a FIFO queue when its name ends in ``.fifo``) and return its URL."""
        if name.endswith(".fifo"):
            attributes = {"FifoQueue": "true", **attributes}
        url: str = self.client().create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return url

    def kept(self, url: str) -> int:
        """How many messages this queue keeps: visible, in flight and delayed ones."""
        counts = self.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return sum(int(counts[f"ApproximateNumberOfMessages{which}"]) for which in ("", "NotVisible", "Delayed"))


class MotoServer(SqsServer):
    """moto's server, on this Python.

    :param certificate: a PEM file with the certificate to show, and the file of its key; without, it speaks no TLS.
    """

    name = "moto"

    def __init__(self, port: int | None = None, *, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(port)
        self._certificate = certificate
        self.authority = certificate[0] if certificate is not None else None

    @property
    def endpoint_url(self) -> str:
        return super().endpoint_url if self._certificate is None else f"https://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str | Path]:
        command: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        if self._certificate is not None:
            command += ["-s", "-c", self._certificate[0], "-k", self._certificate[1]]
        return command


class ElasticMqServer(SqsServer):
    """ElasticMQ, without its page of statistics."""

    name = "elasticmq"

    def command(self) -> Sequence[str | Path]:
        options = {
            "rest-sqs.bind-hostname": "127.0.0.1",
            "rest-sqs.bind-port": self.port,
            "node-address.host": "127.0.0.1",
            "node-address.port": self.port,
            "rest-stats.enabled": "false",
        }
        java_options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        settings = [f"-D{name}={value}" for name, value in options.items()]
        return [java(), *java_options, *settings, "-cp", class_path("elasticmq"), "org.elasticmq.server.Main"]
