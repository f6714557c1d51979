"""Secrets of connections, planted in every kind of them, are in nothing that is logged, raised, counted or stored."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import datetime, timezone
from typing import Any

import anyio
import httpx
import pytest
from aiohttp import web
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.api_settings import find_settings
from event_triggers.clock import SystemClock
from event_triggers.errors import AirflowApiError, EventTriggersError
from event_triggers.event import Event
from event_triggers.group import EventGroup
from event_triggers.hub import Hub
from event_triggers.ledger import GroupRef
from event_triggers.sources.amqp import AmqpQueue
from event_triggers.sources.base import BrokerConnection, Source
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.sources.mqtt import MqttTopic
from event_triggers.sources.nats import NatsSubject
from event_triggers.sources.redis import RedisStream
from event_triggers.sources.sqs import SqsQueue
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryLedger
from event_triggers.trigger import EventGroupTrigger
from event_triggers.verdict import Verdict
from event_triggers.wait import GroupWait
from servers.mosquitto import Mosquitto
from servers.ports import free_port
from servers.sqs import MotoServer
from tests.integration.amqp_support import amqp_connection, shared_rabbitmq
from tests.integration.mqtt_support import mosquitto, mqtt_connection
from tests.integration.nats_support import nats_connection, nats_server
from tests.integration.redis_support import redis_connection, redis_server
from tests.integration.sqs_support import Gate

SECRET = "s3cr3t"
"""Part of every secret of these tests."""
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}-key\n-----END PRIVATE KEY-----\n"
OURS = ("event_triggers", "aiokafka", "aiomqtt", "paho", "mqtt", "httpx", "aio_pika", "aiormq", "redis", "nats")
"""Whose logs are looked at, down to DEBUG."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto(users={"me": f"{SECRET}-right"}, tls=True) as broker:
        yield broker


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for name in OURS:
        caplog.set_level(logging.DEBUG, logger=name)


def no_secret_in(caplog: pytest.LogCaptureFixture, *things: object) -> None:
    """Neither as text nor as ``repr``; errors with their whole chain, as a traceback shows them."""
    texts = [caplog.text]
    for thing in things:
        texts += [str(thing), repr(thing)]
        if isinstance(thing, BaseException):
            texts += traceback.format_exception(thing)
    for text in texts:
        assert SECRET not in text, text


async def fails(source: Source, connection: BrokerConnection, caplog: pytest.LogCaptureFixture) -> str:
    """Open a source that cannot be opened, alone and in a wait; what was said of it, which holds no secret."""

    async def look_up(conn_id: str) -> BrokerConnection:
        return connection

    hub = Hub(look_up)
    with pytest.raises(EventTriggersError) as caught:
        await open_and_watch(source, hub)
    wait = GroupWait(
        GroupRef("dag", "run", "wait"),
        {"event": Event(source)},
        {"event": "event"},
        hub=hub,
        ledger=MemoryLedger(),
        clock=SystemClock(),
        timeline=Timeline.of(Terms(), {}, datetime.now(timezone.utc), 0.3),
    )
    verdict: Verdict | None = None
    with anyio.move_on_after(0.6):
        verdict = await wait.run()
    no_secret_in(caplog, caught.value, verdict, hub.statistics(), source, source.serialize())
    if "@" not in str(connection.host):
        no_secret_in(caplog, connection)
    assert connection.conn_id in str(caught.value)
    return str(caught.value)


async def open_and_watch(source: Source, hub: Hub) -> None:
    with anyio.fail_after(20):
        async with source.open(hub._opening("group")) as stream:
            await stream.watch(source)
            await stream.__aiter__().__anext__()


# ---------------------------------------------------------------------- Kafka


KAFKA_LOGIN = {"sasl.username": "me", "sasl.password": f"{SECRET}-password"}
TOKENS = {
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "me",
    "sasl.oauthbearer.client.secret": f"{SECRET}-client",
}


def kafka_extras() -> Iterator[tuple[str, dict[str, Any]]]:
    closed = f"127.0.0.1:{free_port()}"
    plain = {"bootstrap.servers": closed, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    tls = {"bootstrap.servers": closed, "security.protocol": "SSL"}
    endpoint = f"http://127.0.0.1:{free_port()}/token"
    yield "refused", {**plain, **KAFKA_LOGIN}
    yield "scram", {**plain, **KAFKA_LOGIN, "sasl.mechanism": "SCRAM-SHA-512"}
    yield "wrong mechanism", {**plain, **KAFKA_LOGIN, "sasl.mechanism": "NONE"}
    yield "login in the address", {**plain, "bootstrap.servers": f"me:{SECRET}@{closed}"}
    yield "login in a whole address", {**plain, "bootstrap.servers": f"kafka://me:{SECRET}@{closed}"}
    yield "key", {**tls, "ssl.certificate.pem": "none", "ssl.key.pem": PEM, "ssl.key.password": f"{SECRET}-of-key"}
    yield "keystore", {**tls, "ssl.keystore.location": __file__, "ssl.keystore.password": f"{SECRET}-of-store"}
    yield "token endpoint", {**plain, **TOKENS, "sasl.oauthbearer.token.endpoint.url": endpoint}
    url = f"https://me:{SECRET}@127.0.0.1/token"
    yield "login in the token endpoint", {**plain, **TOKENS, "sasl.oauthbearer.token.endpoint.url": url}
    callback = {"sasl.mechanism": "OAUTHBEARER", "oauth_cb": "builtins.int", "sasl.oauthbearer.config": SECRET}
    yield "callable", {**plain, **callback}
    yield "unknown key", {**plain, **KAFKA_LOGIN, "sasl.pasword": SECRET}
    yield "unused", {"bootstrap.servers": closed, **KAFKA_LOGIN}


@pytest.mark.parametrize("extra", [pytest.param(extra, id=name) for name, extra in kafka_extras()])
async def test_kafka(extra: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST", "builtins.int")
    connection = BrokerConnection("mine", "kafka", password=f"{SECRET}-unused", extra=extra)
    await fails(KafkaTopic("topic", conn_id="mine"), connection, caplog)


# ---------------------------------------------------------------------- MQTT


async def test_mqtt(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    login: dict[str, Any] = {"login": "me", "password": f"{SECRET}-wrong", "timeout": 2}
    key: dict[str, Any] = {
        "client_cert_pem": "none",
        "private_key_pem": PEM,
        "private_key_password": f"{SECRET}-of-key",
    }
    headers: dict[str, Any] = {"transport": "websockets", "websocket_headers": {"Authorization": f"Bearer {SECRET}"}}
    for name, connection in {  # what is said, and why
        "Not authorized": mqtt_connection(broker.port, **login),
        "client identifier": mqtt_connection(broker.port, protocol="3.1.1", **login),
        "refused": mqtt_connection(free_port(), **login),
        "is not trusted": mqtt_connection(broker.tls_port, tls=True, **login),
        "client certificate": mqtt_connection(broker.tls_port, tls=True, **key, **login),
        "websocket_path": mqtt_connection(broker.port, **headers, **login),
        "unknown option": mqtt_connection(broker.port, private_key_pasword=SECRET, **login),
        "its host must be": mqtt_connection(broker.port, **{**login, "host": f"me:{SECRET}@localhost"}),
    }.items():
        caplog.clear()
        assert name in await fails(MqttTopic("topic"), connection, caplog)


# ---------------------------------------------------------------------- SQS


async def test_sqs(caplog: pytest.LogCaptureFixture) -> None:
    signed = f"the signature does not match.\n\nThe canonical string was 'x-amz-security-token:{SECRET}-session'"
    keys: dict[str, Any] = {"login": "AKIA", "password": f"{SECRET}-key"}
    # A server that is never started: what stands before it answers everything.
    with closing(MotoServer()) as nowhere:
        async with Gate.before(nowhere) as gate:
            extra = {
                "region_name": "us-east-1",
                "endpoint_url": gate.endpoint,
                "aws_session_token": f"{SECRET}-session",
            }
            at_login = gate.endpoint.replace("://", f"://me:{SECRET}@").rpartition(":")[0] + f":{free_port()}"
            for change in (
                {},
                {"endpoint_url": at_login},
                {"no_such_option": SECRET},
                {"config_kwargs": {"nothing": 1}},
            ):
                caplog.clear()
                gate.refuse("GetQueueUrl", "SignatureDoesNotMatch", signed, times=20, status=403)
                connection = BrokerConnection("mine", "aws", extra={**extra, **change}, **keys)
                await fails(SqsQueue("queue", conn_id="mine"), connection, caplog)


# ---------------------------------------------------------------------- AMQP, Redis, NATS


TLS_KEY: dict[str, Any] = {
    "tls": True,
    "client_cert_pem": "none",
    "private_key_pem": PEM,
    "private_key_password": f"{SECRET}-of-key",
}


async def test_amqp(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    broker = shared_rabbitmq(request.config)
    login: dict[str, Any] = {"login": "me", "password": f"{SECRET}-wrong"}
    for name, connection in {  # what is said, and why
        "the login is refused": amqp_connection(broker.port, **login),
        "there is no such queue": amqp_connection(broker.port, login="me", password=f"{SECRET}-right"),
        "cannot be reached": amqp_connection(free_port(), **login),
        "client certificate": amqp_connection(broker.tls_port, **TLS_KEY, **login),
        "ertificate": amqp_connection(broker.tls_port, tls=True, **login),
        "unknown option": amqp_connection(broker.port, private_key_pasword=SECRET, **login),
        "its host must be": amqp_connection(broker.port, **{**login, "host": f"me:{SECRET}@localhost"}),
    }.items():
        caplog.clear()
        assert name in await fails(AmqpQueue("queue"), connection, caplog)


async def test_redis(caplog: pytest.LogCaptureFixture) -> None:
    login: dict[str, Any] = {"login": "me", "password": f"{SECRET}-wrong"}
    with redis_server() as server:
        for name, connection in {
            "the login is refused": redis_connection(server.port, **login),
            "cannot be reached": redis_connection(free_port(), **login),
            "redis_default": redis_connection(server.port, ssl=True, ssl_certfile="/x", ssl_keyfile="/x", **login),
            "true or false": redis_connection(server.port, ssl="perhaps", **login),
            "its host must be": redis_connection(server.port, **{**login, "host": f"me:{SECRET}@localhost"}),
        }.items():
            caplog.clear()
            assert name in await fails(RedisStream("stream"), connection, caplog)


async def test_nats(caplog: pytest.LogCaptureFixture) -> None:
    login: dict[str, Any] = {"login": "me", "password": f"{SECRET}-wrong"}
    creds = f"-----BEGIN NATS USER JWT-----\n{SECRET}\n---\n-----BEGIN USER NKEY SEED-----\n{SECRET}\n---\n"
    with nats_server(authorization=f"token: {SECRET}-right") as server:
        for name, connection in {
            "correct the connection's login": nats_connection(server.port, **login),
            "cannot connect: ": nats_connection(server.port, token=f"{SECRET}-wrong"),
            "there is no stream": nats_connection(server.port, token=f"{SECRET}-right"),
            "Connect call failed": nats_connection(free_port(), **login),
            "nats_default": nats_connection(server.port, creds_text=creds),
            "its creds hold no": nats_connection(server.port, creds_text=SECRET),
            "client certificate": nats_connection(server.port, **TLS_KEY, **login),
            "did you mean": nats_connection(server.port, private_key_pasword=SECRET, **login),
            "its host must be": nats_connection(server.port, **{**login, "host": f"me:{SECRET}@localhost"}),
        }.items():
            caplog.clear()
            assert name in await fails(NatsSubject("s", stream="S"), connection, caplog)


# ---------------------------------------------------------------------- Airflow's API


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """A server that answers with this status, whatever it is asked; gives its address."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"detail": "no"}, status=status)

    application = web.Application()
    application.router.add_route("*", "/{anything:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address: Any = runner.addresses[0]
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [302, 401, 403, 404, 422])
async def test_airflows_api(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(status) as url:
        for fields in ({"password": f"{SECRET}-password"}, {"extra": {"token": f"{SECRET}-token"}}):

            async def look_up(conn_id: str, fields: dict[str, Any] = fields) -> BrokerConnection:
                return BrokerConnection(conn_id, "http", host=url, login="marker", **fields)

            settings = await find_settings(look_up)
            async with AirflowApi(settings) as api:
                with pytest.raises(AirflowApiError) as caught, anyio.fail_after(10):
                    await api.call("POST", "/api/v2/x", json={"a": 1})
            no_secret_in(caplog, caught.value, settings, api)


async def test_airflows_api_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    settings = ApiSettings(f"http://127.0.0.1:{free_port()}", token=f"{SECRET}-token", origin="the test")
    said: list[str] = []
    async with AirflowApi(settings) as api:
        api.listen(lambda level, text: said.append(text))
        with anyio.move_on_after(2):
            await api.call("GET", "/api/v2/version")
        assert said
        no_secret_in(caplog, said, api.trouble, api, httpx.URL(settings.base_url))


# ---------------------------------------------------------------------- what is stored


def test_no_connection_is_stored_with_a_dag_or_a_trigger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("KAFKA", "AWS", "MQTT"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}_DEFAULT", json.dumps({"conn_type": name, "password": SECRET}))
    with DAG("daily", schedule=None) as dag:
        events = {"a": Event(KafkaTopic("t")), "b": Event(SqsQueue("q")), "c": Event(MqttTopic("m"))}
        group = EventGroup("inputs", events)
    arguments = group.sensor.start_trigger_args
    kwargs = dict(arguments.trigger_kwargs or {}) if arguments is not None else {}
    trigger = EventGroupTrigger(events=group.sensor.events, markers=group.sensor.markers, timeout=1)
    no_secret_in(caplog, DagSerialization.to_dict(dag), kwargs, trigger.serialize(), trigger)
    assert "kafka_default" in repr(trigger.serialize())
