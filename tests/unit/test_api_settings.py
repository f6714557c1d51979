"""Where Airflow's API is and as whom to speak to it: from a connection, else from Airflow's own configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from event_triggers.api_settings import DEFAULT_CONN_ID, ApiSettings, find_settings
from event_triggers.connections import airflow_connection
from event_triggers.errors import ConfigurationError, ConnectionMissingError
from event_triggers.runtime import Runtime, _configured_url, current_runtime, use_runtime
from event_triggers.sources.base import BrokerConnection


async def settings_of(fallback: str | None = "http://fallback:8080", **fields: Any) -> ApiSettings:
    async def look_up(conn_id: str) -> BrokerConnection:
        return BrokerConnection(conn_id, **fields)

    return await find_settings(look_up, fallback_url=fallback)


async def missing(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "airflow"}, "http://airflow"),
        ({"host": "airflow", "port": 8080}, "http://airflow:8080"),
        ({"host": "airflow", "schema": "https"}, "https://airflow"),
        ({"host": "https://airflow.example.com/"}, "https://airflow.example.com"),
        ({"host": "http://airflow", "schema": "https"}, "http://airflow"),
        ({"host": "https://airflow/team/", "port": 8443}, "https://airflow:8443/team"),
        ({"host": "airflow", "extra": {"base_path": "/team/airflow/"}}, "http://airflow/team/airflow"),
        ({"host": "::1", "port": 8080}, "http://[::1]:8080"),
        ({"host": "[::1]"}, "http://[::1]"),
        ({"host": "airflow:9090"}, "http://airflow:9090"),
        ({}, "http://fallback:8080"),
        ({"extra": {"base_path": "/team"}}, "http://fallback:8080/team"),
    ],
)
async def test_the_address(fields: dict[str, Any], url: str) -> None:
    assert (await settings_of(**fields)).base_url == url


async def test_who_we_are() -> None:
    settings = await settings_of(host="h", login="marker", password="pw", extra={"token": " t\n", "verify": "/ca.pem"})
    assert (settings.login, settings.password, settings.token) == ("marker", "pw", "t")
    assert settings.verify == "/ca.pem"
    assert settings.origin == f"the connection {DEFAULT_CONN_ID!r}"


async def test_turning_verification_off_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert (await settings_of(host="h", extra={"verify": False})).verify is False
    assert "'airflow_api_default': verify is false, so anybody on the way can pose as" in caplog.text


@pytest.mark.parametrize("verify", [None, 0, 1, "", [], {"ca": "x"}])
async def test_what_does_not_say_how_to_verify_does_not_switch_it_off(verify: object) -> None:
    with pytest.raises(ConfigurationError, match=r"verify in the extra .* must be true, false, or the path"):
        await settings_of(host="h", extra={"verify": verify})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"host": "ftp://airflow"}, "must be the name of Airflow's API server, with http:// or https://"),
        ({"host": "marker:pw@airflow"}, "and without a user"),
        ({"host": "http://"}, "must be the name of Airflow's API server"),
        ({"host": "h", "extra": {"tokn": "x"}}, r"unknown extra keys \['tokn'\]; known are"),
        ({"host": "h", "extra": {"token": "a\nb"}}, "the token in the extra of the connection"),
        ({"host": "h", "extra": {"token": "ü"}}, "the token in the extra of the connection"),
        ({"host": "h", "extra": {"token": 7}}, "the token in the extra of the connection"),
        ({"fallback": None}, "names no host"),
    ],
)
async def test_what_a_connection_cannot_say(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        await settings_of(**fields)
    assert "pw" not in str(caught.value)


async def test_without_a_connection_airflows_own_address() -> None:
    settings = await find_settings(missing, fallback_url="http://own:8080/")
    assert settings == ApiSettings("http://own:8080", origin="Airflow's configuration")


async def test_a_connection_that_was_asked_for_must_exist() -> None:
    with pytest.raises(ConnectionMissingError, match="'mine' is not defined"):
        await find_settings(missing, conn_id="mine", fallback_url="http://own:8080")
    with pytest.raises(ConnectionMissingError):
        await find_settings(missing, fallback_url=None)


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({"CORE__EXECUTION_API_SERVER_URL": "http://api:8080/execution/"}, "http://api:8080"),
        ({"CORE__EXECUTION_API_SERVER_URL": "https://h/team/execution/"}, "https://h/team"),
        ({"API__BASE_URL": "https://airflow.example.com/"}, "https://airflow.example.com"),
        ({"API__PORT": "9999"}, "http://localhost:9999"),
        (
            {"API__BASE_URL": "https://only-for-browsers", "CORE__EXECUTION_API_SERVER_URL": "http://api/execution/"},
            "http://api",
        ),
    ],
)
def test_the_address_in_airflows_configuration(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], url: str) -> None:
    for name in ("CORE__EXECUTION_API_SERVER_URL", "API__BASE_URL"):
        monkeypatch.setenv(f"AIRFLOW__{name}", "")
    for name, value in env.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    assert _configured_url() == url


async def test_one_runtime_per_event_loop() -> None:
    runtime = current_runtime()
    assert current_runtime() is runtime
    other = Runtime(runtime.hub, runtime.ledger, runtime.clock, payload_limit=1)
    use_runtime(other)
    assert current_runtime() is other


# ------------------------------------------------------------------ connections, as Airflow has them


def connection_json(**fields: Any) -> str:
    return json.dumps({"conn_type": "mqtt", **fields})


async def test_an_airflow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_MINE",
        connection_json(host="h", port=1883, login="u", password="pw", schema="s", extra={"a": {"b": 1}}),
    )
    connection = await airflow_connection("mine")
    assert connection == BrokerConnection("mine", "mqtt", "h", 1883, "u", "pw", "s", {"a": {"b": 1}})
    assert "pw" not in repr(connection)


async def test_what_is_empty_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection_json(host="", login="", password=""))
    connection = await airflow_connection("mine")
    assert (connection.host, connection.login, connection.password, connection.extra) == (None, None, None, {})


@pytest.mark.parametrize("extra", ["no json", "[1, 2]", '"text"'])
async def test_an_extra_that_is_no_object(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection_json(extra=extra))
    with pytest.raises(ConfigurationError, match="the extra of the connection 'mine' is not a JSON object"):
        await airflow_connection("mine")


async def test_a_connection_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MINE", raising=False)
    with pytest.raises(ConnectionMissingError, match="the Airflow connection 'mine' is not defined"):
        await airflow_connection("mine")
