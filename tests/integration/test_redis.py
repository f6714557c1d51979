"""What is Redis's own: entries and their fields, what is trimmed, other keys, users, TLS, clusters, and faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.hub import Hub
from event_triggers.sources.base import load_source
from event_triggers.sources.redis import RedisStream
from servers.certificates import Authority
from servers.ports import free_port
from servers.process import accepts_connections
from servers.proxy import TcpProxy
from servers.redis import Redis
from tests.integration.broker_support import opening_of, taking, unique
from tests.integration.faults import corrected, live, take, told, until_told
from tests.integration.redis_support import client, redis_connection, redis_server, send

SECRET = "s3cr3t-planted"


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_server(settings={"cluster-enabled": "no"}) as server:
        yield server


def source(field: str | None = None) -> RedisStream:
    return RedisStream(unique("stream"), field=field)


async def test_fields_are_a_document_or_one_is_the_body(server: Redis) -> None:
    whole = source()
    one = RedisStream(whole.stream, field="data")
    assert whole.key("g") != one.key("g")
    opening = opening_of(redis_connection(server.port), start={})
    async with client(server.port) as redis:
        await redis.xadd(whole.stream, {"status": "done", "data": b'{"n": 1}', b"\xff": b"\xff"})
        await redis.xadd(whole.stream, {"status": "done"})
    async with taking(opening, whole) as taker:
        first, second = await taker.take(2)
        assert first.json == {"status": "done", "data": '{"n": 1}', "\\xff": "\\xff"}
        assert (second.json, second.headers) == ({"status": "done"}, ())
    async with taking(opening, one) as taker:
        first, second = await taker.take(2)
        assert first.json == {"n": 1}
        assert first.headers == (("status", b"done"), ("\\xff", b"\xff"))
        assert (second.body, second.headers) == (None, (("status", b"done"),))


async def test_trimmed_before_it_was_asked_for(server: Redis) -> None:
    stream = source("data")
    before = datetime.now(timezone.utc) - timedelta(minutes=1)
    await send(server.port, stream.stream, *(b"%d" % n for n in range(10)))
    async with taking(opening_of(redis_connection(server.port)), stream) as taker:
        assert await taker.log.lost(await taker.log.locate(before)) == ""
        async with client(server.port) as redis:
            await redis.xtrim(stream.stream, maxlen=4, approximate=False)
            assert "6 entries are trimmed or deleted" in await taker.log.lost(await taker.log.locate(before))
            assert await taker.log.lost(await taker.log.locate(datetime.now(timezone.utc))) == ""
            await redis.xtrim(stream.stream, maxlen=0, approximate=False)
            assert "all of its 10 entries" in await taker.log.lost(await taker.log.locate(before))
            assert await taker.log.lost(await taker.log.locate(datetime.now(timezone.utc))) == ""


@pytest.mark.parametrize("away", [False, True])
async def test_trimmed_before_it_was_read(server: Redis, away: bool) -> None:
    """While it is connected and nobody pulls, or while nobody is connected: exactly what is lost is said."""
    stream, said = source("data"), list[str]()
    tell = {"tell": lambda level, text, *args: said.append(text % args)}
    await send(server.port, stream.stream, b"old")
    opening = opening_of(redis_connection(server.port), **tell)
    async with taking(opening, stream) as taker:
        await send(server.port, stream.stream, b"read")
        assert await taker.bodies() == [b"read"]
        position = taker.log.position()
        await send(server.port, stream.stream, *(b"%d" % n for n in range(5)))
        async with client(server.port) as redis:
            await redis.xtrim(stream.stream, maxlen=2, approximate=False)
        if not away:
            await anyio.sleep(1.1)  # so often it is looked at
            assert await taker.bodies(2) == [b"3", b"4"]
    if away:
        async with taking(opening_of(redis_connection(server.port), start=position, **tell), stream) as taker:
            assert await taker.bodies(2) == [b"3", b"4"]
    assert len(said) == 1, said
    assert "3 entries were trimmed or deleted before they were read" in said[0]


async def test_stream_that_comes_and_goes_and_comes_again(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    stream = source("data")
    hub = Hub(opening_of(redis_connection(server.port)).connection)
    async with hub.subscribe("group", [Interest("x", stream, count=3)]) as group:
        await live(group)
        await send(server.port, stream.stream, b"first")
        assert [one.message.body for one in await take(group)] == [b"first"]
        async with client(server.port) as redis:
            await redis.delete(stream.stream)
        await until_told(caplog, "it is gone", logging.ERROR)
        await send(server.port, stream.stream, b"second")
        assert [one.message.body for one in await take(group)] == [b"second"]
        async with client(server.port) as redis:
            await redis.delete(stream.stream)
            await redis.xadd(stream.stream, {"data": b"third"}, id="5-1")
        assert [one.message.body for one in await take(group)] == [b"third"]
        assert told(caplog, "it is read again from its beginning", logging.ERROR) or told(caplog, "it is gone")


async def test_late_joiner_reads_the_past_and_a_restart_reads_on(server: Redis) -> None:
    stream = source("data")
    since = datetime.now(timezone.utc)
    await send(server.port, stream.stream, b"1", b"2")
    for _ in range(2):  # the second hub is the process after a crash
        hub = Hub(opening_of(redis_connection(server.port)).connection)
        async with hub.subscribe("one", [Interest("x", stream, count=9)]) as one:
            await live(one)
            async with hub.subscribe("late", [Interest("x", stream, since=since, count=2)]) as late:
                assert [delivery.message.body for delivery in await take(late, 2)] == [b"1", b"2"]


@pytest.mark.parametrize("how", ["swallowed", "cut"])
async def test_network_that_fails(server: Redis, caplog: pytest.LogCaptureFixture, how: str) -> None:
    stream = source("data")
    with TcpProxy(server.port) as proxy:
        hub = Hub(opening_of(redis_connection(proxy.port)).connection)
        async with hub.subscribe("group", [Interest("x", stream)]) as group:
            await live(group)
            if how == "cut":
                proxy.refuse()
                await anyio.to_thread.run_sync(proxy.cut)
            else:
                await anyio.to_thread.run_sync(proxy.black_hole)
            await until_told(caplog, "Redis cannot be reached")
            await send(server.port, stream.stream, b"meanwhile")
            await anyio.to_thread.run_sync(proxy.restore)
            assert [one.message.body for one in await take(group)] == [b"meanwhile"]


async def test_server_that_is_stopped_and_started(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(persistent=True) as server:
        stream = source("data")
        hub = Hub(opening_of(redis_connection(server.port)).connection)
        async with hub.subscribe("group", [Interest("x", stream, count=2)]) as group:
            await live(group)
            await send(server.port, stream.stream, b"before")
            await take(group)
            await anyio.to_thread.run_sync(server.kill)
            await until_told(caplog, "Redis cannot be reached")
            await anyio.to_thread.run_sync(server.start)
            await send(server.port, stream.stream, b"after")
            assert [one.message.body for one in await take(group)] == [b"after"]
            assert not told(caplog, "lost", logging.ERROR)


async def test_users(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is told and waited out; a user without a permission is told which."""
    with redis_server() as server:
        async with client(server.port) as redis:
            await redis.execute_command(
                "ACL", "SETUSER", "me", "on", f">{SECRET}", "~allowed*", "+xread", "+xrange", "+xinfo|stream"
            )
            await redis.execute_command("ACL", "SETUSER", "default", "-@all")
        right = opening_of(redis_connection(server.port, login="me", password=SECRET))
        hub = corrected(right.connection, redis_connection(server.port, login="me", password=f"{SECRET}-wrong"))
        stream = RedisStream("allowed-1", field="data")
        async with hub.subscribe("group", [Interest("x", stream)]) as group:
            await until_told(caplog, "the login is refused")
            await live(group)
        with pytest.raises(StreamError, match=r"access is denied.*XREAD, XRANGE and XINFO"):
            async with taking(right, RedisStream("forbidden")):
                pass
    assert SECRET not in caplog.text


async def test_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    certificate = authority.server("localhost", "127.0.0.1")
    port = free_port()
    files = {"tls-cert-file": certificate.certificate, "tls-key-file": certificate.key}
    files["tls-ca-cert-file"] = authority.certificate
    settings: dict[str, str | int] = {name: str(path) for name, path in files.items()}
    with redis_server(settings={**settings, "tls-port": port, "tls-auth-clients": "no"}) as server:
        assert accepts_connections(port)
        stream = RedisStream("s", field="data")
        for extra in ({"ssl_ca_certs": str(authority.certificate)}, {"ssl_cert_reqs": "none"}):
            opening = opening_of(redis_connection(port, ssl=True, **extra))
            async with taking(opening, stream) as taker:
                await send(server.port, "s", b"through")
                assert await taker.bodies() == [b"through"]
        assert "the server's certificate is not checked" in caplog.text
        with pytest.raises(StreamError, match=r"cannot be reached.*[Cc]ertificate"):
            async with taking(opening_of(redis_connection(port, ssl=True)), stream):
                pass
        with pytest.raises(ConfigurationError, match="redis_default"):
            async with taking(opening_of(redis_connection(port, ssl=True, ssl_ca_certs="/nowhere")), stream):
                pass


async def test_cluster() -> None:
    with redis_server(settings={"cluster-enabled": "yes", "cluster-port": free_port()}) as server:
        async with client(server.port) as redis:
            await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            with anyio.fail_after(20):
                while b"cluster_state:ok" not in await redis.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        stream = source("data")
        connection = redis_connection(server.port, cluster=True, startup_nodes=f"127.0.0.1:{server.port}")
        async with taking(opening_of(connection), stream) as taker:
            await send(server.port, stream.stream, b"1", b"2")
            assert await taker.bodies(2) == [b"1", b"2"]


async def test_other_key_and_large_entry(server: Redis) -> None:
    stream = source("data")
    async with client(server.port) as redis:
        await redis.set(stream.stream, "a string")
    with pytest.raises(StreamError, match="other than a stream"):
        async with taking(opening_of(redis_connection(server.port)), stream):
            pass
    large = source("data")
    async with taking(opening_of(redis_connection(server.port)), large) as taker:
        await send(server.port, large.stream, b"x" * 10_000_000, b"small")
        assert [len(message.body or b"") for message in await taker.take(2)] == [10_000_000, 5]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"db": 1, "cluster": True}, "a cluster has database 0 only"),
        ({"host": None}, "its host must be"),
        ({"db": "one"}, "invalid literal"),
        ({"ssl": "perhaps"}, "true or false"),
        ({"ssl": True, "ssl_cert_reqs": "sometimes"}, "sometimes"),
        ({"cluster": True, "startup_nodes": "a:b"}, "invalid literal"),
    ],
)
async def test_wrong_connections(fields: dict[str, Any], text: str) -> None:
    connection = redis_connection(6379, password=SECRET, **fields)
    with pytest.raises(ConfigurationError, match=f"redis_default.*{text}") as caught:
        async with taking(opening_of(connection), RedisStream("s")):
            pass
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(connection)


def test_declarations() -> None:
    stream = RedisStream("{{ ds }}", field="data", conn_id="mine")
    assert load_source(stream.serialize()) == stream
    for wrong in ({"stream": ""}, {"stream": 3}, {"stream": "s", "field": ""}, {"stream": "s", "conn_id": ""}):
        with pytest.raises(InvalidEventError):
            RedisStream(**wrong).validate()
