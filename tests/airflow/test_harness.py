"""The harness itself: what the other tests of this folder believe about it."""

from __future__ import annotations

import httpx
import pytest

from servers.airflow import SCHEDULER, TRIGGERER, Airflow
from servers.airflow_client import AirflowClient, TimedOut, wait_for

DAG_ID = "two_tasks"


@pytest.fixture(scope="module")
def run_id(client: AirflowClient) -> str:
    """A run that has ended well."""
    client.wait_parsed(DAG_ID)
    run_id = client.trigger(DAG_ID, conf={"colour": "red"})
    client.wait_run(DAG_ID, run_id, "success")
    return run_id


def test_a_run_leaves_states_xcoms_and_tries(client: AirflowClient, run_id: str) -> None:
    assert client.states(DAG_ID, run_id) == {"give": "success", "take": "success"}
    assert client.xcom(DAG_ID, run_id, "give") == {"value": 20, "package": "event_triggers"}
    assert client.xcom(DAG_ID, run_id, "take") == 21
    assert "return_value" in client.xcom_keys(DAG_ID, run_id, "give")
    with pytest.raises(LookupError, match="no XCom 'other'"):
        client.xcom(DAG_ID, run_id, "give", "other")
    assert [attempt["try_number"] for attempt in client.tries(DAG_ID, run_id, "give")] == [1]
    assert client.run(DAG_ID, run_id)["conf"] == {"colour": "red"}


def test_a_task_s_log_is_readable(client: AirflowClient, run_id: str) -> None:
    assert "giving a value" in client.log(DAG_ID, run_id, "give")


def test_the_history_has_every_state_and_counts_worker_starts(airflow: Airflow, run_id: str) -> None:
    states = [change.state for change in airflow.history.changes(DAG_ID, run_id, "give")]
    assert states == ["scheduled", "queued", "running", "success"]
    times = [change.at for change in airflow.history.changes(DAG_ID, run_id)]
    assert times == sorted(times)
    assert airflow.history.worker_starts(DAG_ID, run_id) == {"give": 1, "take": 1}


def test_worker_starts_agree_with_airflow_s_own_audit_log(airflow: Airflow, client: AirflowClient, run_id: str) -> None:
    if client.call("GET", "/version")["version"] < "3.2":
        pytest.skip("Airflow before 3.2 does not log the start of a worker")
    query = "SELECT task_id FROM log WHERE dag_id = :dag_id AND run_id = :run_id AND event = 'running' ORDER BY id"
    started = [row[0] for row in airflow.history.rows(query, dag_id=DAG_ID, run_id=run_id)]
    assert started == ["give", "take"]


def test_a_cleared_task_runs_on_a_worker_again(airflow: Airflow, client: AirflowClient) -> None:
    run_id = client.trigger(DAG_ID)
    client.wait_run(DAG_ID, run_id, "success")
    client.clear(DAG_ID, run_id, ["take"])
    client.wait_run(DAG_ID, run_id, "success")
    assert airflow.history.worker_starts(DAG_ID, run_id) == {"give": 1, "take": 2}
    assert client.task(DAG_ID, run_id, "take")["try_number"] == 2


def test_marking_needs_a_user_who_may(airflow: Airflow, client: AirflowClient, run_id: str) -> None:
    airflow.client("marker").mark(DAG_ID, run_id, "take", "failed")
    client.wait_states(DAG_ID, run_id, {"take": "failed"})
    nobody = AirflowClient(airflow.url, "marker", "wrong")
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        nobody.states(DAG_ID, run_id)
    nobody.close()


def test_connections_change_while_airflow_runs(client: AirflowClient) -> None:
    client.set_connection("harness", "http", host="one.example", extra={"a": 1})
    client.set_connection("harness", "http", host="two.example", port=8080)
    connection = client.call("GET", "/connections/harness")
    assert (connection["host"], connection["port"]) == ("two.example", 8080)


def test_a_broken_dag_file_is_named_by_the_wait(airflow: Airflow, client: AirflowClient) -> None:
    broken = airflow.scratch / "broken.py"
    broken.write_text("from airflow.sdk import DAG\nraise RuntimeError('this file is broken')\n")
    wait_for(lambda: "broken.py" in "".join(client.import_errors()), what="an import error of broken.py")
    with pytest.raises(TimedOut, match="this file is broken"):
        client.wait_parsed("broken", timeout=0)
    broken.unlink()


@pytest.mark.parametrize("name", [TRIGGERER, SCHEDULER])
def test_a_component_is_killed_and_started_alone(airflow: Airflow, client: AirflowClient, name: str) -> None:
    before = dict(airflow.jobs)
    airflow.kill_component(name)
    assert not airflow.components[name].running
    airflow.start_component(name)
    changed = {other for other in before if airflow.jobs[other] != before[other]}
    assert changed == {name}
    client.wait_run(DAG_ID, client.trigger(DAG_ID), "success")
