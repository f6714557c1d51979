"""What is NATS's own: streams and subjects, what is purged, logins, and faults."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from nats.aio.client import RawCredentials

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.hooks.nats import NatsHook
from event_triggers.hub import Hub
from event_triggers.sources._nats_client import JetStream, to_message
from event_triggers.sources.base import load_source
from event_triggers.sources.nats import NatsSubject
from servers.nats import Nats
from servers.ports import free_port
from servers.proxy import TcpProxy
from tests.integration.broker_support import in_environment, opening_of, taking, unique
from tests.integration.faults import corrected, live, take, told, until_told
from tests.integration.nats_accounts import Accounts
from tests.integration.nats_support import create_stream, jetstream, nats_connection, nats_server, send

SECRET = "s3cr3t-planted"


@pytest.fixture(scope="module")
def server() -> Iterator[Nats]:
    with nats_server(settings="max_payload: 16MB") as server:
        yield server


async def a_stream(server: Nats, **config: Any) -> NatsSubject:
    name = unique("stream")
    await create_stream(server.port, name, f"{name}.>", **config)
    return NatsSubject(f"{name}.*", stream=name)


def subject(source: NatsSubject, last: str = "a") -> str:
    return f"{source.stream}.{last}"


async def test_only_the_subject_and_its_headers(server: Nats) -> None:
    source = await a_stream(server)
    async with taking(opening_of(nats_connection(server.port)), source) as taker:
        async with jetstream(server.port) as stream:
            await stream.publish(subject(source, "a.b"), b"too deep")
            await stream.publish(subject(source), b"x", headers={"Nats-Msg-Id": "one", "h": "v"})
        (message,) = await taker.take()
        assert (message.body, message.stream, message.position) == (b"x", subject(source), f"{source.stream}@2")
        assert dict(message.headers) == {"Nats-Msg-Id": b"one", "h": b"v"}
        assert dict(taker.log.position()) == {source.stream: 3}


async def test_purged_before_it_was_asked_for(server: Nats) -> None:
    source = await a_stream(server)
    before = datetime.now(timezone.utc) - timedelta(minutes=1)
    await send(server.port, subject(source), *(b"%d" % n for n in range(6)))
    async with taking(opening_of(nats_connection(server.port)), source) as taker, jetstream(server.port) as stream:
        assert await taker.log.lost(await taker.log.locate(before)) == ""
        await stream.purge_stream(source.stream, keep=2)
        assert "begins at sequence 5 now" in await taker.log.lost(await taker.log.locate(before))
        assert await taker.log.lost(await taker.log.locate(datetime.now(timezone.utc))) == ""
        await stream.purge_stream(source.stream)
        assert "begins at sequence 7 now" in await taker.log.lost(await taker.log.locate(before))


async def test_purged_while_nobody_is_connected(server: Nats) -> None:
    source, said = await a_stream(server), list[str]()
    async with taking(opening_of(nats_connection(server.port)), source) as taker:
        await send(server.port, subject(source), b"read")
        await taker.take()
        position = taker.log.position()
    await send(server.port, subject(source), *(b"%d" % n for n in range(5)))
    async with jetstream(server.port) as stream:
        await stream.purge_stream(source.stream, keep=2)
    tell: Any = {"start": position, "tell": lambda level, text, *args: said.append(text % args)}
    async with taking(opening_of(nats_connection(server.port), **tell), source) as taker:
        assert [message.body for message in await taker.take(2)] == [b"3", b"4"]
    assert len(said) == 1
    assert "the messages 2 to 4 of stream" in said[0]


async def test_stream_that_comes_and_goes_and_comes_again(server: Nats, caplog: pytest.LogCaptureFixture) -> None:
    name = unique("stream")
    source = NatsSubject(f"{name}.*", stream=name)
    hub = Hub(opening_of(nats_connection(server.port)).connection)
    async with hub.subscribe("group", [Interest("x", source, count=2)]) as group:
        await until_told(caplog, "there is no stream")
        await create_stream(server.port, name, f"{name}.*")
        await live(group)
        await send(server.port, f"{name}.a", b"first")
        first = await take(group)
        async with jetstream(server.port) as stream:
            await stream.delete_stream(name)
        await create_stream(server.port, name, f"{name}.*")
        await send(server.port, f"{name}.a", b"second")
        second = await take(group)
        assert [one.message.body for one in (*first, *second)] == [b"first", b"second"]
        assert first[0].message.id != second[0].message.id
        assert told(caplog, "was deleted and created again", logging.ERROR)


async def test_late_joiner_reads_the_past_and_a_restart_reads_on(server: Nats) -> None:
    source = await a_stream(server)
    since = datetime.now(timezone.utc) - timedelta(seconds=5)
    await send(server.port, subject(source), b"1", b"2")
    await send(server.port, subject(source, "a.b"), b"of nobody")
    for _ in range(2):  # the second hub is the process after a crash
        hub = Hub(opening_of(nats_connection(server.port)).connection)
        async with hub.subscribe("one", [Interest("x", source, count=9)]) as one:
            await live(one)
            async with hub.subscribe("late", [Interest("x", source, since=since, count=3)]) as late:
                assert [delivery.message.body for delivery in await take(late, 2)] == [b"1", b"2"]
                await live(late)


@pytest.mark.parametrize("how", ["swallowed", "cut"])
async def test_network_that_fails(server: Nats, caplog: pytest.LogCaptureFixture, how: str) -> None:
    source = await a_stream(server)
    with TcpProxy(server.port) as proxy:
        hub = Hub(opening_of(nats_connection(proxy.port)).connection)
        async with hub.subscribe("group", [Interest("x", source)]) as group:
            await live(group)
            if how == "cut":
                proxy.refuse()
                await anyio.to_thread.run_sync(proxy.cut)
            else:
                await anyio.to_thread.run_sync(proxy.black_hole)
            await until_told(caplog, "the connection failed")
            await send(server.port, subject(source), b"meanwhile")
            await anyio.to_thread.run_sync(proxy.restore)
            assert [one.message.body for one in await take(group)] == [b"meanwhile"]


async def test_server_that_is_killed_and_started(caplog: pytest.LogCaptureFixture) -> None:
    with nats_server() as server:
        source = await a_stream(server)
        hub = Hub(opening_of(nats_connection(server.port)).connection)
        async with hub.subscribe("group", [Interest("x", source, count=2)]) as group:
            await live(group)
            await send(server.port, subject(source), b"before")
            await take(group)
            await anyio.to_thread.run_sync(server.kill)
            await until_told(caplog, "the connection failed")
            await anyio.to_thread.run_sync(server.start)
            await send(server.port, subject(source), b"after")
            assert [one.message.body for one in await take(group)] == [b"after"]


async def test_consumer_that_is_removed(server: Nats) -> None:
    source = await a_stream(server)
    async with taking(opening_of(nats_connection(server.port)), source) as taker:
        await send(server.port, subject(source), b"1")
        await taker.take()
        async with jetstream(server.port) as stream:
            for consumer in await stream.consumers_info(source.stream):
                await stream.delete_consumer(source.stream, consumer.name)
        await send(server.port, subject(source), b"2")
        with pytest.raises(StreamError):  # it is not told, and found out within seconds
            await taker.take()


async def test_logins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    users = f'users: [{{user: me, password: "{SECRET}-right"}}]'
    with nats_server(authorization=users) as server:
        right = nats_connection(server.port, login="me", password=f"{SECRET}-right")
        async with jetstream(server.port, user="me", password=f"{SECRET}-right") as stream:
            await stream.add_stream(name="S", subjects=["s"])
        source = NatsSubject("s", stream="S")
        hub = corrected(opening_of(right).connection, nats_connection(server.port, login="me", password=SECRET))
        async with hub.subscribe("group", [Interest("x", source)]) as group:
            await until_told(caplog, "correct the connection's login")
            await live(group)
    with nats_server(authorization=f"token: {SECRET}") as server:
        for fields in ({"token": SECRET}, {"password": SECRET}):
            with pytest.raises(StreamError, match="there is no stream 'S'"):
                async with taking(opening_of(nats_connection(server.port, **fields)), source):
                    pass
    assert SECRET not in caplog.text
    assert SECRET not in repr((right, source.serialize()))


async def test_credentials_of_an_account(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file, its text, and a user whose time is over or whom another account's key has signed."""
    accounts = Accounts()
    good, file = accounts.credentials(), tmp_path / "user.creds"
    file.write_text(good)
    with nats_server(settings=accounts.settings) as server:
        async with jetstream(server.port, user_credentials=RawCredentials(good)) as stream:
            await stream.add_stream(name="S", subjects=["s"])
            await stream.publish("s", b"1")
        source = NatsSubject("s", stream="S")
        for fields in ({"creds": str(file)}, {"creds_text": good}):
            opening = opening_of(nats_connection(server.port, **fields), start={"S": 1})
            async with taking(opening, source) as taker:
                assert [message.body for message in await taker.take()] == [b"1"]
        for refused in (accounts.credentials(exp=int(time.time()) - 60), Accounts().credentials()):
            connection = nats_connection(server.port, creds_text=refused)
            with pytest.raises(StreamError, match=r"(?i)authorization.*correct the connection's login"):
                async with taking(opening_of(connection), source):
                    pass
    seeds = [one.splitlines()[-2] for one in (good, refused)]
    assert not [seed for seed in seeds if seed in caplog.text or seed in repr(connection)]


async def test_tls() -> None:
    with nats_server(tls=True) as server:
        assert server.authority is not None
        source = NatsSubject("s", stream="S")
        ca: dict[str, Any] = {"ca_cert": str(server.authority.certificate)}
        for fields in (ca, {"insecure": True}):
            with pytest.raises(StreamError, match="there is no stream 'S'"):
                async with taking(opening_of(nats_connection(server.port, tls=True, **fields)), source):
                    pass
        with pytest.raises(StreamError, match=r"[Cc]ertificate"):
            async with taking(opening_of(nats_connection(server.port, tls=True)), source):
                pass


async def test_connection_can_be_tested(server: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an event loop running around it, too."""
    for port, fields, passes, text in (
        (server.port, {}, True, f"Connected, with JetStream: connection 'connection_.*:{server.port}"),
        (server.port, {"domain": "nowhere"}, False, "INFO: "),
        (free_port(), {"password": SECRET}, False, "cannot connect"),
        (server.port, {"tokn": SECRET}, False, "did you mean 'token'"),
    ):
        name = in_environment(monkeypatch, nats_connection(port, **fields))
        passed, said = NatsHook(name).test_connection()
        assert passed == passes
        assert re.search(text, said)
        assert SECRET not in said


async def test_ten_megabytes(server: Nats) -> None:
    source = await a_stream(server)
    async with taking(opening_of(nats_connection(server.port)), source) as taker:
        await send(server.port, subject(source), b"x" * 10_000_000)
        assert [len(message.body or b"") for message in await taker.take()] == [10_000_000]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"host": None}, "its host must be"),
        ({"host": f"me:{SECRET}@localhost"}, "its host must be"),
        ({"ca_cert": "x"}, "needs tls"),
        ({"tokn": SECRET}, "did you mean 'token'"),
        ({"token": SECRET, "login": "me"}, "keep one"),
        ({"creds": "/nowhere"}, "creds cannot be read"),
        ({"creds_text": SECRET}, "hold no user JWT"),
    ],
)
async def test_wrong_connections(fields: dict[str, Any], text: str) -> None:
    connection = nats_connection(free_port(), **fields)
    with pytest.raises(ConfigurationError, match=text) as caught:
        async with taking(opening_of(connection), NatsSubject("s", stream="S")):
            pass
    assert SECRET not in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task of Python 3.10 does not tell that it was cancelled")
@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_while_the_client_flushes(fails: bool) -> None:
    """A mock: the real client passes over its cancellation only in the turn in which it wakes its flusher."""

    async def request(*_: Any, **__: Any) -> Any:
        with suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        if fails:
            raise OSError("it is closed")
        return SimpleNamespace(data=b"{}")

    task = asyncio.create_task(JetStream(SimpleNamespace(request=request), None, "here").ask("STREAM.NAMES"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("form", ["$JS.ACK.S.C.1.2.3.{}.0", "$JS.ACK._.hash.S.C.1.2.3.{}.0.token"])
def test_stamps_are_not_rounded_up(form: str) -> None:
    """A message that is stored at its own moment is found from that moment on."""
    about = SimpleNamespace(sequence=SimpleNamespace(stream=2))
    reply = form.format(1_700_000_000_123_456_999)
    raw = SimpleNamespace(reply=reply, metadata=about, subject="s", data=b"", headers=None)
    stored = datetime.fromtimestamp(1_700_000_000, timezone.utc) + timedelta(microseconds=123_456)
    assert to_message(raw, "S", "").timestamp == stored


def test_declarations() -> None:
    source = NatsSubject("{{ ds }}.>", stream="S")
    source.validate()
    assert load_source(source.serialize()) == source
    for wrong in ({"subject": ""}, {"subject": "a b"}, {"subject": "a..b"}, {"subject": "a", "stream": "a.b"}):
        with pytest.raises(InvalidEventError):
            NatsSubject(**wrong).validate()
