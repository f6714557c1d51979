"""The brokers that the DAGs of this folder listen to, and a way to publish to each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import paho.mqtt.publish
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from servers.airflow_client import AirflowClient
from servers.kafka import KafkaCluster
from servers.mosquitto import Mosquitto
from servers.sqs import MotoServer

__all__ = ["Brokers", "running_brokers"]

TOPIC = "airflow-tests"
QUEUES = ("one", "two", "three.fifo", "stock", "stories", "faults", "secrets", "starts")


class Brokers:
    """Apache Kafka, moto and Mosquitto, with their connections known to Airflow."""

    def __init__(self, kafka: KafkaCluster, sqs: MotoServer, mosquitto: Mosquitto) -> None:
        self.kafka = kafka
        self.sqs = sqs
        self.mosquitto = mosquitto
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        self._client = sqs.client()
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        for future in admin.create_topics([NewTopic(TOPIC, 3), NewTopic("starts", 3)]).values():
            future.result()
        for queue in QUEUES:
            fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if queue.endswith(".fifo") else {}
            sqs.create_queue(queue, **fifo)

    def connect(self, client: AirflowClient) -> None:
        """Tell Airflow how to reach them."""
        client.set_connection("tests_kafka", "kafka", extra={"bootstrap.servers": self.kafka.bootstrap})
        client.set_connection(
            "tests_aws",
            "aws",
            login="key",
            password="secret",
            extra={"region_name": "us-east-1", "endpoint_url": self.sqs.endpoint_url},
        )
        client.set_connection("tests_mqtt", "mqtt", host="127.0.0.1", port=self.mosquitto.port)

    def to_kafka(self, body: dict[str, Any], *, topic: str = TOPIC) -> None:
        """Publish, and return when Kafka has it."""
        self._producer.produce(topic, json.dumps(body).encode())
        assert self._producer.flush(30) == 0

    def to_sqs(self, queue: str, body: dict[str, Any]) -> None:
        """Send, and return when the queue has it."""
        fifo = {"MessageGroupId": str(body.get("run"))} if queue.endswith(".fifo") else {}
        url = self._client.get_queue_url(QueueName=queue)["QueueUrl"]
        self._client.send_message(QueueUrl=url, MessageBody=json.dumps(body), **fifo)

    def kept(self, queue: str) -> int:
        """How many messages a queue still has."""
        return self.sqs.kept(self._client.get_queue_url(QueueName=queue)["QueueUrl"])

    def subscriptions(self, topic: str) -> int:
        """How often this topic filter has been subscribed to so far, by Mosquitto's log."""
        return self.mosquitto.log.read_text(errors="replace").count(f"{topic} (QoS")

    def to_mqtt(self, topic: str, body: dict[str, Any]) -> None:
        """Publish with QoS 1, and return when the broker has it."""
        paho.mqtt.publish.single(topic, json.dumps(body), qos=1, hostname="127.0.0.1", port=self.mosquitto.port)


@contextmanager
def running_brokers() -> Iterator[Brokers]:
    """All three, for as long as the context is open."""
    with ExitStack() as stack:
        yield Brokers(
            stack.enter_context(KafkaCluster()), stack.enter_context(MotoServer()), stack.enter_context(Mosquitto())
        )
