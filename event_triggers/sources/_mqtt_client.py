"""The MQTT client, aiomqtt, and the one place that reaches into the paho client inside it.

Why reach in: aiomqtt acknowledges by itself, drops the DUP flag and the answer to "is my session still there", and
keeps what arrived in a queue without a bound. The paho client inside hands all of that out. What is used of it, and of
aiomqtt's inside, is listed in :data:`REACHED`; :func:`check_reach` refuses versions that lack any of it, and a test
guards their behaviour.

Invariant: no message is acknowledged before :meth:`LateClient.answer`. At QoS 2 that holds for PUBREC, the answer with
which the broker may forget the body; paho alone would send it at once and lose the message with the process.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import ssl
import struct
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from event_triggers.errors import ConfigurationError
from event_triggers.sources._mqtt_packet import mended
from event_triggers.sources._mqtt_settings import MqttSettings

__all__ = ["REACHED", "LateClient", "check_reach", "make_client"]

REACHED = {
    paho.Client: (
        "_create_socket",
        "_create_socket_connection",
        "_ssl_wrap_socket",
        "_send_puback",
        "_send_pubrec",
        "_handle_publish",
        "_handle_on_message",
        "_sock_close",
    ),
    aiomqtt.Client: ("_on_connect", "_on_disconnect", "_on_message"),
}
"""The methods that are used although their names begin with an underscore."""


_UNREADABLE = (MQTTException, ValueError, IndexError, KeyError, struct.error)
"""What paho raises over a packet that it cannot read."""


class LateClient(paho.Client):
    """A paho client that hands every message over when it arrives and answers only when told.

    An aiomqtt client's own paho client is turned into one by :meth:`adopt`, because aiomqtt makes it itself.
    """

    _newest: socket.socket | None
    _withheld: list[int]
    """QoS 2 packets that the current call of :meth:`_handle_publish` has brought."""

    @classmethod
    def adopt(cls, client: aiomqtt.Client) -> LateClient:
        """The paho client inside ``client``, which becomes one of these."""
        inner = client._client
        inner.__class__ = cls  # same layout: this class adds methods only
        assert isinstance(inner, LateClient)  # noqa: S101 - the line above makes it so
        inner._withheld = []
        inner._newest = None
        return inner

    def _create_socket(self) -> Any:
        # paho forgets a socket over which TLS or websockets could not be agreed upon, and leaves it open.
        try:
            return super()._create_socket()
        except BaseException:
            if self._newest is not None:
                self._newest.close()
            raise

    def _create_socket_connection(self) -> socket.socket:
        self._newest = made = super()._create_socket_connection()
        return made

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        self._newest = made = super()._ssl_wrap_socket(tcp_sock)
        return made

    def _send_puback(self, mid: int) -> MQTTErrorCode:
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _send_pubrec(self, mid: int) -> MQTTErrorCode:
        self._withheld.append(mid)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_publish(self) -> MQTTErrorCode:
        self._withheld.clear()
        try:
            result = super()._handle_publish()
        except _UNREADABLE as error:
            # The packet is read before anything is done about it, so this is the first time that something is.
            self._in_packet["packet"] = self._mended(error)
            result = super()._handle_publish()
        for mid in self._withheld:
            # QoS 2: paho keeps it back until PUBREL, which only comes after our PUBREC. We hand it over now, and
            # take it out, so that PUBREL is merely answered with PUBCOMP.
            self._handle_on_message(self._in_messages.pop(mid))
        return result

    def _mended(self, error: Exception) -> bytearray:
        if self._protocol != paho.MQTTv5:
            raise error
        try:
            return bytearray(mended(bytes(self._in_packet["packet"]), (self._in_packet["command"] & 0x06) >> 1))
        except ValueError:
            raise error from None

    def answer(self, mid: int, qos: int) -> None:
        """Send what was withheld: PUBACK, or at QoS 2 PUBREC."""
        if qos == 1:
            super()._send_puback(mid)
        elif qos == 2:
            super()._send_pubrec(mid)

    def second_handle(self) -> socket.socket | None:
        """The open connection once more: it lasts until this handle is closed, too. Whoever gets it must close it."""
        sock = self.socket()
        try:
            line = None if sock is None else socket.socket(fileno=os.dup(sock.fileno()))
        except OSError:
            return None  # it has just broken
        if line is not None:
            line.setblocking(False)
        return line

    def drop(self) -> None:
        """Close the socket, if it is open."""
        self._sock_close()


def check_reach() -> None:
    """Refuse versions of the client libraries whose inside we do not know.

    :raises ConfigurationError: naming the versions and what they lack.
    """
    lacking = [f"{cls.__module__}.{name}" for cls, names in REACHED.items() for name in names if not hasattr(cls, name)]
    if lacking:
        installed = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("aiomqtt", "paho-mqtt"))
        raise ConfigurationError(
            f"MqttTopic does not know the installed versions of its client libraries ({installed}, which have no "
            f"{', '.join(lacking)}); install those it knows: pip install 'airflow-event-triggers[mqtt]'"
        )


def make_client(
    settings: MqttSettings, context: ssl.SSLContext | None, client_id: str, keep_session: bool, clean: bool
) -> aiomqtt.Client:
    """An aiomqtt client, not connected.

    :raises ConfigurationError: when it cannot be made from these settings.
    """
    version: dict[str, Any]
    if settings.version_5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = settings.session_expiry if keep_session else 0
        properties.ReceiveMaximum = settings.receive_maximum
        version = {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": clean, "properties": properties}
    else:
        version = {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": clean}
    websockets: dict[str, Any] = {}
    if settings.transport == "websockets":
        websockets = {
            "transport": "websockets",
            "websocket_path": settings.websocket_path,
            "websocket_headers": dict(settings.websocket_headers) or None,
        }
    try:
        return aiomqtt.Client(
            settings.host,
            settings.port,
            username=settings.username,
            password=settings.password,
            identifier=client_id,
            keepalive=settings.keepalive,
            timeout=settings.timeout,
            tls_context=context,
            **version,
            **websockets,
        )
    except ValueError as error:
        raise ConfigurationError(f"{settings.where}: the MQTT client cannot use these settings: {error}") from error
