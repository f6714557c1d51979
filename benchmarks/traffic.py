"""Sending to the three brokers; each call returns when the broker has the message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks import plan
from servers.kafka import KafkaCluster
from servers.mosquitto import Mosquitto
from servers.sqs import MotoServer

__all__ = ["Sender"]

_WITHIN = 30.0


class Sender:
    """Clients that stay connected, so that what is measured begins with the message itself."""

    def __init__(self, kafka: KafkaCluster, sqs: MotoServer, mosquitto: Mosquitto) -> None:
        self._bootstrap = kafka.bootstrap
        # One message goes at once; many go as clients send them by default, which wait 5 ms for a batch to fill.
        self._one_by_one, self._in_batches = (
            Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, "linger.ms": linger}) for linger in (0, 5)
        )
        self._sqs = sqs
        self._mqtt = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._mqtt.connect("127.0.0.1", mosquitto.port)
        self._mqtt.loop_start()
        self.create_topics(plan.TOPICS)
        self._urls = {plan.QUEUE: sqs.create_queue(plan.QUEUE)}

    def close(self) -> None:
        """Disconnect."""
        self._mqtt.disconnect()
        self._mqtt.loop_stop()

    def create_topics(self, names: Iterable[str]) -> None:
        """Make Kafka topics of one partition each."""
        admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})
        for future in admin.create_topics([NewTopic(name, 1) for name in names]).values():
            future.result()

    def create_queue(self, name: str) -> str:
        """Make a queue and return its URL."""
        self._urls[name] = self._sqs.create_queue(name)
        return self._urls[name]

    def event(self, broker: str, run_id: str, event: str) -> None:
        """Send the message that an event of a group waits for."""
        body = plan.body_of(run_id, event)
        if broker == "kafka":
            self.kafka(plan.TOPICS[plan.EVENTS.index(event) % len(plan.TOPICS)], [body])
        elif broker == "sqs":
            self.sqs(plan.QUEUE, body)
        else:
            self.mqtt(f"bench/{run_id}", body)

    def kafka(self, topic: str, bodies: Sequence[dict[str, Any]]) -> None:
        """Send messages to a topic, all in one go."""
        producer = self._one_by_one if len(bodies) == 1 else self._in_batches
        for body in bodies:
            producer.produce(topic, json.dumps(body).encode())
            producer.poll(0)
        assert producer.flush(_WITHIN) == 0

    def sqs(self, queue: str, body: dict[str, Any]) -> None:
        """Send one message to a queue."""
        self._sqs.client().send_message(QueueUrl=self._urls[queue], MessageBody=json.dumps(body))

    def mqtt(self, topic: str, body: dict[str, Any]) -> None:
        """Publish one message with QoS 1."""
        self._mqtt.publish(topic, json.dumps(body), qos=1).wait_for_publish(_WITHIN)
