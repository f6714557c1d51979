"""Messages of every bad sort, through real brokers, hub and wait into a ledger: none stops or fails anything."""

from __future__ import annotations

import json
import logging
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.protocol.produce import ProduceRequest  # type: ignore[import-untyped]
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy  # type: ignore[import-untyped]
from aiokafka.record.util import calc_crc32c_py  # type: ignore[import-untyped]

from event_triggers import callables
from event_triggers.clock import SystemClock
from event_triggers.event import Event
from event_triggers.hub import Hub
from event_triggers.ledger import DEFAULT_PAYLOAD_LIMIT, GroupRef
from event_triggers.message import Message
from event_triggers.sources.base import Opening, Source
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.sources.mqtt import MqttTopic
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryLedger
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait
from servers.mosquitto import Mosquitto
from servers.sqs import MotoServer, SqsServer
from tests.integration.kafka_support import SharedKafka, create_topic, producer, reading, shared_kafka
from tests.integration.mqtt_script import scripted
from tests.integration.mqtt_support import mosquitto, mqtt_connection, new_opening, publish, taking, unique, until
from tests.integration.sqs_support import Gate, Queue
from tests.integration.sqs_support import opening as sqs_opening

PATIENCE = 120.0
"""Seconds that a wait may take: on a busy machine a thousand groups need a while."""
LONG_AGO = "2000-01-01T00:00:00Z"
GOOD = b'{"good": true}'

BODIES: Mapping[str, bytes] = {
    "nothing": b"",
    "half a document": b'{"a": ',
    "not utf-8": b"\xff\xfe\x80",
    "byte order mark": b"\xef\xbb\xbf{}",
    "nul": b"a\x00b",
    "nul in json": b'{"a\\u0000": "\\u0000"}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "half a surrogate pair, raw": b'{"a": "\xed\xa0\x80"}',
    "not a number": b'{"a": NaN}',
    "infinity": b"[-Infinity, 1e999]",
    "same key twice": b'{"a": 1, "a": 2}',
    "large number": b"1" * 40,
    "too large a number": b"9" * 6000,
    "deep": b"[" * 900 + b"]" * 900,
    "too deep": b"[" * 200_000 + b"]" * 200_000,
    "forged lines": b'"\x1b[31mred\\r\\n[2030-01-01] INFO forged \\u202e"',
    "template": b'{"a": "{{ conn.aws_default.password }}{% raw %}"}',
    "reserved keys": b'{"__classname__": "os.system", "__data__": ["true"]}',
}
UNREADABLE = (
    "nothing",
    "half a document",
    "not utf-8",
    "byte order mark",
    "nul",
    "half a surrogate pair",
    "half a surrogate pair, raw",
    "not a number",
    "infinity",
    "too large a number",
    "too deep",
    "forged lines",
)
"""These are no JSON for a pattern. The others are documents, which are stored as they are or as text."""


@pytest.fixture(scope="module")
def kafka(request: pytest.FixtureRequest) -> SharedKafka:
    return shared_kafka(request.config)


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as broker:
        yield broker


@pytest.fixture(scope="module")
def sqs() -> Iterator[SqsServer]:
    with MotoServer() as server:
        yield server


class World:
    """A hub on a real broker, a ledger in memory, and groups of one event each."""

    def __init__(self, opening: Opening) -> None:
        self.hub = Hub(opening.connection)
        self.ledger = MemoryLedger()

    def wait(self, name: str, event: Event) -> GroupWait:
        return GroupWait(
            group(name),
            {"event": event},
            {"event": "inputs.event"},
            hub=self.hub,
            ledger=self.ledger,
            clock=SystemClock(),
            timeline=Timeline.of(Terms(), {}, datetime.now(timezone.utc), PATIENCE),
        )

    @asynccontextmanager
    async def waiting(self, **events: Event) -> AsyncIterator[None]:
        """These groups wait, each named as its event; when the context ends, each must have ended well."""
        verdicts: dict[str, Verdict] = {}

        async def run(name: str, event: Event) -> None:
            verdicts[name] = await self.wait(name, event).run()

        with anyio.fail_after(PATIENCE + 15):
            async with anyio.create_task_group() as tasks:
                for name, event in events.items():
                    tasks.start_soon(run, name, event)
                await until(lambda: self.connected)
                yield
        assert {name: verdict.status for name, verdict in verdicts.items()} == dict.fromkeys(events, Status.COMPLETE)

    @property
    def connected(self) -> bool:
        channels = self.hub.statistics().channels
        return bool(channels) and all(channel.connected and channel.entries for channel in channels)

    def payloads(self, name: str) -> list[Any]:
        payload = self.ledger.payload(group(name), "event")
        return payload if isinstance(payload, list) else [payload]


def group(name: str) -> GroupRef:
    return GroupRef("daily", "manual__1", name)


async def check(
    caplog: pytest.LogCaptureFixture,
    opening: Opening,
    source: Source,
    send: Callable[[Mapping[str, bytes]], Awaitable[None]],
    *,
    bodies: Mapping[str, bytes] = BODIES,
    since: str | None = None,
) -> None:
    """A group that looks for one good message finds it behind all the bad ones; one that takes all records all."""
    caplog.set_level(logging.INFO)
    world = World(opening)
    async with world.waiting(good=Event(source, match={"good": [True]}, since=since)):
        await send({**bodies, "good": GOOD})
    assert world.payloads("good") == [{"good": True}]
    said = [r.getMessage() for r in caplog.records if r.name.startswith("event_triggers")]
    assert all(line.isprintable() for line in said), "a message has forged a line"
    skipped = [line for line in said if "is not JSON, so no pattern can match it; it is skipped" in line]
    assert len(skipped) >= len([name for name in bodies if name in UNREADABLE])
    assert all(f"{source.label}: the message at " in line for line in skipped)

    async with world.waiting(every=Event(source, count=len(bodies), since=since)):
        if since is None:
            await send(bodies)
    stored = world.payloads("every")
    assert len(stored) == len(bodies)
    for payload in stored:
        assert_storable(payload)
    assert {"a": "{{ conn.aws_default.password }}{% raw %}"} in stored, "a payload is data"
    assert {"a": 2} in stored


def assert_storable(payload: Any) -> None:
    text = json.dumps(payload, allow_nan=False)
    assert "\\u0000" not in text.replace("\\\\u0000", ""), "PostgreSQL does not take it"
    assert len(text) <= 6 * DEFAULT_PAYLOAD_LIMIT
    assert text.count("[") < 300 or isinstance(payload, dict)
    text.encode("utf-8")


# ---------------------------------------------------------------------- each broker


async def test_kafka(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    topic = await kafka.topic()

    async def send(bodies: Mapping[str, bytes]) -> None:
        async with producer(kafka.direct) as sender:
            for name, body in bodies.items():
                await sender.send_and_wait(topic, body, key=b"\xff\x00\x1b" + name.encode(), headers=[("h", b"\xff")])

    await check(caplog, kafka.opening(), KafkaTopic(topic), send, since=LONG_AGO)


async def test_mqtt(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    topic = unique("topic")

    async def send(bodies: Mapping[str, bytes]) -> None:
        await publish(broker.port, f"{topic}/\u202e\u200b", *bodies.values())

    await check(caplog, new_opening(mqtt_connection(broker.port)), MqttTopic(f"{topic}/#"), send)


async def test_sqs(sqs: SqsServer, caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(sqs)
    texts = {name: body for name, body in BODIES.items() if body and is_text(body)}

    async def send(bodies: Mapping[str, bytes]) -> None:
        attribute = {"DataType": "Binary", "BinaryValue": b"\xff\x00"}
        for body in bodies.values():
            await queue.send(body.decode(), MessageAttributes={"odd": attribute})

    async def resend(bodies: Mapping[str, bytes]) -> None:
        if "good" in bodies:
            await send(bodies)  # the others are in the queue still

    await check(caplog, sqs_opening(sqs.endpoint_url), queue.source(), resend, bodies=texts)
    await queue.kept(0)


def is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---------------------------------------------------------------------- names and properties that are not UTF-8


async def test_kafka_header_name_that_is_not_utf_8(kafka: SharedKafka) -> None:
    """Clients in C can write one. It may stand anywhere in a batch, and costs nobody a message."""
    topic = await kafka.topic()
    await produce_batch(kafka, topic, [[], [("plain", b"1")], [("odd~", b"2")], [], [("odd~", None)], []])
    await produce_batch(kafka, topic, [[("odd~", b"3")], []])
    async with producer(kafka.direct) as sender:
        await sender.send_and_wait(topic, GOOD)
    async with reading(KafkaTopic(topic), kafka.opening(start={f"{topic}-0": 0})) as reader:
        messages = await reader.take(9)
        assert [message.offset for message in messages] == list(range(9))
        assert [message.headers for message in messages[:5]] == [
            (),
            (("plain", b"1"),),
            (("odd\\xff", b"2"),),
            (),
            (("odd\\xff", b""),),
        ]
        assert messages[6].headers == (("odd\\xff", b"3"),)
        assert messages[8].body == GOOD
        assert reader.log.position() == {f"{topic}-0": 9}


async def produce_batch(kafka: SharedKafka, topic: str, headers: list[list[tuple[str, bytes | None]]]) -> None:
    """One batch, in which ``~`` in names is a byte that UTF-8 does not have."""
    builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 100_000)
    now = int(time.time() * 1000)  # what is older than a week, Kafka would remove
    for offset, of_one in enumerate(headers):
        builder.append(offset, timestamp=now, key=None, value=b"v", headers=of_one)
    batch = bytearray(bytes(builder.build()).replace(b"~", b"\xff"))
    batch[17:21] = struct.pack(">I", calc_crc32c_py(batch[21:]))
    async with producer(kafka.direct) as sender:
        await sender.partitions_for(topic)
        leader = sender.client.cluster.leader_for_partition(TopicPartition(topic, 0))
        request = ProduceRequest(None, -1, 10_000, [(topic, [(0, bytes(batch))])])
        answer = await sender.client.send(leader, request)
    assert answer.topics[0][1][0][1] == 0


ODD_PROPERTY = b"\x26\x00\x04odd\xff\x00\x05\xef\xbb\xbf\x00v"
ALL_PROPERTIES = (
    b"\x01\x01"
    + b"\x02\x00\x00\x00\x09"
    + b"\x03\x00\x02\xfft"
    + b"\x08\x00\x01r"
    + b"\x09\x00\x02\xff\x00"
    + ODD_PROPERTY
)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_properties_that_are_not_utf_8(qos: int) -> None:
    """A broker may pass them on unseen; to the client they are a broken connection."""
    source = MqttTopic("#", qos=qos)
    async with scripted() as broker, taking(new_opening(broker.connection()), source) as taker:
        for mid, properties in ((1, ALL_PROPERTIES), (2, b"")):
            number = mid.to_bytes(2, "big") if qos else b""
            body = b"\x00\x01t" + number + bytes([len(properties)]) + properties + b"body %d" % mid
            await broker.send(0x30 | qos << 1, body)
        odd, good = await taker.take(2)
        assert (odd.body, good.body) == (b"body 1", b"body 2")
        assert dict(odd.headers[1:]) == {
            "mqtt.payload-format": b"1",
            "mqtt.content-type": b"\\xfft",
            "mqtt.response-topic": b"r",
            "mqtt.correlation-data": b"\xff\x00",
            "odd\\xff": b"\\ufeff\\u0000v",
        }
        await taker.settle(odd, good)


async def test_mqtt_property_with_a_byte_order_mark(broker: Mosquitto) -> None:
    """MQTT allows it, Mosquitto passes it on, and a durable session would send it again for ever."""
    topic = unique("topic")
    async with taking(new_opening(mqtt_connection(broker.port)), MqttTopic(topic)) as taker:
        await publish_raw(broker.port, topic, b"\x26\x00\x01k\x00\x04\xef\xbb\xbfv")
        (message,) = await taker.take()
        assert message.headers[1:] == (("k", b"\\ufeffv"),)
        await taker.settle(message)


async def publish_raw(port: int, topic: str, properties: bytes) -> None:
    """At QoS 1, by hand: clients refuse to write what brokers pass on."""
    name = len(topic).to_bytes(2, "big") + topic.encode()
    sent = name + b"\x00\x01" + bytes([len(properties)]) + properties + b"body"
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", port) as connection:
            connect = b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"
            await connection.send(bytes([0x10, len(connect)]) + connect)
            await connection.receive()
            await connection.send(bytes([0x32, len(sent)]) + sent)
            assert (await connection.receive())[0] == 0x40, "the broker does not take it"


async def test_sqs_text_that_is_not_unicode(sqs: SqsServer, caplog: pytest.LogCaptureFixture) -> None:
    """AWS refuses half of a surrogate pair; other servers need not."""
    queue = Queue(sqs)
    await queue.send('{"n": 1}')
    half = "\ud800"

    def spoil(answer: dict[str, Any]) -> dict[str, Any]:
        for raw in answer.get("Messages", ()):
            raw["Body"] = half
            raw["MessageAttributes"] = {half: {"DataType": "String", "StringValue": half}}
        return answer

    async with Gate.before(sqs) as gate:
        gate.edit("ReceiveMessage", spoil)
        world = World(sqs_opening(gate.endpoint))
        async with world.waiting(every=Event(queue.source())):
            pass
    assert world.payloads("every") == [{"base64": "7aCA"}]
    await queue.kept(0)


# ---------------------------------------------------------------------- large ones


SIZE = 10 * 1024 * 1024


async def test_a_message_of_ten_megabytes(kafka: SharedKafka, broker: Mosquitto) -> None:
    name = unique("large")
    await create_topic(kafka.direct, name, max_message_bytes=SIZE + 1000)
    body = json.dumps({"good": True, "large": "\u202e" * ((SIZE - 30) // 6)}).encode()
    async with producer(kafka.direct, max_request_size=SIZE + 1000) as sender:
        await sender.send_and_wait(name, body)
    over_kafka, over_mqtt = World(kafka.opening()), World(new_opening(mqtt_connection(broker.port)))
    async with (
        over_kafka.waiting(large=Event(KafkaTopic(name), match={"good": [True]}, since=LONG_AGO)),
        over_mqtt.waiting(large=Event(MqttTopic(name), match={"good": [True]})),
    ):
        await publish(broker.port, name, body)
    for world, source, position in ((over_kafka, "kafka", "0@0"), (over_mqtt, "mqtt", "mid 1")):
        (payload,) = world.payloads("large")
        assert {**payload, "view": ""} == {
            "truncated": True,
            "size": len(body),
            "source": source,
            "stream": name,
            "position": position,
            "view": "",
        }
        assert payload["view"].startswith('{"good": true, "large": "\\u202e')
        assert len(payload["view"]) <= 2000


async def test_the_whole_of_it_can_be_fetched_as_the_documents_say(
    kafka: SharedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka.topic(3)
    async with producer(kafka.direct) as sender:
        for number in range(3):
            await sender.send_and_wait(topic, b"%d" % number * 60_000, partition=1)
    text = (Path(__file__).parents[2] / "docs" / "payloads.md").read_text()
    names: dict[str, Any] = {}
    exec(text.partition('```python title="fetch.py"\n')[2].partition("```")[0], names)  # noqa: S102 - our own
    monkeypatch.setenv(
        "AIRFLOW_CONN_KAFKA_DEFAULT",
        json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": kafka.direct}}),
    )
    reference = {"truncated": True, "source": "kafka", "stream": topic, "position": "1@2"}
    assert await anyio.to_thread.run_sync(names["whole"], reference) == b"2" * 60_000
    assert names["whole"]({"small": 1}) == {"small": 1}


# ---------------------------------------------------------------------- callables and crowds


class Evil(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


_hanging = threading.Event()


def raises(message: Message) -> bool:
    raise ValueError(f"forged\nline {message.text}\x1b[31m")


def raises_evil(message: Message) -> bool:
    raise Evil


def hangs(message: Message) -> bool:
    return not _hanging.wait(60)


async def test_callables_that_raise_or_never_return(
    kafka: SharedKafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each costs its own event the message, and nobody else anything."""
    monkeypatch.setattr(callables, "CALLABLE_TIMEOUT", 0.3)
    topic = await kafka.topic()
    async with producer(kafka.direct) as sender:
        for body in (b"one", b"two", GOOD):
            await sender.send_and_wait(topic, body)
    world = World(kafka.opening())
    bad = [raises, raises_evil, hangs]
    try:
        async with anyio.create_task_group() as tasks:
            for accepts in bad:
                event = Event(KafkaTopic(topic), match=f"{__name__}.{accepts.__name__}", since=LONG_AGO)
                tasks.start_soon(world.wait(accepts.__name__, event).run)
            async with world.waiting(good=Event(KafkaTopic(topic), match={"good": [True]}, since=LONG_AGO)):
                pass
            await until(lambda: "has not returned since an earlier message for kafka" in caplog.text)
            tasks.cancel_scope.cancel()
    finally:
        _hanging.set()
    assert [world.ledger.state(group(accepts.__name__), "event") for accepts in bad] == [None] * 3
    where = f"for kafka {topic} 0@0; the message does not count for it"
    assert f"event event: its match callable raised ValueError: forged line one\\u001b[31m {where}" in caplog.text
    assert f"event event: its match callable raised Evil: (its text cannot be had: RuntimeError) {where}" in caplog.text
    assert f"event event: its match callable took longer than 0.3 s {where}" in caplog.text


async def test_a_message_that_a_thousand_groups_want(sqs: SqsServer) -> None:
    """Each records it, and the queue is told once."""
    queue, count = Queue(sqs), 1000
    async with Gate.before(sqs) as gate:
        world = World(sqs_opening(gate.endpoint))
        source = queue.source()
        events = {f"group-{n}": Event(source, match={"for": ["all", n]}) for n in range(count)}
        async with world.waiting(**events):
            (sent,) = await queue.send('{"for": "all", "more": ["\\u202e"]}')
        assert len(gate.asked("DeleteMessageBatch")) == 1
    assert all(world.ledger.ids(group(name), "event") == [sent] for name in events)
    recorded = [entry for entry in world.ledger.history if entry.kind == "recorded"]
    assert len(recorded) == count
    await queue.kept(0)
