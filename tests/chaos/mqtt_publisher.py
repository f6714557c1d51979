"""Publishes over MQTT with QoS 1, and survives a restart of the broker that is announced to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["MqttPublisher"]


class MqttPublisher:
    """One connection, for one thread that publishes.

    :param patience: seconds that anything may take.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._connections = 0
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_connect = self._on_connect

    def connect(self, port: int) -> None:
        """Return when the broker has let us in."""
        with self._until_connected():
            self._client.connect("127.0.0.1", port)
            self._client.loop_start()

    def close(self) -> None:
        """Disconnect. Safe to repeat."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, body: str) -> None:
        """Return when the broker has it.

        :raises TimeoutError: when it does not take it.
        """
        sent = self._client.publish(topic, body, qos=1)
        sent.wait_for_publish(self._patience)
        if not sent.is_published():
            raise TimeoutError("Mosquitto does not take a message")

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """The broker is started again inside the context, while nobody publishes; we are connected again at its end.

        Who is cut off in the middle of a message does not know whether it counts, and sends it twice.
        """
        with self._until_connected():
            yield

    @contextmanager
    def _until_connected(self) -> Iterator[None]:
        before = self._connections
        yield
        with self._changed:
            if not self._changed.wait_for(lambda: self._connections > before, self._patience):
                raise TimeoutError("no connection to Mosquitto")

    def _on_connect(self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if not reason.is_failure:
            with self._changed:
                self._connections += 1
                self._changed.notify_all()
