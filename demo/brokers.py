"""The three brokers of the demo, each a process of its own, and how to send to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from demo.belongings import Belongings
from demo.story import QUEUE, Step
from servers.embedded_kafka import EmbeddedKafka
from servers.embedded_mqtt import EmbeddedMqtt
from servers.process import ServerFailed
from servers.sqs import MotoServer

__all__ = ["Brokers"]

_HOST = "127.0.0.1"
_SEND_WITHIN = 10.0


class Brokers:
    """A Kafka-protocol broker, an SQS server and an MQTT broker; no Docker, no Java.

    :param belongings: takes what is to be ended.
    :param say: told of each broker that runs.
    """

    def __init__(self, belongings: Belongings, say: Callable[[str], None]) -> None:
        kafka, self._sqs, mqtt = EmbeddedKafka(), MotoServer(), EmbeddedMqtt()
        for server in (kafka, self._sqs, mqtt):
            belongings.add(server.close)
        kafka.start()
        say(f"Kafka  {kafka.bootstrap}  (librdkafka's mock cluster)")
        self._sqs.start()
        say(f"SQS    {_HOST}:{self._sqs.port}  (moto)")
        mqtt.start()
        say(f"MQTT   {_HOST}:{mqtt.port}  (amqtt)")
        self._queue_url = self._sqs.create_queue(QUEUE)
        self._kafka = _kafka_producer(kafka.bootstrap)
        self._mqtt = _mqtt_client(mqtt.port)
        belongings.add(self._disconnect)
        self.connections = {
            "AIRFLOW_CONN_KAFKA_DEFAULT": _connection("kafka", extra={"bootstrap.servers": kafka.bootstrap}),
            "AIRFLOW_CONN_AWS_DEFAULT": _connection(
                "aws",
                login=self._sqs.access_key,
                password=self._sqs.secret_key,
                extra={"region_name": self._sqs.region, "endpoint_url": self._sqs.endpoint_url},
            ),
            # amqtt speaks MQTT 3.1.1 only.
            "AIRFLOW_CONN_MQTT_DEFAULT": _connection("mqtt", host=_HOST, port=mqtt.port, extra={"protocol": "3.1.1"}),
        }

    def publish(self, step: Step) -> None:
        """Send one message, and return when its broker has it.

        :raises ServerFailed: when the broker did not take it in time.
        """
        send = {"kafka": self._to_kafka, "sqs": self._to_sqs, "mqtt": self._to_mqtt}[step.broker]
        send(step)

    def left_in_queue(self) -> list[bytes]:
        """The bodies of the messages that the SQS queue shows now; they are invisible for a moment afterwards."""
        answer = self._sqs.client().receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=10, VisibilityTimeout=1, WaitTimeSeconds=1
        )
        return [message["Body"].encode() for message in answer.get("Messages", ())]

    def kept_in_queue(self) -> int:
        """How many messages the SQS queue keeps, visible or not."""
        return self._sqs.kept(self._queue_url)

    def _to_kafka(self, step: Step) -> None:
        # One partition, so that what must not count is looked at before what counts.
        self._kafka.produce(step.where, step.body, partition=0)
        if self._kafka.flush(_SEND_WITHIN):
            raise ServerFailed(f"Kafka did not take a message for {step.where} within {_SEND_WITHIN:.0f} s")

    def _to_sqs(self, step: Step) -> None:
        self._sqs.client().send_message(QueueUrl=self._queue_url, MessageBody=step.body.decode())

    def _to_mqtt(self, step: Step) -> None:
        sent = self._mqtt.publish(step.where, step.body, qos=1)
        sent.wait_for_publish(_SEND_WITHIN)
        if not sent.is_published():
            raise ServerFailed(f"MQTT did not take a message for {step.where} within {_SEND_WITHIN:.0f} s")

    def _disconnect(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()


def _kafka_producer(bootstrap: str) -> Any:
    from confluent_kafka import Producer

    # It has nothing to say of a broker that ends before it.
    return Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 0})


def _mqtt_client(port: int) -> Any:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, client_id="demo")
    client.connect(_HOST, port)
    client.loop_start()
    return client


def _connection(conn_type: str, **fields: Mapping[str, Any] | str | int) -> str:
    """An Airflow connection as JSON, for an ``AIRFLOW_CONN_...`` variable."""
    return json.dumps({"conn_type": conn_type, **fields})
