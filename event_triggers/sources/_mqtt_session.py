"""One connection to an MQTT broker, from CONNECT to DISCONNECT.

Flow: ``connect`` -> CONNACK -> messages go to ``on_message`` as they arrive -> ``acknowledge`` -> DISCONNECT.

Invariants:

* No message is acknowledged before :meth:`Session.acknowledge`.
* ``on_message`` is only called in the event loop, after :attr:`Session.resumed` is known.
* Leaving :func:`connect` closes the socket, in bounded time, whatever happened before.

A connection is used once. A broken one sets :attr:`Session.ended` and stays broken.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeVar

import aiomqtt
import aiomqtt.exceptions
import anyio
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources._mqtt_client import LateClient, check_reach, make_client
from event_triggers.sources._mqtt_settings import MqttSettings
from event_triggers.text import plain_logger

__all__ = ["Session", "connect"]

log = plain_logger(__name__)

_T = TypeVar("_T")

_CLOSE_SECONDS = 2.0
_CHUNK = 64 * 1024
_TAKEN_OVER = 142
_UNSPECIFIED = 128
_LOST = "the network connection was lost"
_REFUSED_FOR_GOOD = {
    132: "it does not speak MQTT {protocol}; the option protocol in the connection's extra may be '5' or '3.1.1'",
    133: "it does not take the client identifier {client_id!r}; the option client_id_prefix says how it begins",
    140: "it wants another way to authenticate than login and password",
}
# The connection or the broker may be corrected while a group waits, and a broker that restarts may not know yet.
_REFUSED_NOW = {
    134: "the login or the password is wrong; correct them in the connection",
    135: "this login may not connect; check the broker's access rules, also for the client identifier {client_id!r}",
    138: "this client is banned there",
}
_NO_FILTER_FOR_GOOD = {
    128: "the broker refuses it; its access rules may forbid this login to read there",
    135: "this login may not read there; check the broker's access rules",
    143: "the broker does not take this topic filter",
    158: "the broker has no shared subscriptions",
    162: "the broker has no wildcards",
}


class Session:
    """A connection that is made, or being made.

    :param resumed: the broker still had the session: its subscriptions, and what was not acknowledged.
    :param subscription_ids: the broker marks messages with the identifier of the subscription they came under.
    :param ended: set once nothing can come any more.
    """

    def __init__(
        self,
        client: aiomqtt.Client,
        settings: MqttSettings,
        client_id: str,
        keep_session: bool,
        on_message: Callable[[Session, Any], None],
    ) -> None:
        self.client_id = client_id
        self.keep_session = keep_session
        self.settings = settings
        self.resumed = False
        self.subscription_ids = False
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._on_message = on_message
        self._reason: object = None
        self._made = False
        self._paho = inner = LateClient.adopt(client)
        self._aiomqtt_on_connect = client._on_connect
        self._aiomqtt_on_disconnect = client._on_disconnect
        inner.on_connect = self._connected
        inner.on_disconnect = self._disconnected
        inner.on_message = lambda _client, _userdata, message: self._arrived(message)
        inner.connect_timeout = settings.timeout

    # ------------------------------------------------------------------ what paho calls

    def _connected(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code == 0:
            self._made = True
            self.resumed = flags.session_present
            available = getattr(properties, "SubscriptionIdentifierAvailable", 1)
            self.subscription_ids = self.settings.version_5 and bool(available)
            expiry = getattr(properties, "SessionExpiryInterval", None)
            if self.keep_session and expiry is not None and expiry < self.settings.session_expiry:
                log.info("%s: the broker keeps sessions for %d s only", self.settings.where, expiry)
        self._aiomqtt_on_connect(client, userdata, flags, code, properties)

    def _disconnected(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._reason is None:
            lost = not flags.is_disconnect_packet_from_server and code.value == _UNSPECIFIED
            self._reason = _LOST if lost else code
        # paho may find out in the thread in which it connects.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.ended.set)
        # It looks at a future that is cancelled when connecting was.
        with suppress(asyncio.CancelledError):
            self._aiomqtt_on_disconnect(client, userdata, flags, code, properties)

    def _arrived(self, message: Any) -> None:
        # An error here would look to paho like a broken connection, and the same message would break the next one.
        try:
            self._on_message(self, message)
        except Exception:
            log.exception("%s: a message could not be taken in; it is left out", self.settings.where)

    # ------------------------------------------------------------------ the connection

    async def make(self) -> None:
        """Connect.

        :raises ConfigurationError: when the broker refuses us for good, or its certificate is not trusted.
        :raises StreamError: when it cannot be reached now.
        """
        connecting = self._loop.create_task(self._client.__aenter__(), name=f"mqtt: connect {self.settings.where}")
        ended = self._loop.create_task(self.ended.wait(), name=f"mqtt: refused {self.settings.where}")
        try:
            await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            await self._give_up(connecting)
        error = None if connecting.cancelled() else connecting.exception()
        if error is not None and not isinstance(error, (aiomqtt.MqttError, ValueError, OSError)):
            raise error
        if error is not None or self.ended.is_set() or connecting.cancelled():
            raise self._refused(error) from error
        self._client._disconnected.add_done_callback(lambda _: self.ended.set())

    async def _give_up(self, connecting: asyncio.Task[Any]) -> None:
        """Nobody waits for this any more. A thread that connects cannot be interrupted, so it must be waited for."""
        if connecting.done():
            return
        with anyio.move_on_after(self.settings.timeout + 1, shield=True):
            while not connecting.done() and self._paho.socket() is None and not self.ended.is_set():
                await asyncio.wait({connecting}, timeout=0.05)
            # There is a socket, so the thread is about through; what may be missing is the broker's answer.
            await asyncio.wait({connecting}, timeout=0.05)
            connecting.cancel()
            await asyncio.wait({connecting})
        if connecting.done():
            _look_at(connecting)
        else:
            connecting.add_done_callback(self._gave_up)

    def _gave_up(self, connecting: asyncio.Task[Any]) -> None:
        _look_at(connecting)
        self._paho.drop()

    def _refused(self, error: BaseException | None) -> Exception:
        settings = self.settings
        if isinstance(error, aiomqtt.exceptions.MqttConnectError):
            value = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
            code = int(value or 0)
            text = _REFUSED_FOR_GOOD.get(code) or _REFUSED_NOW.get(code)
            if text is not None:
                kind = ConfigurationError if code in _REFUSED_FOR_GOOD else StreamError
                text = text.format(protocol=settings.protocol, client_id=self.client_id)
                return kind(f"{settings.where}: the broker refuses the connection: {text} ({error.rc})")
            return StreamError(f"{settings.where}: the broker refuses the connection now: {error.rc}")
        if isinstance(error, ValueError):
            return ConfigurationError(f"{settings.where}: the MQTT client cannot use these settings: {error}")
        silent = self._paho.socket() is not None and error is not None
        if error is not None and not (silent and isinstance(error.__context__, asyncio.TimeoutError)):
            cause = error.__context__ or error
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ConfigurationError(
                    f"{settings.where}: the broker's certificate is not trusted: {cause.verify_message}; name its CA "
                    f"with ca_cert or ca_pem in the extra, and connect by a host name that is in the certificate"
                )
            what = type(cause).__name__ if not str(cause) else str(cause)
            hint = "; is the websocket_path right?" if isinstance(cause, paho.WebsocketConnectionError) else ""
            return StreamError(f"{settings.where}: cannot connect: {what}{hint}")
        hints = ['speak MQTT 3.1.1 only ("protocol": "3.1.1" in the extra)'] if settings.version_5 else []
        hints.append("want a client certificate" if settings.tls else "want TLS")
        return StreamError(
            f"{settings.where}: the broker did not answer ({self._reason or f'for {settings.timeout:g} s'}); "
            f"it may {' or '.join(hints)}"
        )

    def failure(self) -> StreamError:
        """Why the connection ended, once it has."""
        reason: object = self._reason
        disconnected = self._client._disconnected
        if reason is None and disconnected.done() and not disconnected.cancelled():
            reason = disconnected.exception() or "it was closed"
        value = reason.value if isinstance(reason, ReasonCode) else None
        if value == _TAKEN_OVER:
            return StreamError(
                f"{self.settings.where}: the session {self.client_id!r} was taken over by another client that "
                f"connected under the same identifier: does another triggerer wait for the same group?"
            )
        hint = ""
        if self.keep_session and reason == _LOST:
            # Many brokers close the old connection without a word when a session is taken over.
            hint = f"; if that happens again and again, another client uses the session {self.client_id!r} too"
        return StreamError(f"{self.settings.where}: the connection broke: {reason}{hint}")

    async def close(self) -> None:
        """Disconnect politely, else at once. Never raises.

        A socket that is closed while something is unread resets the connection, and what was sent last may be lost with
        it: acknowledgements, as a rule, which the broker answers. So the broker is heard until it has closed its side.
        """
        line = self._paho.second_handle()
        try:
            if self._made and not self.ended.is_set():
                # Not by leaving aiomqtt's context, which waits in vain if entering it was cancelled.
                self._paho.disconnect()
                with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await self.ended.wait()
                    if line is not None:
                        await _hear_out(line)
        finally:
            if line is not None:
                line.close()
            self._paho.drop()
            _look_at(self._client._disconnected)
            self.ended.set()

    # ------------------------------------------------------------------ speaking

    async def subscribe(
        self, topic_filter: str, qos: int, *, retained: Literal[0, 1, 2], identifier: int | None
    ) -> int:
        """Subscribe, and tell the QoS that the broker grants.

        :param retained: MQTT 5's retain handling: send stored messages always (0), for a new subscription only (1),
            never (2).
        :param identifier: the subscription identifier, where the broker knows such.
        :raises ConfigurationError: when the broker refuses this filter.
        :raises StreamError: when it does not answer.
        """
        what = f"subscribe to {topic_filter!r}"
        try:
            if self.settings.version_5:
                properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
                if identifier is not None and self.subscription_ids:
                    properties.SubscriptionIdentifier = identifier
                options = SubscribeOptions(qos=qos, retainHandling=retained)
                asking = self._client.subscribe(topic_filter, options=options, properties=properties)
            else:
                asking = self._client.subscribe(topic_filter, qos=qos)
            answer = await self._answer(asking, what)
        except ValueError as error:
            raise ConfigurationError(f"{self.settings.where}: cannot {what}: {error}") from error
        code = answer[0].value if isinstance(answer[0], ReasonCode) else int(answer[0])
        if code >= 128:
            text = _NO_FILTER_FOR_GOOD.get(code)
            if text is None:
                raise StreamError(f"{self.settings.where}: cannot {what} now: {answer[0]}")
            raise ConfigurationError(f"{self.settings.where}: cannot {what}: {text} ({answer[0]})")
        return code

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe.

        :raises StreamError: when the broker does not answer.
        """
        await self._answer(self._client.unsubscribe(topic_filter), f"unsubscribe from {topic_filter!r}")

    async def _answer(self, asking: Coroutine[Any, Any, _T], what: str) -> _T:
        """What the broker answers, unless the connection ends before."""
        asked = self._loop.create_task(asking, name=f"mqtt: {what}")
        ended = self._loop.create_task(self.ended.wait(), name=f"mqtt: end while waiting to {what}")
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise self.failure()
            return asked.result()
        except aiomqtt.MqttError as error:
            text = f"{self.settings.where}: cannot {what}: {error}"
            raise (self.failure() if self.ended.is_set() else StreamError(text)) from error
        finally:
            asked.cancel()
            ended.cancel()

    def acknowledge(self, mid: int, qos: int) -> None:
        """Tell the broker that it may forget this message.

        :raises StreamError: when the connection has ended.
        """
        if self.ended.is_set():
            raise self.failure()
        self._paho.answer(mid, qos)


async def _hear_out(line: socket.socket) -> None:
    """Send the end of our side, and read until the other side has ended, too."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        line.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(line, _CHUNK):
            pass


def _look_at(future: asyncio.Future[Any]) -> None:
    """Look at its error, or asyncio complains that nobody did."""
    if future.done() and not future.cancelled():
        future.exception()


@asynccontextmanager
async def connect(
    settings: MqttSettings,
    context: ssl.SSLContext | None,
    *,
    client_id: str,
    keep_session: bool,
    clean: bool,
    on_message: Callable[[Session, Any], None],
) -> AsyncIterator[Session]:
    """Connect; disconnect on leaving.

    :param keep_session: the broker shall keep the session when we are away.
    :param clean: the broker shall forget a session that it still has under this identifier.
    :raises ConfigurationError: when the broker refuses us for good.
    :raises StreamError: when it cannot be reached now.
    """
    check_reach()
    client = make_client(settings, context, client_id, keep_session, clean)
    session = Session(client, settings, client_id, keep_session, on_message)
    try:
        await session.make()
        yield session
    finally:
        await session.close()
