"""Reading an Airflow connection of type ``mqtt``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from event_triggers.errors import ConfigurationError
from event_triggers.hooks.mqtt_form import BEHAVIOUR, FIELDS
from event_triggers.sources._mqtt_settings import OPTIONS, make_tls_context, read_settings
from event_triggers.sources.base import BrokerConnection


def connection(**extra: Any) -> BrokerConnection:
    fields: dict[str, Any] = {"host": "broker.example"}
    fields.update({name: extra.pop(name) for name in ("host", "port", "login", "password", "schema") if name in extra})
    return BrokerConnection("plant", "mqtt", extra=extra, **fields)


def test_defaults() -> None:
    settings = read_settings(connection())
    assert (settings.host, settings.port, settings.protocol, settings.transport) == ("broker.example", 1883, "5", "tcp")
    assert (settings.keepalive, settings.timeout, settings.receive_maximum) == (30, 10, 200)
    assert settings.session_expiry == 7 * 24 * 3600
    assert (settings.tls, settings.username, settings.password) == (False, None, None)
    assert make_tls_context(settings) is None


@pytest.mark.parametrize(
    ("extra", "port"),
    [
        ({}, 1883),
        ({"tls": True}, 8883),
        ({"transport": "websockets"}, 80),
        ({"transport": "websockets", "tls": True}, 443),
        ({"port": 4242, "tls": True}, 4242),
    ],
)
def test_default_ports(extra: dict[str, Any], port: int) -> None:
    assert read_settings(connection(**extra)).port == port


def test_values_as_text() -> None:
    """As they come from a URI, the command line or an environment variable."""
    extra = {"tls": "True", "keepalive": "45", "protocol": "3.1.1", "receive_maximum": " 7 ", "insecure": "no"}
    settings = read_settings(connection(**extra, alpn="mqtt, x-amzn-mqtt-ca"))
    assert (settings.tls, settings.keepalive, settings.receive_maximum) == (True, 45, 7)
    assert not settings.version_5
    assert settings.tls_options == {"insecure": False, "alpn": ["mqtt", "x-amzn-mqtt-ca"]}


def test_fields_left_empty_in_the_form() -> None:
    assert read_settings(connection(**dict.fromkeys(OPTIONS, None))) == read_settings(connection())
    assert read_settings(connection(**dict.fromkeys(OPTIONS, ""))) == read_settings(connection())


def test_form_as_it_is_when_nobody_touches_it() -> None:
    defaults = {name: field["schema"].get("default") for name, field in FIELDS.items()}
    assert read_settings(connection(**defaults)) == read_settings(connection())


def test_form_has_every_option_and_no_other() -> None:
    assert set(FIELDS) == set(OPTIONS)
    json.dumps([FIELDS, BEHAVIOUR])


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"host": None}, "has no host"),
        ({"schema": "mqtts"}, "field Schema.*'mqtts'"),
        ({"password": "p"}, "password but no login"),
        ({"keep_alive": 3}, "unknown option 'keep_alive'; did you mean 'keepalive'"),
        ({"ca_certs": "x"}, "unknown option 'ca_certs'; did you mean 'ca_cert'"),
        ({"zzz": 1}, "unknown option 'zzz'; known are protocol, "),
        ({"protocol": "3.1"}, '\'protocol\'.*must be "5" or "3.1.1"'),
        ({"transport": "udp"}, "'transport'.*tcp, websockets"),
        ({"tls": "perhaps"}, "'tls'.*true or false"),
        ({"tls": 1}, "'tls'.*true or false"),
        ({"keepalive": 1}, "'keepalive'.*from 5 to 65535"),
        ({"keepalive": True}, "'keepalive'.*whole number"),
        ({"keepalive": 7.5}, "'keepalive'.*whole number"),
        ({"session_expiry": 0}, "'session_expiry'.*from 1 to"),
        ({"receive_maximum": 70_000}, "'receive_maximum'"),
        ({"client_id_prefix": "a\nb"}, "'client_id_prefix'.*control"),
        ({"client_id_prefix": 7}, "'client_id_prefix'.*text"),
        ({"transport": "websockets", "websocket_headers": "no json"}, "'websocket_headers'.*JSON object"),
        ({"transport": "websockets", "websocket_headers": {"a": 1}}, "'websocket_headers'.*JSON object"),
        ({"tls": True, "alpn": [1]}, "'alpn'.*list"),
        ({"ca_cert": "x"}, "'ca_cert' needs tls"),
        ({"insecure": True}, "'insecure' needs tls"),
        ({"websocket_path": "/x"}, '\'websocket_path\' needs "transport": "websockets"'),
        ({"tls": True, "ca_cert": "x", "ca_pem": "y"}, "both 'ca_cert' and 'ca_pem'"),
        ({"tls": True, "private_key": "x"}, "private key but no client certificate"),
    ],
)
def test_what_is_wrong_is_said(extra: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        read_settings(connection(**extra))
    assert "'plant'" in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"ca_cert": "/nowhere/ca.pem"}, "CA certificate cannot be used: .*No such file"),
        ({"ca_pem": "no certificate"}, "CA certificate cannot be used"),
        ({"client_cert": "/nowhere/me.pem"}, "client certificate or its private key cannot be used"),
        ({"client_cert_pem": "no certificate"}, "client certificate or its private key cannot be used"),
    ],
)
def test_certificates_that_cannot_be_read(extra: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make_tls_context(read_settings(connection(tls=True, **extra)))


def test_secrets_stay_out_of_sight() -> None:
    extra = {"tls": True, "client_cert_pem": "hidden", "private_key_pem": "hidden", "private_key_password": "hidden"}
    headers = {"transport": "websockets", "websocket_headers": {"Authorization": "hidden"}}
    settings = read_settings(connection(login="me", password="hidden", **extra, **headers))
    assert "hidden" not in repr(settings) + str(settings) + settings.where


@pytest.mark.parametrize("joint", [" ", "\\n"])
def test_lines_of_a_certificate_are_restored(joint: str) -> None:
    """Forms and environment variables may have joined them."""
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\nAAAA\n-----END CERTIFICATE-----\n"
    read = read_settings(connection(tls=True, ca_pem=pem.replace("\n", joint))).tls_options["ca_pem"]
    assert read.splitlines()[0] == "-----BEGIN CERTIFICATE-----"
    assert read.splitlines()[-1] == "-----END CERTIFICATE-----"
    assert "".join(read.split()) == "".join(pem.split())
    assert read_settings(connection(tls=True, ca_pem=pem)).tls_options["ca_pem"] == pem


def test_client_identifiers() -> None:
    settings = read_settings(connection())
    first = settings.session_id("dag/run/task")
    assert first == read_settings(connection(port=7)).session_id("dag/run/task")
    # What MQTT 3.1.1 obliges every broker to take.
    assert re.fullmatch("[0-9a-zA-Z]{23}", first)
    assert re.fullmatch("[0-9a-zA-Z]{23}", settings.passing_id())
    assert settings.passing_id() != settings.passing_id()
    other = BrokerConnection("other", "mqtt", host="broker.example")
    ids = {first, settings.session_id("dag/run/task2"), read_settings(other).session_id("dag/run/task")}
    assert len(ids) == 3
    assert read_settings(connection(client_id_prefix="plant-7/")).session_id("g").startswith("plant-7/")
    # It must stay what it is: sessions at brokers outlive releases of this package.
    assert first == "aetpwjhwvzm6jfd5qoaklm3"
