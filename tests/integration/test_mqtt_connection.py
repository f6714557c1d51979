"""Reaching MQTT brokers of all kinds: TLS, logins, certificates, websockets; and brokers that cannot be reached."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import BrokerConnection, Opening
from event_triggers.sources.mqtt import MqttTopic
from servers.certificates import Authority
from servers.embedded_mqtt import EmbeddedMqtt
from servers.mosquitto import Mosquitto
from servers.ports import free_port
from servers.process import ServerFailed
from servers.proxy import TcpProxy
from tests.integration.mqtt_support import PATIENCE, mosquitto, mqtt_connection, new_opening, publish, taking, unique
from tests.support import missing

BOTH = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
LONG = 300
"""Seconds that a connection may take: far longer than any test waits, so what ends does not end because of it."""


@pytest.fixture(scope="module")
def secured() -> Iterator[Mosquitto]:
    """TLS with and without client certificates is two brokers; this one asks for a login only."""
    with mosquitto(users={"me": "secret"}, tls=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def certified() -> Iterator[Mosquitto]:
    with mosquitto(tls=True, client_certificates=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def plain() -> Iterator[Mosquitto]:
    with mosquitto() as broker:
        yield broker


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedMqtt]:
    broker = EmbeddedMqtt()
    try:
        broker.start()
    except ServerFailed as error:
        broker.close()
        missing(str(error))
    yield broker
    broker.close()


async def passes(connection: BrokerConnection, port: int, **options: Any) -> None:
    """A message that is published at ``port`` comes over this connection, and the session goes again."""
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(connection)
    async with taking(opening, source) as taker:
        await publish(port, topic, b"through", **options)
        (message,) = await taker.take()
        assert message.body == b"through"
        await taker.settle(message)
    await source.forget(opening)


async def refused(connection: BrokerConnection, error: type[Exception], text: str) -> str:
    """Opening and forgetting over this connection both fail so; tells the whole text."""
    source, opening = MqttTopic("topic"), new_opening(connection)
    with pytest.raises(error, match=text) as caught:
        async with taking(opening, source):
            pass
    with pytest.raises(error):
        await source.forget(opening)
    assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)
    assert connection.conn_id in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "wrong one" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- TLS and logins


@BOTH
async def test_tls_with_login(secured: Mosquitto, protocol: str) -> None:
    assert secured.authority is not None
    login: dict[str, Any] = {"login": "me", "password": "secret", "protocol": protocol, "tls": True}
    pem = secured.authority.certificate.read_text()
    user = ("me", "secret")
    for ca in ({"ca_cert": str(secured.authority.certificate)}, {"ca_pem": pem}):
        await passes(mqtt_connection(secured.tls_port, **login, **ca), secured.port, user=user)
    by_name = mqtt_connection(secured.tls_port, host="localhost", ca_pem=pem, **login)
    await passes(by_name, secured.port, user=user)


@BOTH
async def test_wrong_password(secured: Mosquitto, protocol: str) -> None:
    logins: list[dict[str, Any]] = [{}, {"login": "me", "password": "wrong one"}, {"login": "no", "password": "secret"}]
    for login in logins:
        connection = mqtt_connection(secured.port, protocol=protocol, **login)
        await refused(connection, StreamError, "login|password")


async def test_certificate_that_is_not_trusted(
    secured: Mosquitto, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert secured.authority is not None
    login: dict[str, Any] = {"login": "me", "password": "secret", "tls": True}
    await refused(mqtt_connection(secured.tls_port, **login), ConfigurationError, "certificate is not trusted.*ca_cert")
    other = str(Authority(tmp_path).certificate)
    await refused(mqtt_connection(secured.tls_port, ca_cert=other, **login), ConfigurationError, "not trusted")
    assert not caplog.records
    await passes(mqtt_connection(secured.tls_port, insecure=True, **login), secured.port, user=("me", "secret"))
    assert all("'insecure' switches the check" in r.getMessage() for r in caplog.records)
    assert {r.levelno for r in caplog.records} == {logging.WARNING}


async def test_certificate_of_another_host(secured: Mosquitto) -> None:
    """The certificate names localhost and 127.0.0.1; the same address written in another way is not in it."""
    assert secured.authority is not None
    options: dict[str, Any] = {"login": "me", "password": "secret", "tls": True}
    connection = mqtt_connection(secured.tls_port, host="127.1", ca_cert=str(secured.authority.certificate), **options)
    with pytest.raises(ConfigurationError, match=r"127\.1:.*certificate is not trusted.*host name"):
        async with taking(new_opening(connection), MqttTopic("topic")):
            pass


async def test_client_certificates(certified: Mosquitto, tmp_path: Path) -> None:
    authority = certified.authority
    assert authority is not None
    base: dict[str, Any] = {"tls": True, "ca_cert": str(authority.certificate)}
    plain, locked = authority.client("plain"), authority.client("locked", password="of the key")
    for files in (
        {"client_cert": str(plain.certificate), "private_key": str(plain.key)},
        {"client_cert_pem": plain.certificate.read_text(), "private_key_pem": plain.key.read_text()},
        {"client_cert_pem": plain.certificate.read_text() + plain.key.read_text()},
        {"client_cert": str(plain.certificate), "private_key_pem": plain.key.read_text()},
        {
            "client_cert": str(locked.certificate),
            "private_key": str(locked.key),
            "private_key_password": "of the key",
        },
    ):
        await passes(mqtt_connection(certified.tls_port, **base, **files), certified.port)
    await refused(mqtt_connection(certified.tls_port, **base), StreamError, "client certificate|connect|broke")
    for files in (
        {"client_cert": str(locked.certificate), "private_key": str(locked.key)},
        {"client_cert": str(tmp_path / "nowhere.pem"), "private_key": str(plain.key)},
        {"client_cert": str(plain.certificate), "private_key": str(locked.key), "private_key_password": "wrong one"},
        {"client_cert_pem": plain.certificate.read_text(), "private_key_pem": "no key"},
    ):
        connection = mqtt_connection(certified.tls_port, **base, **files)
        await refused(connection, ConfigurationError, "client certificate or its private key")


async def test_tls_where_there_is_none(plain: Mosquitto) -> None:
    await refused(mqtt_connection(plain.port, tls=True), StreamError, "cannot connect")


async def test_no_tls_where_there_is(certified: Mosquitto) -> None:
    await refused(mqtt_connection(certified.tls_port, timeout=2), StreamError, "want TLS")


# ---------------------------------------------------------------------- websockets and the embedded broker


async def test_embedded_broker(embedded: EmbeddedMqtt) -> None:
    """What the demo needs of it: a durable session at QoS 1, and what is sent while nobody is there."""
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(embedded.port, protocol="3.1.1"))
    async with taking(opening, source) as taker:
        await publish_311(embedded.port, topic, b"1", b"2")
        messages = await taker.take(2)
        assert [m.body for m in messages] == [b"1", b"2"]
        await taker.settle(*messages)
    await publish_311(embedded.port, topic, b"3")
    async with taking(opening, source) as taker:
        (message,) = await taker.take()
        assert message.body == b"3"
        await taker.settle(message)
    await source.forget(opening)


async def publish_311(port: int, topic: str, *bodies: bytes) -> None:
    import aiomqtt

    async with aiomqtt.Client("127.0.0.1", port) as client:
        for body in bodies:
            await client.publish(topic, body, qos=1)


async def test_websockets(embedded: EmbeddedMqtt) -> None:
    topic = unique("topic")
    connection = mqtt_connection(
        embedded.websocket_port,
        protocol="3.1.1",
        transport="websockets",
        websocket_path="/some/path",
        websocket_headers={"X-Token": "secret"},
    )
    source, opening = MqttTopic(topic), new_opening(connection)
    async with taking(opening, source) as taker:
        body = b"x" * 200_000
        await publish_311(embedded.port, topic, b"small", body)
        messages = await taker.take(2)
        assert [m.body for m in messages] == [b"small", body]
        await taker.settle(*messages)
    await source.forget(opening)


async def test_websocket_request_carries_path_and_headers() -> None:
    """As a server sees it that then refuses."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = mqtt_connection(
            port, transport="websockets", websocket_path="/deep/path", websocket_headers={"X-Token": "of mine"}
        )
        await refused(connection, StreamError, "websocket_path")
    assert seen[0].startswith(b"GET /deep/path HTTP/1.1\r\n")
    assert b"X-Token: of mine\r\n" in seen[0]
    assert b"Sec-Websocket-Protocol: mqtt\r\n".lower() in seen[0].lower()


async def test_broker_without_mqtt_5(embedded: EmbeddedMqtt) -> None:
    await refused(mqtt_connection(embedded.port, timeout=1), StreamError, r'"protocol": "3\.1\.1"')


# ---------------------------------------------------------------------- brokers that are not there


async def test_nobody_listens() -> None:
    await refused(mqtt_connection(free_port()), StreamError, "cannot connect: .*[Cc]onnection refused")


async def test_host_that_has_no_address() -> None:
    connection = mqtt_connection(1883, host="localhost.invalid")
    with pytest.raises(StreamError, match=r"localhost\.invalid:1883.*cannot connect"):
        async with taking(new_opening(connection), MqttTopic("topic")):
            pass


@asynccontextmanager
async def black_hole() -> AsyncIterator[TcpProxy]:
    with TcpProxy(free_port()) as proxy:
        await anyio.to_thread.run_sync(proxy.black_hole)
        yield proxy


async def test_broker_that_does_not_answer() -> None:
    async with black_hole() as proxy:
        await refused(mqtt_connection(proxy.port, timeout=1), StreamError, r"did not answer \(for 1 s\)")


async def test_cancelled_while_it_connects() -> None:
    """Soon, and no connection is left behind that could fight over the session."""
    async with black_hole() as proxy:
        opening = new_opening(mqtt_connection(proxy.port, timeout=LONG))
        before = asyncio.all_tasks()

        async def connect() -> None:
            async with MqttTopic("topic").open(opening):
                pytest.fail("it cannot open")

        task = asyncio.create_task(connect())
        with anyio.fail_after(PATIENCE):
            while not proxy.accepted:  # noqa: ASYNC110 - the proxy lives in another thread
                await anyio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled()
        left = asyncio.all_tasks() - before
        if left:
            await asyncio.wait(left, timeout=PATIENCE)
        assert asyncio.all_tasks() - before == set()
        await anyio.to_thread.run_sync(proxy.restore)
        with anyio.fail_after(PATIENCE):
            while proxy.open:  # noqa: ASYNC110 - the proxy lives in another thread
                await anyio.sleep(0.01)


@BOTH
async def test_cancelled_at_any_moment_of_connecting(
    plain: Mosquitto, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It disconnects at once, and politely if it was connected."""
    for turns in (1, 5, 20, 50, 100, 150, 200, 400):
        opening = new_opening(mqtt_connection(plain.port, protocol=protocol, timeout=LONG))
        task = asyncio.create_task(stay(MqttTopic("topic"), opening))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled(), turns
        await MqttTopic("topic").forget(opening)
    assert not caplog.records


async def stay(source: MqttTopic, opening: Opening) -> None:
    async with taking(opening, source) as taker:
        await taker.take()


async def test_closing_over_a_dead_connection_is_bounded(plain: Mosquitto) -> None:
    with TcpProxy(plain.port) as proxy:
        source, opening = MqttTopic(unique("topic")), new_opening(mqtt_connection(proxy.port, timeout=LONG))
        async with taking(opening, source):
            await anyio.to_thread.run_sync(proxy.black_hole)
            started = time.monotonic()
        assert time.monotonic() - started < PATIENCE
        await anyio.to_thread.run_sync(proxy.restore)
        await source.forget(opening)


@BOTH
async def test_connection_that_ends_while_a_filter_is_added(plain: Mosquitto, protocol: str) -> None:
    """It is noticed at once, not when the broker's answer is overdue."""
    with TcpProxy(plain.port) as proxy:
        connection = mqtt_connection(proxy.port, protocol=protocol, timeout=LONG)
        source, opening = MqttTopic(unique("topic")), new_opening(connection)
        async with taking(opening, source) as taker:
            await anyio.to_thread.run_sync(proxy.black_hole)
            adding = asyncio.create_task(taker.stream.watch(MqttTopic(unique("topic"))))
            await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(proxy.cut)
            with anyio.fail_after(PATIENCE), pytest.raises(StreamError, match="broke"):
                await adding
        await anyio.to_thread.run_sync(proxy.restore)
        await source.forget(opening)


async def test_no_connection_outlives_its_stream(plain: Mosquitto) -> None:
    with TcpProxy(plain.port) as proxy:
        opening = new_opening(mqtt_connection(proxy.port))
        durable, passing = MqttTopic(unique("topic")), MqttTopic(unique("topic"), 0)
        async with taking(opening, durable), taking(opening, passing):
            assert proxy.open == 2
        await durable.forget(opening)
        with anyio.fail_after(PATIENCE):
            while proxy.open:  # noqa: ASYNC110 - the proxy lives in another thread
                await anyio.sleep(0.01)
        assert proxy.accepted == 3
