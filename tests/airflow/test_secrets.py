"""Secrets that are planted in connections are nowhere in what Airflow keeps: no log, note, XCom or stored trigger."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from cryptography.fernet import Fernet

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient, wait_for
from servers.ports import free_port
from tests.airflow.brokers import Brokers
from tests.airflow.test_groups import start

PLANTED = f"planted-{secrets.token_hex(8)}"
"""Part of every secret of this test."""
FAILED = "the connection failed"
_NOT_OURS = ("connection",)
"""Where a secret belongs."""


def connect(client: AirflowClient, brokers: Brokers) -> None:
    """Connections that hold a secret each; the last one leads nowhere."""
    login = {"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": f"{PLANTED}-kafka"}
    kafka = {"bootstrap.servers": brokers.kafka.bootstrap, **login}
    nowhere = {**login, "bootstrap.servers": f"127.0.0.1:{free_port()}", "security.protocol": "SASL_PLAINTEXT"}
    aws = {
        "region_name": "us-east-1",
        "endpoint_url": brokers.sqs.endpoint_url,
        "aws_session_token": f"{PLANTED}-session",
    }
    mqtt = {"host": "127.0.0.1", "port": brokers.mosquitto.port, "login": "me", "password": f"{PLANTED}-mqtt"}
    client.set_connection("secret_kafka", "kafka", password=f"{PLANTED}-field", extra=kafka)
    client.set_connection("secret_aws", "aws", login="key", password=f"{PLANTED}-aws", extra=aws)
    client.set_connection("secret_mqtt", "mqtt", **mqtt)
    client.set_connection("secret_nowhere", "kafka", extra=nowhere)


def test_no_secret_of_a_connection_is_kept_elsewhere(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    connect(client, brokers)
    run_id = start(client, "secrets")
    wait_for(lambda: brokers.subscriptions("airflow-tests/+/secrets"), what="the group's topic is subscribed")
    brokers.to_kafka({"run": run_id, "what": "secrets"})
    brokers.to_sqs("secrets", {"run": run_id})
    brokers.to_mqtt("airflow-tests/plant/secrets", {"run": run_id})
    arrived = dict.fromkeys(("inputs.orders", "inputs.stock", "inputs.shift"), "success")
    client.wait_states("secrets", run_id, arrived)
    wait_for(
        lambda: "the connection failed" in client.log("secrets", run_id, "inputs.wait"), what="what failed is said"
    )

    arguments = list(stored_triggers(airflow))
    assert any("secret_mqtt" in text for text in arguments), "the wait is stored, and names its connections"
    client.mark("secrets", run_id, "inputs.wait", "failed")
    client.wait_run("secrets", run_id, "failed")

    marker = airflow.passwords["marker"]
    planted = [PLANTED, marker, PLANTED.encode().hex(), marker.encode().hex()]
    everything = [*kept(airflow), *(("a stored trigger", text) for text in arguments)]
    found = {f"{where}: {around(secret, text)}" for where, text in everything for secret in planted if secret in text}
    assert found == set()
    told = client.log("secrets", run_id, "inputs.wait") + airflow.log("triggerer")
    assert not re.search(r"eyJ[\w-]{10,}\.[\w-]{10,}\.", told), "a token is in the log"


def around(secret: str, text: str) -> str:
    place = text.index(secret)
    return text[max(0, place - 100) : place + len(secret) + 50]


def stored_triggers(airflow: Airflow) -> Iterator[str]:
    """The arguments of all triggers, as Airflow would give them to a triggerer."""
    key = Fernet(airflow.env["AIRFLOW__CORE__FERNET_KEY"])
    for path, encrypted in airflow.history.rows("SELECT classpath, kwargs FROM trigger"):
        yield f"{path} {key.decrypt(encrypted.encode()).decode()}"


def kept(airflow: Airflow) -> Iterator[tuple[str, str]]:
    """Everything in Airflow's database and logs, piece by piece, each with its place."""
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    names = [name for (name,) in airflow.history.rows(tables) if name not in _NOT_OURS]
    assert {"xcom", "task_instance_note", "trigger", "serialized_dag", "log"} <= set(names)
    for name in names:
        # Airflow's own audit log of those who make connections is Airflow's business.
        but = " WHERE event NOT LIKE '%connection%'" if name == "log" else ""
        for (row,) in airflow.history.rows(f'SELECT one::text FROM "{name}" AS one{but}'):  # noqa: S608 - its own names
            yield f"table {name}", row
    files = [*airflow.home.glob("*.log"), *(path for path in (airflow.home / "logs").rglob("*") if path.is_file())]
    assert any("task_id=inputs.wait" in str(path) for path in files)
    for path in files:
        yield str(path.relative_to(airflow.home)), path.read_text(errors="replace")
