"""What people do to runs and DAGs while a group waits, as ``docs/operating.md`` has it; more is in test_stories.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient, wait_for
from tests.airflow.brokers import Brokers
from tests.airflow.test_groups import start, starts_to_defer
from tests.airflow.test_stories import arrive

CHANGING = "users_changing"
FILE = """
from airflow.sdk import DAG, task
from event_triggers import Event, EventGroup, MqttTopic, SqsQueue

def event(name):
    if name == "shift":
        return Event(MqttTopic("airflow-tests/+/changing", conn_id="tests_mqtt"), match={"run": ["{{ run_id }}"]})
    source = SqsQueue("stories", conn_id="tests_aws", visibility_timeout=10)
    return Event(source, match={"run": ["{{ run_id }}"], "what": [name]})

with DAG("users_changing", schedule=None):
    group = EventGroup("inputs", events={name: event(name) for name in EVENTS}, timeout=300)

    @task
    def after(): ...

    group >> after()
"""


def waits(client: AirflowClient, dag_id: str, run_id: str, *, tries: int = 1) -> None:
    """Return when this try of the sensor has every stream open."""
    wait_for(
        lambda: (
            client.task(dag_id, run_id, "inputs.wait")["try_number"] == tries
            and "every source is connected" in client.log(dag_id, run_id, "inputs.wait")
        ),
        what="the sensor waits",
    )


class Sessions:
    """The durable MQTT sessions that begin after this was made."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._begin = len(self._log())

    def _log(self) -> str:
        return self._brokers.mosquitto.log.read_text(errors="replace")

    def begun(self) -> set[str]:
        """The clients that asked to keep their session."""
        return set(re.findall(r"as (\S+) \(p5, c0", self._log()[self._begin :]))

    def wait_until_removed(self, client_ids: set[str]) -> None:
        """Return when each session has been begun anew to remove it, and the broker has it no more."""

        def removed() -> set[str]:
            return set(re.findall(r"as (\S+) \(p5, c1", self._log()[self._begin :]))

        wait_for(lambda: removed() >= client_ids, what=lambda: f"{client_ids} are removed, not only {removed()}")
        for client_id in client_ids:
            wait_for(partial(self._gone, client_id), what="the broker keeps no session")

    def _gone(self, client_id: str) -> bool:
        answers: list[bool] = []
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.on_connect = lambda client, data, flags, reason, properties: answers.append(flags.session_present)
        client.connect("127.0.0.1", self._brokers.mosquitto.port, clean_start=False)
        while not answers:
            assert client.loop(5) == paho.MQTT_ERR_SUCCESS
        client.disconnect()
        return not answers[0]


@pytest.fixture
def changing(airflow: Airflow) -> Iterator[Path]:
    """The file of a DAG that the test writes again and again."""
    path = airflow.scratch / "changing.py"
    yield path
    path.unlink(missing_ok=True)


def write(client: AirflowClient, path: Path, events: Sequence[str]) -> None:
    """Let the DAG have these events, and return when Airflow knows."""
    path.write_text(f"EVENTS = {list(events)!r}\n{FILE}")
    wanted = {f"inputs.{name}" for name in events} | {"inputs.wait", "after"}

    def known() -> bool:
        answer = client.request("GET", f"/dags/{CHANGING}/tasks")
        return answer.is_success and {one["task_id"] for one in answer.json()["tasks"]} == wanted

    wait_for(known, what=lambda: f"{wanted}; {client.import_errors()}")


def test_a_paused_dag_takes_its_messages_and_goes_on_later(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    client.call("PATCH", "/dags/story_users", json={"is_paused": True})
    try:
        for what in ("one", "two", "three"):
            arrive(brokers, client, "story_users", run_id, what)
        states = client.wait_states("story_users", run_id, {"inputs.wait": "success"})
        assert states["after"] is None
    finally:
        client.call("PATCH", "/dags/story_users", json={"is_paused": False})
    client.wait_run("story_users", run_id, "success")
    assert client.states("story_users", run_id)["after"] == "success"


def test_a_marker_marked_skipped_counts_and_skips_what_is_behind_it(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    client.mark("story_users", run_id, "inputs.two", "skipped")
    for what in ("one", "three"):
        arrive(brokers, client, "story_users", run_id, what)
    client.wait_run("story_users", run_id, "success")
    assert client.xcom("story_users", run_id, "inputs.wait")["two"] == {"marked_by_hand": "skipped", "messages": []}
    assert client.states("story_users", run_id)["after"] == "skipped"


def test_ending_a_run_ends_its_wait(client: AirflowClient, brokers: Brokers) -> None:
    sessions = Sessions(brokers)
    run_ids = {state: start(client, "fault_all") for state in ("failed", "success")}
    for state, run_id in run_ids.items():
        waits(client, "fault_all", run_id)
        brokers.to_sqs("faults", {"run": run_id, "what": "stock"})
        client.wait_states("fault_all", run_id, {"inputs.stock": "success"})
        if starts_to_defer(client) == 0:  # before Airflow 3.3 a run can be deleted while it is running
            with pytest.raises(httpx.HTTPStatusError, match="409"):
                client.delete_run("fault_all", run_id)
        client.mark_run("fault_all", run_id, state)
        states = client.states("fault_all", run_id)
        assert (states["inputs.wait"], states["inputs.stock"]) == (state, "success")
        assert states["inputs.orders"] == states["inputs.shifts"] == states["after"] == "skipped"
    begun = sessions.begun()
    assert len(begun) == 2
    sessions.wait_until_removed(begun)
    for run_id in run_ids.values():
        client.delete_run("fault_all", run_id)


def test_the_events_change_while_a_run_waits(client: AirflowClient, brokers: Brokers, changing: Path) -> None:
    write(client, changing, ["one", "two"])
    run_id = start(client, CHANGING)
    waits(client, CHANGING, run_id)
    write(client, changing, ["one", "three"])
    client.wait_states(CHANGING, run_id, {"inputs.two": "removed", "inputs.three": None})

    # The wait goes on as it began; what has been removed is not waited for, what is new is not waited for yet.
    arrive(brokers, client, CHANGING, run_id, "one")
    client.wait_run(CHANGING, run_id, "success")
    facts = client.xcom(CHANGING, run_id, "inputs.wait")
    assert set(facts) == {"one", "two"}
    assert facts["two"] == {"marked_by_hand": "removed", "messages": []}
    assert client.states(CHANGING, run_id)["inputs.three"] == "success", "as a task without work behind a green sensor"
    assert client.xcom_keys(CHANGING, run_id, "inputs.three") == []

    # A new try waits for what the DAG says now.
    client.clear(CHANGING, run_id, ["inputs.wait", "inputs.three", "after"])
    waits(client, CHANGING, run_id, tries=2)
    assert "waiting for three until" in client.log(CHANGING, run_id, "inputs.wait")
    arrive(brokers, client, CHANGING, run_id, "three")
    client.wait_run(CHANGING, run_id, "success")
    assert client.xcom(CHANGING, run_id, "inputs.three")["what"] == "three"
    assert set(client.xcom(CHANGING, run_id, "inputs.wait")) == {"one", "three"}


def test_deleting_a_dag_removes_what_its_groups_have_at_brokers(
    client: AirflowClient, brokers: Brokers, changing: Path
) -> None:
    write(client, changing, ["shift", "one"])
    sessions = Sessions(brokers)
    run_id = start(client, CHANGING)
    waits(client, CHANGING, run_id)
    (client_id,) = sessions.begun()
    changing.unlink()
    client.call("DELETE", f"/dags/{CHANGING}")
    sessions.wait_until_removed({client_id})
    assert client.request("GET", f"/dags/{CHANGING}/dagRuns/{run_id}").status_code == httpx.codes.NOT_FOUND
