"""Hooks and asset events in a whole Airflow: waited for, read from the past, and starting a DAG."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import httpx

from servers.airflow import TRIGGERER, Airflow
from servers.airflow_client import AirflowClient, wait_for
from tests.airflow.test_groups import start


def send(airflow: Airflow, body: dict[str, Any]) -> None:
    address = f"{airflow.url}/event-triggers/hooks/tests"
    content = json.dumps(body).encode()
    answer = httpx.post(address, content=content, headers={"Authorization": "Bearer secret"}, trust_env=False)
    assert answer.status_code == 202, answer.text


def test_a_group_over_a_restart_its_past_and_a_dag_that_a_hook_starts(airflow: Airflow, client: AirflowClient) -> None:
    client.set_connection("webhook_tests", "webhook", password="secret", extra={"scheme": "bearer"})
    since = datetime.now(timezone.utc).isoformat()
    for dag_id in ("hooks_live", "hooks_past", "hooks_orders", "hooks_started"):
        client.wait_parsed(dag_id)
    run_id = start(client, "hooks_live")
    signoff = {"run": run_id, "approved": True}
    send(airflow, {"run": run_id, "approved": False})
    send(airflow, signoff)
    client.wait_states("hooks_live", run_id, {"inputs.signoff": "success", "inputs.orders": None})

    airflow.stop_component(TRIGGERER)
    client.trigger("hooks_orders", conf={"run": run_id})
    airflow.start_component(TRIGGERER)
    client.wait_run("hooks_live", run_id, "success")
    payloads = {"signoff": signoff, "orders": {"run": run_id, "rows": 3}}
    assert client.xcom("hooks_live", run_id, "collect") == payloads
    assert (client.note("hooks_live", run_id, "inputs.signoff") or "").startswith("webhook")

    again = client.trigger("hooks_past", conf={"run": run_id, "since": since})
    client.wait_run("hooks_past", again, "success")
    assert client.xcom("hooks_past", again, "collect") == payloads

    def started() -> list[tuple[str, Any]]:
        runs = client.call("GET", "/dags/hooks_started/dagRuns")["dag_runs"]
        return [(run["state"], run["conf"]) for run in runs]

    def bodies() -> set[str]:
        runs = client.call("GET", "/dags/hooks_started/dagRuns", params={"state": "success"})["dag_runs"]
        seen = [client.xcom("hooks_started", run["dag_run_id"], "bodies") for run in runs]
        return {body for one in seen for body in one}

    # What came while Airflow was about to start a run belongs to the next one, which the next request starts.
    send(airflow, {"run": run_id, "approved": None})
    wait_for(lambda: json.dumps(signoff) in bodies(), what=lambda: f"the DAG that the hook starts: {started()}")
