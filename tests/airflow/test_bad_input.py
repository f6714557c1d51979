"""Payloads that Airflow does not take as they are, and payloads that would like to be more than data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient
from servers.postgres import Postgres
from tests.airflow.brokers import Brokers
from tests.airflow.test_groups import start

_REFUSE = """
CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.value::text LIKE '%poison for the database%' AND NEW.value::text NOT LIKE '%payload_as_text%' THEN
    RAISE EXCEPTION 'not this one';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse_poison BEFORE INSERT OR UPDATE ON xcom FOR EACH ROW EXECUTE FUNCTION refuse_poison();
"""


@pytest.fixture
def refusing(airflow: Airflow, postgres: Postgres) -> Iterator[None]:
    """While it lives, Airflow's database refuses one value, so that Airflow's API answers 500 for it."""
    postgres.run_sql(_REFUSE, database="airflow")
    yield
    postgres.run_sql("DROP TRIGGER refuse_poison ON xcom; DROP FUNCTION refuse_poison;", database="airflow")


def deep(levels: int) -> Any:
    value: Any = "deepest"
    for _ in range(levels):
        value = [value]
    return value


def as_text(payload: Any) -> Any:
    """What a refused payload holds."""
    return json.loads(payload["payload_as_text"].removeprefix("json:"))


@pytest.mark.usefixtures("refusing")
def test_payloads_are_data_and_no_payload_holds_up_its_group(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "bad_input")
    version = tuple(map(int, client.call("GET", "/version")["version"].split(".")[:2]))
    sent: dict[str, dict[str, Any]] = {
        "template": {"text": "{{ conn.tests_aws.password }} {% for x in y %}", "{{ ds }}": "{{ macros }}"},
        "reserved": {"__classname__": "os.system", "__data__": ["true"], "__version__": 1},
        "nul": {"text": "a\0b"},
        "deep": {"value": deep(200), "text": "[" * 10_000},
        "nested": {"value": deep(95), "numbers": [2**64 - 1, -(2**63), -1e-300, 1e18]},
        "large_number": {"value": int("9" * 300), "real": 1e300},
        # The old versions write XComs over their own supervisor, which tells an outage from nothing.
        "poison": {"text": "poison for the database" if version >= (3, 2) else "well"},
        "forged": {"text": "x\n[2030-01-01] INFO - forged \x1b[31m \u202e"},
    }
    for what, more in sent.items():
        brokers.to_kafka({"run": run_id, "what": what, **more})
    client.wait_run("bad_input", run_id, "success", timeout=180)

    collected = client.xcom("bad_input", run_id, "collect")
    whole = {what: {"run": run_id, "what": what, **more} for what, more in sent.items()}
    plain = ("template", "nested", "forged")
    assert {what: collected[what] for what in plain} == {what: whole[what] for what in plain}
    as_texts = ["reserved", "nul", "deep", "large_number", *(["poison"] if version >= (3, 2) else [])]
    assert {what: as_text(collected[what]) for what in as_texts} == {what: whole[what] for what in as_texts}

    log = client.log("bad_input", run_id, "inputs.wait")
    assert "event reserved: the payload of kafka airflow-tests" in log
    if version >= (3, 2):
        (told,) = [line for line in log.splitlines() if "event poison: the payload of kafka airflow-tests" in line]
        assert "is stored as text, not as it came, because" in told
    note = client.note("bad_input", run_id, "inputs.forged") or ""
    assert len(note.splitlines()) == 2
    assert all(line.isprintable() for line in note.splitlines())
