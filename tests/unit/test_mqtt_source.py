"""The declaration :class:`MqttTopic`, and what it needs installed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from event_triggers.errors import ConfigurationError, InvalidEventError, MissingExtraError
from event_triggers.message import Message
from event_triggers.sources import _mqtt_client
from event_triggers.sources._mqtt_settings import read_settings
from event_triggers.sources._mqtt_stream import Receipt
from event_triggers.sources.base import BrokerConnection, Opening, load_source
from event_triggers.sources.mqtt import MqttTopic


async def somewhere(conn_id: str) -> BrokerConnection:
    return BrokerConnection(conn_id, "mqtt", host="127.0.0.1", port=9)


def test_declaration() -> None:
    source = MqttTopic("plant/+/end", 2, conn_id="plant", retained=False)
    assert (source.kind, source.name, source.label, source.replayable) == (
        "mqtt",
        "plant/+/end",
        "mqtt plant/+/end",
        False,
    )
    assert load_source(json.loads(json.dumps(source.serialize()))) == source
    assert load_source({"type": "event_triggers.sources.mqtt.MqttTopic", "topic": "a"}) == MqttTopic("a")
    with pytest.raises(AttributeError):
        source.qos = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "durable"),
    [
        (MqttTopic("a"), True),
        (MqttTopic("a", 2), True),
        (MqttTopic("a", 0), False),
        (MqttTopic("a", 1, durable=False), False),
        (MqttTopic("a", 1, durable=True), True),
    ],
)
def test_durable_sources_have_a_connection_per_group(source: MqttTopic, durable: bool) -> None:
    source.validate()
    assert source.is_durable is durable
    assert (source.key("one") != source.key("two")) is durable
    assert source.key("one") == MqttTopic("b", source.qos, durable=source.durable).key("one")
    assert hash(source.key("one")) == hash(source.key("one"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"topic": ""}, "topic filter is empty"),
        ({"topic": "a/#/b"}, r"topic filter has a '#'"),
        ({"topic": 7}, "topic must be text, got 7"),
        ({"topic": "a", "qos": 3}, "qos must be 0, 1 or 2, got 3"),
        ({"topic": "a", "qos": True}, "qos must be 0, 1 or 2, got True"),
        ({"topic": "a", "qos": "1"}, "qos must be 0, 1 or 2, got '1'"),
        ({"topic": "a", "conn_id": ""}, "conn_id must be a connection's id"),
        ({"topic": "a", "durable": 1}, "durable must be True, False or None"),
        ({"topic": "a", "retained": None}, "retained must be True or False"),
        ({"topic": "a", "qos": 0, "durable": True}, "durable session needs qos=1 or qos=2"),
    ],
)
def test_mistakes_are_found_at_parse_time(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidEventError, match=text):
        MqttTopic(**arguments).validate()


def test_templates_are_checked_once_they_are_rendered() -> None:
    MqttTopic("plant/{{ ds }}/#").validate()
    MqttTopic("{% if x %}#{% endif %}/a").validate()


async def test_rendered_filter_is_checked_when_it_is_opened() -> None:
    for use in (enter(MqttTopic("a/#/b")), MqttTopic("a/#/b").forget(Opening(connection=somewhere))):
        with pytest.raises(ConfigurationError, match="has a '#'"):
            await use


async def enter(source: MqttTopic) -> None:
    async with source.open(Opening(connection=somewhere)):
        pass


def message(topic: str, *, retained: bool = False) -> Message:
    return Message("mqtt", topic, "mid 1", "id", b"", receipt=Receipt(1, retained))


def test_routes() -> None:
    source = MqttTopic("plant/+/end")
    assert source.routes(message("plant/a/end"))
    assert source.routes(message("plant/a/end", retained=True))
    assert not source.routes(message("plant/a/begin"))
    assert not MqttTopic("plant/+/end", retained=False).routes(message("plant/a/end", retained=True))
    assert MqttTopic("plant/+/end", retained=False).routes(message("plant/a/end"))


async def test_unknown_connection() -> None:
    with pytest.raises(ConfigurationError, match="'mqtt_default' is not defined"):
        await enter_nowhere()


async def enter_nowhere() -> None:
    async with MqttTopic("a").open(Opening()):
        pass


def test_importing_needs_no_client_and_using_says_which_extra() -> None:
    """In a process where the client cannot be imported."""
    script = """
import asyncio, sys
sys.modules["aiomqtt"] = sys.modules["paho"] = None
from event_triggers.errors import MissingExtraError
from event_triggers.sources.base import BrokerConnection, Opening
from event_triggers.sources.mqtt import MqttTopic
async def somewhere(conn_id):
    return BrokerConnection(conn_id, host="h")
async def use():
    MqttTopic("a").validate()
    for use in (enter(), MqttTopic("a").forget(Opening(connection=somewhere))):
        try:
            await use
        except MissingExtraError as error:
            print(error)
async def enter():
    async with MqttTopic("a").open(Opening(connection=somewhere)):
        pass
asyncio.run(use())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "MqttTopic" in line
        assert "airflow-event-triggers[mqtt]" in line
    assert issubclass(MissingExtraError, ConfigurationError)


# ---------------------------------------------------------------------- what is used of the client library's inside


def test_reach_into_the_client_library() -> None:
    """When this fails after an update, the tests of sessions on Mosquitto tell whether it still behaves the same."""
    _mqtt_client.check_reach()


async def test_reach_into_a_client() -> None:
    settings = read_settings(await somewhere("plant"))
    client = _mqtt_client.make_client(settings, None, "id", keep_session=True, clean=False)
    inner = _mqtt_client.LateClient.adopt(client)
    assert inner is client._client
    assert isinstance(client._disconnected, asyncio.Future)
    assert inner._in_messages == {}
    assert inner.on_message is not None
    assert inner.socket() is None
    inner.drop()


def test_library_without_what_is_reached_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("paho.mqtt.client.Client._send_pubrec")
    with pytest.raises(ConfigurationError, match=r"paho-mqtt \d.*_send_pubrec.*airflow-event-triggers\[mqtt\]"):
        _mqtt_client.check_reach()
