"""What is AMQP's own: what becomes of messages, identities, connections, and faults."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.to_thread
import pytest

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.hooks.amqp import AmqpHook
from event_triggers.hub import Hub
from event_triggers.sources import _amqp_messages
from event_triggers.sources.amqp import AmqpQueue
from event_triggers.sources.base import Outcome, load_source
from servers.ports import free_port
from servers.proxy import TcpProxy
from servers.rabbitmq import RabbitMq
from tests.integration.amqp_support import amqp_connection, channel, declare, send, shared_rabbitmq, until_kept
from tests.integration.broker_support import in_environment, opening_of, taking, unique
from tests.integration.faults import corrected, live, take, told, until_told

SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest) -> RabbitMq:
    return shared_rabbitmq(request.config)


async def a_queue(broker: RabbitMq, **options: Any) -> AmqpQueue:
    source = AmqpQueue(unique("queue"), **options)
    await declare(broker, source.queue)
    return source


def new_process() -> None:
    """Know nothing, as a process that has just started."""
    _amqp_messages._memories.clear()


async def test_what_a_message_carries(broker: RabbitMq) -> None:
    source, exchange = await a_queue(broker), unique("exchange")
    assert load_source(source.serialize()) == source
    async with channel(broker) as one:
        bound = await one.get_queue(source.queue)
        await bound.bind(await one.declare_exchange(exchange, "topic", auto_delete=True), "done.*")
    async with taking(opening_of(amqp_connection(broker.port)), source) as taker:
        headers = {"n": 3, "odd": bytearray(b"\xff"), "deep": {"a": [1]}}
        await send(broker, "done.a", b"body", exchange=exchange, headers=headers)
        (message,) = await taker.take()
        assert (message.body, message.key) == (b"body", b"done.a")
        carried = dict(message.headers)
        assert (carried["n"], carried["odd"], carried["deep"]) == (b"3", b"\xff", b'{"a": [1]}')
        assert carried["amqp.exchange"] == exchange.encode()
        await taker.settle(message)


async def test_rejected_and_unmatched_go_to_the_dead_letter_exchange(broker: RabbitMq) -> None:
    dead, queue = unique("dead"), unique("queue")
    await declare(broker, dead)
    await declare(broker, queue, x_dead_letter_exchange="", x_dead_letter_routing_key=dead)
    async with taking(opening_of(amqp_connection(broker.port)), AmqpQueue(queue, unmatched="reject")) as taker:
        await send(broker, queue, b"odd", b"unwanted")
        odd, unwanted = await taker.take(2)
        await taker.settle(odd, outcome=Outcome.REJECTED)
        await taker.settle(unwanted, outcome=Outcome.RELEASED)
        await until_kept(broker, dead, 2)
    await until_kept(broker, queue, 0)


async def test_unwanted_messages_do_not_hold_up_those_behind_them(broker: RabbitMq) -> None:
    """They are parked, more than the prefetch; a group that comes later gets them at once."""
    source = await a_queue(broker, prefetch=4)
    hub = Hub(opening_of(amqp_connection(broker.port)).connection)
    async with hub.subscribe("one", [Interest("x", source, pattern={"n": [-1, -2]}, count=2)]) as group:
        await live(group)
        await send(broker, source.queue, *(b'{"n": %d}' % n for n in range(20)), message_id="m")
        await anyio.sleep(1.5)  # until they are parked
        await send(broker, source.queue, b'{"n": -1}', message_id="m")
        assert [one.message.json for one in await take(group)] == [{"n": -1}]
        async with hub.subscribe("late", [Interest("x", source, pattern={"n": [7]})]) as late:
            assert [one.message.json for one in await take(late)] == [{"n": 7}]
            late.over = True
        group.over = True
    await until_kept(broker, source.queue, 19)


async def test_nothing_is_held_while_nobody_wants_more(broker: RabbitMq) -> None:
    source = await a_queue(broker)
    hub = Hub(opening_of(amqp_connection(broker.port)).connection)
    async with hub.subscribe("one", [Interest("x", source)]) as group:
        await live(group)
        await send(broker, source.queue, b"1")
        await take(group)
        await send(broker, source.queue, b"2", b"3")
        await until_kept(broker, source.queue, 2)


@pytest.mark.parametrize("named", [True, False])
async def test_copies_after_a_crash_are_known(broker: RabbitMq, named: bool) -> None:
    """Recorded, and not acknowledged when the process died: acknowledged when it comes again, and counted once."""
    source = await a_queue(broker)
    opening = opening_of(amqp_connection(broker.port))
    properties = {"message_id": unique("id")} if named else {}
    async with taking(opening, source) as taker:
        await send(broker, source.queue, b"recorded", **properties)
        (message,) = await taker.take()
    new_process()
    hub = Hub(opening.connection)
    interest = Interest("x", source, count=1, recorded=frozenset({message.id}))
    async with hub.subscribe("group", [interest]) as group:
        await send(broker, source.queue, b"last")
        assert [one.message.body for one in await take(group)] == [b"last"]
        group.over = True
    await until_kept(broker, source.queue, 0)
    assert source.redelivery > 0


async def test_messages_alike_are_two(broker: RabbitMq) -> None:
    source = await a_queue(broker)
    async with taking(opening_of(amqp_connection(broker.port)), source) as taker:
        await send(broker, source.queue, b"same", b"same")
        first = await taker.take(2)
        assert len({message.id for message in first}) == 2
        await taker.settle(first[0])
        await taker.settle(first[1], outcome=Outcome.ABANDONED)
        (again,) = await taker.take()
        assert (again.id, again.attempt) == (first[1].id, 2)
        await taker.settle(again)
        await send(broker, source.queue, b"once", b"once", message_id="twice")
        both = await taker.take(2)
        assert len({message.id for message in both}) == 1, "the sender says that they are one"
        await taker.settle(both[1])
    await until_kept(broker, source.queue, 0)


async def test_queue_that_comes_and_goes_and_comes_again(broker: RabbitMq, caplog: pytest.LogCaptureFixture) -> None:
    source = AmqpQueue(unique("queue"))
    hub = Hub(opening_of(amqp_connection(broker.port)).connection)
    async with hub.subscribe("group", [Interest("x", source, count=2)]) as group:
        await until_told(caplog, "there is no such queue (yet)")
        await declare(broker, source.queue)
        await send(broker, source.queue, b"first")
        assert [one.message.body for one in await take(group)] == [b"first"]
        async with channel(broker) as one:
            await one.queue_delete(source.queue)
        caplog.clear()
        await until_told(caplog, "NOT_FOUND")
        await declare(broker, source.queue)
        await send(broker, source.queue, b"second")
        assert [one.message.body for one in await take(group)] == [b"second"]
        group.over = True


@pytest.mark.parametrize("how", ["swallowed", "cut"])
async def test_network_that_fails(broker: RabbitMq, caplog: pytest.LogCaptureFixture, how: str) -> None:
    source = await a_queue(broker)
    with TcpProxy(broker.port) as proxy:
        hub = Hub(opening_of(amqp_connection(proxy.port, heartbeat=1)).connection)
        async with hub.subscribe("group", [Interest("x", source)]) as group:
            await live(group)
            if how == "cut":
                proxy.refuse()
                await anyio.to_thread.run_sync(proxy.cut)
            else:
                await anyio.to_thread.run_sync(proxy.black_hole)
            await until_told(caplog, "the connection failed")
            await send(broker, source.queue, b"meanwhile")
            await anyio.to_thread.run_sync(proxy.restore)
            assert [one.message.body for one in await take(group)] == [b"meanwhile"]
            group.over = True
    await until_kept(broker, source.queue, 0)


async def test_an_acknowledgement_that_is_lost_with_its_connection(broker: RabbitMq) -> None:
    """Its group has ended by the time the broker delivers the message again; it is not left there."""
    source = await a_queue(broker)
    with TcpProxy(broker.port) as proxy:
        hub = Hub(opening_of(amqp_connection(proxy.port)).connection)
        async with hub.subscribe("group", [Interest("x", source)]) as group:
            await live(group)
            await send(broker, source.queue, b"once")
            (delivery,) = await group.receive()
            await anyio.to_thread.run_sync(proxy.black_hole)
            delivery.accept()
            with anyio.move_on_after(0.5) as limit:  # the time in which nothing may happen is what is tested
                await group.settled()
            assert limit.cancelled_caught, "the broker has not heard it"
            await anyio.to_thread.run_sync(proxy.cut)
            proxy.restore()
            group.over = True
        await until_kept(broker, source.queue, 0)


async def test_logins_and_virtual_hosts(broker: RabbitMq, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = await a_queue(broker)
    right = amqp_connection(broker.port, login="me", password=f"{SECRET}-right", schema="ours/%")
    await declare(broker, source.queue, vhost="ours/%")
    hub = corrected(opening_of(right).connection, amqp_connection(broker.port, login="me", password=f"{SECRET}-wrong"))
    async with hub.subscribe("group", [Interest("x", source)]) as group:
        await until_told(caplog, "the login is refused")
        await live(group)
        group.over = True
    for connection in (amqp_connection(broker.port, schema="nowhere"), amqp_connection(free_port())):
        with pytest.raises(StreamError, match="amqp_default"):
            async with taking(opening_of(connection), source):
                pass
    assert SECRET not in caplog.text
    assert SECRET not in repr((right, source.serialize()))


async def test_tls(broker: RabbitMq) -> None:
    assert broker.authority is not None
    source = await a_queue(broker)
    files: dict[str, Any] = {"ca_cert": str(broker.authority.certificate)}
    for fields in ({**files, "tls": True}, {**files, "conn_type": "amqps"}, {"tls": True, "insecure": True}):
        connection = amqp_connection(broker.tls_port, **fields)
        async with taking(opening_of(connection), source) as taker:
            await send(broker, source.queue, b"through")
            (message,) = await taker.take()
            await taker.settle(message)
    with pytest.raises(StreamError, match=r"[Cc]ertificate"):
        async with taking(opening_of(amqp_connection(broker.tls_port, tls=True)), source):
            pass


async def test_connection_can_be_tested(broker: RabbitMq, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an event loop running around it, too."""
    for fields, passes, text in (
        ({"login": "me", "password": f"{SECRET}-right"}, True, f"(127.0.0.1:{broker.port}, virtual host '/')"),
        ({"login": "me", "password": f"{SECRET}-wrong"}, False, "the login is refused"),
        ({"hearbeat": 3}, False, "did you mean 'heartbeat'"),
    ):
        name = in_environment(monkeypatch, amqp_connection(broker.port, **fields))
        passed, said = AmqpHook(name).test_connection()
        assert passed == passes
        assert text in said
        assert SECRET not in said


async def test_ten_megabytes(broker: RabbitMq) -> None:
    source = await a_queue(broker)
    async with taking(opening_of(amqp_connection(broker.port)), source) as taker:
        await send(broker, source.queue, b"x" * 10_000_000)
        (message,) = await taker.take()
        assert len(message.body or b"") == 10_000_000
        await taker.settle(message)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"host": None}, "its host must be"),
        ({"host": f"me:{SECRET}@localhost"}, "its host must be"),
        ({"ca_cert": "x"}, "needs tls"),
        ({"heartbeat": 0}, "heartbeat"),
        ({"vhost": "x"}, "unknown option 'vhost'"),
        ({"tls": True, "ca_cert": "/nowhere"}, "CA certificate"),
    ],
)
async def test_wrong_connections(fields: dict[str, Any], text: str) -> None:
    connection = amqp_connection(5672, **{"password": SECRET, "login": "me", **fields})
    with pytest.raises(ConfigurationError, match=text) as caught:
        async with taking(opening_of(connection), AmqpQueue("q")):
            pass
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": ""},
        {"queue": 3},
        {"prefetch": 1},
        {"unmatched": "drop"},
        {"conn_id": ""},
    ],
)
def test_wrong_declarations(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidEventError, match="AmqpQueue"):
        AmqpQueue(**{"queue": "q", **wrong}).validate()


async def test_broker_that_is_killed_and_started(broker: RabbitMq, caplog: pytest.LogCaptureFixture) -> None:
    """The shared one: what was in its durable queue is there again, and the group goes on by itself."""
    caplog.set_level(logging.INFO)
    source = await a_queue(broker)
    hub = Hub(opening_of(amqp_connection(broker.port)).connection)
    async with hub.subscribe("group", [Interest("x", source, count=2)]) as group:
        await live(group)
        await send(broker, source.queue, b"before")
        await take(group)
        await anyio.to_thread.run_sync(broker.kill)
        await until_told(caplog, "the connection failed")
        await anyio.to_thread.run_sync(broker.start)
        await until_told(caplog, "connected again", logging.INFO)  # pauses have grown while it started
        await send(broker, source.queue, b"after")
        assert [one.message.body for one in await take(group)] == [b"after"]
        group.over = True
    assert told(caplog, "the connection failed")
