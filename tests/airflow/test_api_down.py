"""Airflow's API is away while messages come from real brokers to a group of a real triggerer: nothing is lost.

The proxy takes it away from ``event_triggers`` alone; killing the API server takes it away from everybody. How long it
is away is ``EVENT_TRIGGERS_OUTAGE``, in seconds.
"""

from __future__ import annotations

import os

from servers.airflow import API_SERVER, Airflow
from servers.airflow_client import AirflowClient, wait_for
from servers.airflow_watch import TriggererWatch
from servers.http_proxy import HttpProxy
from tests.airflow.brokers import Brokers
from tests.airflow.test_groups import start

DAG_ID = "fault_all"
OUTAGE = float(os.environ.get("EVENT_TRIGGERS_OUTAGE", "5"))


def start_connected(client: AirflowClient) -> str:
    """Begin a run; return its id when its sensor has every stream open."""
    run_id = start(client, DAG_ID)
    wait_for(lambda: "every source is connected" in client.log(DAG_ID, run_id, "inputs.wait"), what="the wait began")
    return run_id


def publish_most(brokers: Brokers, run_id: str) -> None:
    """Everything that the group waits for but ``last``."""
    for number in range(2):
        brokers.to_kafka({"run": run_id, "what": "orders", "number": number})
        brokers.to_mqtt("airflow-tests/plant/faults", {"run": run_id, "number": number})
    brokers.to_sqs("faults", {"run": run_id, "what": "stock"})


def publish_last(brokers: Brokers, run_id: str) -> None:
    brokers.to_sqs("faults", {"run": run_id, "what": "last"})


def check_end(client: AirflowClient, brokers: Brokers, run_id: str) -> None:
    """Everything that was published is there, once, and the brokers keep nothing of it."""
    client.wait_run(DAG_ID, run_id, "success")
    assert set(client.states(DAG_ID, run_id).values()) == {"success"}
    orders, shifts = (
        [one["number"] for one in client.xcom(DAG_ID, run_id, f"inputs.{name}")] for name in ("orders", "shifts")
    )
    assert sorted(orders) == [0, 1], "in any order: the topic has three partitions"
    assert shifts == [0, 1]
    assert client.xcom(DAG_ID, run_id, "inputs.stock") == {"run": run_id, "what": "stock"}
    wait_for(lambda: brokers.kept("faults") == 0, what="what was recorded is deleted")


def check_watch(watch: TriggererWatch) -> None:
    """The triggerer was heard of all the time, and its memory is bounded."""
    assert watch.samples > 5
    assert watch.complaints() == []


def test_messages_that_come_while_the_api_is_away(
    airflow: Airflow, client: AirflowClient, brokers: Brokers, api_proxy: HttpProxy
) -> None:
    run_id = start_connected(client)
    watch = TriggererWatch(airflow)
    api_proxy.reset(times=6)
    api_proxy.answer(503)
    publish_most(brokers, run_id)
    wait_for(lambda: api_proxy.faults("answer") > 2, what="requests that fail")
    watch.sample_for(OUTAGE)
    states = client.states(DAG_ID, run_id)
    assert states["inputs.wait"] == "deferred"
    assert {states[f"inputs.{name}"] for name in ("orders", "stock", "shifts")} == {None}
    assert brokers.kept("faults") > 0, "nothing is acknowledged meanwhile"
    api_proxy.restore()
    client.wait_states(DAG_ID, run_id, dict.fromkeys(("inputs.orders", "inputs.stock", "inputs.shifts"), "success"))
    watch.sample()
    publish_last(brokers, run_id)
    check_end(client, brokers, run_id)
    check_watch(watch)
    log = client.log(DAG_ID, run_id, "inputs.wait")
    assert "what arrives waits for it" in log
    assert "is back" in log


def test_the_api_server_is_killed_and_started_again(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start_connected(client)
    watch = TriggererWatch(airflow)
    airflow.kill_component(API_SERVER)
    try:
        publish_most(brokers, run_id)
        watch.sample_for(1)
    finally:
        airflow.start_component(API_SERVER)
    watch.sample()
    publish_last(brokers, run_id)
    check_end(client, brokers, run_id)
    watch.sample()
    check_watch(watch)
