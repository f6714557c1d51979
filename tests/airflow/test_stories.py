"""What users do to a group, and what becomes of it: time out, retry, clear, mark by hand, resume on events."""

from __future__ import annotations

import re

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient, wait_for
from tests.airflow.brokers import Brokers
from tests.airflow.test_groups import start, starts_to_defer


def send(brokers: Brokers, run_id: str, what: str, **more: object) -> None:
    brokers.to_sqs("stories", {"run": run_id, "what": what, **more})


def arrive(brokers: Brokers, client: AirflowClient, dag_id: str, run_id: str, what: str) -> None:
    send(brokers, run_id, what)
    client.wait_states(dag_id, run_id, {f"inputs.{what}": "success"})


def test_timeout_shows_what_was_missing(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_timeout")
    arrive(brokers, client, "story_timeout", run_id, "two")
    client.wait_run("story_timeout", run_id, "failed")
    assert client.states("story_timeout", run_id) == {
        "inputs.wait": "failed",
        "inputs.one": "upstream_failed",
        "inputs.two": "success",
        "inputs.three": "upstream_failed",
        "after": "upstream_failed",
    }
    log = client.log("story_timeout", run_id, "inputs.wait")
    assert "AirflowSensorTimeout" in log
    assert "have not come: one, three" in log
    starts = airflow.history.worker_starts("story_timeout", run_id)
    assert starts == {"inputs.wait": 1 + starts_to_defer(client)}, "one worker, to fail as sensors fail"

    # Retried, it waits only for those: the sensor and what failed is cleared, as "clear, only failed" does.
    client.clear("story_timeout", run_id, ["inputs.wait", "inputs.one", "inputs.three", "after"])
    client.wait_states("story_timeout", run_id, {"inputs.wait": "deferred", "inputs.two": "success"})
    arrive(brokers, client, "story_timeout", run_id, "three")
    arrive(brokers, client, "story_timeout", run_id, "one")
    client.wait_run("story_timeout", run_id, "success")


def test_soft_fail_skips(client: AirflowClient) -> None:
    run_id = start(client, "story_soft_fail")
    client.wait_run("story_soft_fail", run_id)
    states = client.states("story_soft_fail", run_id)
    assert states["inputs.wait"] == "skipped"
    assert states["inputs.one"] == states["inputs.two"] == states["after"] == "skipped"


def test_a_retry_keeps_what_was_received(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_retries")
    arrive(brokers, client, "story_retries", run_id, "one")  # its handler fails: that is the first try
    wait_for(lambda: client.task("story_retries", run_id, "inputs.wait")["try_number"] == 2, what="the second try")
    for what in ("two", "three"):
        arrive(brokers, client, "story_retries", run_id, what)
    client.wait_run("story_retries", run_id, "success")
    log = client.log("story_retries", run_id, "inputs.wait")
    assert "('one', 'one')" in log, "a new try is given again what the failed one was given"
    assert len([task for task in client.states("story_retries", run_id).values() if task == "success"]) == 5


def test_clearing_the_sensor_alone_waits_for_the_rest(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    arrive(brokers, client, "story_users", run_id, "one")
    client.clear("story_users", run_id, ["inputs.wait"])
    wait_for(lambda: client.task("story_users", run_id, "inputs.wait")["try_number"] == 2, what="the second try")
    assert client.states("story_users", run_id)["inputs.one"] == "success"
    for what in ("two", "three"):
        arrive(brokers, client, "story_users", run_id, what)
    client.wait_run("story_users", run_id, "success")


def test_clearing_everything_begins_anew(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    arrive(brokers, client, "story_users", run_id, "one")
    client.clear("story_users", run_id)
    states = client.wait_states("story_users", run_id, {"inputs.wait": "deferred"})
    assert states["inputs.one"] is None
    for what in ("one", "two", "three"):
        arrive(brokers, client, "story_users", run_id, what)
    client.wait_run("story_users", run_id, "success")


def test_a_marker_marked_by_hand_counts(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    arrive(brokers, client, "story_users", run_id, "one")
    client.mark("story_users", run_id, "inputs.two", "success")
    arrive(brokers, client, "story_users", run_id, "three")
    client.wait_run("story_users", run_id, "success")
    facts = client.xcom("story_users", run_id, "inputs.wait")
    assert facts["two"] == {"marked_by_hand": "success", "messages": []}
    assert facts["one"]["source"] == "sqs"


def test_a_marker_marked_failed_fails_the_group(client: AirflowClient) -> None:
    run_id = start(client, "story_users")
    client.mark("story_users", run_id, "inputs.two", "failed")
    client.wait_run("story_users", run_id, "failed")
    assert client.states("story_users", run_id)["inputs.wait"] == "failed"
    assert "the marker of two was marked failed" in client.log("story_users", run_id, "inputs.wait")


def test_marking_the_sensor_failed_ends_the_wait(client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_users")
    arrive(brokers, client, "story_users", run_id, "one")
    client.mark("story_users", run_id, "inputs.wait", "failed")
    client.wait_run("story_users", run_id, "failed")
    states = client.states("story_users", run_id)
    assert states["inputs.one"] == "success"
    assert states["inputs.two"] == states["inputs.three"] == states["after"] == "upstream_failed"


def test_marking_the_sensor_successful_goes_on_without_the_rest(client: AirflowClient) -> None:
    run_id = start(client, "story_users")
    client.mark("story_users", run_id, "inputs.wait", "success")
    client.wait_run("story_users", run_id, "success")


def test_on_event_hands_every_message_over_once(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_on_event")
    for number in range(3):
        send(brokers, run_id, "any", number=number)
    wait_for(lambda: handed_over(client, run_id), what="the first messages are handed over")
    for number in range(3, 6):
        send(brokers, run_id, "any", number=number)
    send(brokers, run_id, "last", number=99)
    client.wait_run("story_on_event", run_id, "success", timeout=120)
    assert sorted(handed_over(client, run_id)) == [0, 1, 2, 3, 4, 5, 99]
    assert 2 <= airflow.history.worker_starts("story_on_event", run_id)["inputs.wait"] <= 8
    assert client.task("story_on_event", run_id, "inputs.wait")["try_number"] == 1


def handed_over(client: AirflowClient, run_id: str) -> list[int]:
    # A line that is still being written is given as it is; it does not end with the run's id, or begins otherwise.
    line = re.compile(rf"HANDED OVER \S+ (\d+) \S+ {re.escape(run_id)}")
    found = map(line.fullmatch, client.log("story_on_event", run_id, "inputs.wait").splitlines())
    return [int(match[1]) for match in found if match]


def test_a_group_wired_by_hand(client: AirflowClient, brokers: Brokers) -> None:
    client.wait_parsed("story_by_hand")
    run_id = client.trigger("story_by_hand")
    client.wait_states("story_by_hand", run_id, {"wait": "deferred"})
    send(brokers, run_id, "two")
    client.wait_states("story_by_hand", run_id, {"msg_2": "success", "msg_1": None})
    send(brokers, run_id, "one")
    client.wait_run("story_by_hand", run_id, "success")


def test_a_value_of_another_task_in_a_pattern(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "story_xcom_arg")
    brokers.to_sqs("stories", {"run": run_id, "order": "order-4711"})
    client.wait_run("story_xcom_arg", run_id, "success")
    assert airflow.history.worker_starts("story_xcom_arg", run_id)["inputs.wait"] == 1


def test_a_mistake_is_an_import_error_of_one_sentence(airflow: Airflow, client: AirflowClient) -> None:
    broken = airflow.scratch / "mistake.py"
    broken.write_text(
        "from airflow.sdk import DAG\n"
        "from event_triggers import Event, EventGroupSensor, SqsQueue\n"
        "with DAG('mistake', schedule=None):\n"
        "    EventGroupSensor(task_id='wait', events={'msg_1': Event(SqsQueue('q'))})\n"
    )
    error = wait_for(lambda: client.import_errors().get(broken.name), what="an import error of mistake.py")
    assert "event 'msg_1' has no marker" in error
    broken.unlink()
