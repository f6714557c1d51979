"""Conditions, times and what must agree, in a real Airflow: what the graph shows, and what runs behind a group.

All groups are in two runs, which begin at once; each test looks at one of them.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient, wait_for
from tests.airflow.brokers import Brokers


class Runs(NamedTuple):
    """The two runs, and where the notifier writes."""

    complete: str
    over: str
    file: Path


@pytest.fixture(scope="module")
def runs(airflow: Airflow, client: AirflowClient, brokers: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two runs of many groups each, with everything sent that they are to have."""
    for dag_id in ("conditions", "conditions_over"):
        client.wait_parsed(dag_id)
    file = tmp_path_factory.mktemp("notifier") / "told"
    brokers.to_kafka({"fresh": str(file)})  # before the run
    run_id = client.trigger("conditions", conf={"file": str(file), "fresh": str(file)})
    over = client.trigger("conditions_over")

    def send(group: str, what: str, **more: Any) -> None:
        brokers.to_kafka({"run": run_id, "group": group, "what": what, **more})

    for group, what in [("any_of", "b"), ("two_of", "a"), ("two_of", "c"), ("either", "c"), ("optional", "a")]:
        send(group, what)
    for what in "bab":
        send("sequence", what, number=what)
    for what, order in [("a", 1), ("b", 2), ("a", 3), ("a", 2)]:
        send("agree", what, order=order)
    for what in "ab":
        wait_for(partial(brokers.subscriptions, f"airflow-tests/agree/{what}"), what=f"{what} is subscribed to")
    for what, order in [("a", 1), ("b", 2), ("a", 3), ("a", 2)]:
        brokers.to_mqtt(f"airflow-tests/agree/{what}", {"run": run_id, "order": order})
    client.wait_states("conditions", run_id, {"marked.wait": "deferred"})
    client.mark("conditions", run_id, "marked.a", "failed")
    client.mark("conditions", run_id, "marked.b", "success")
    wait_for(file.exists, what="the notifier was called")
    client.wait_states("conditions", run_id, {"after_tolerant": "upstream_failed"})
    send("tolerant", "b")
    send("warned", "a")
    client.wait_run("conditions_over", over, "failed")
    client.wait_run("conditions", run_id, "success")
    return Runs(run_id, over, file)


def states(client: AirflowClient, runs: Runs, group: str, dag_id: str = "conditions") -> dict[str, str | None]:
    """The states of a group's tasks and of the one behind it, without the group's name."""
    run_id = runs.complete if dag_id == "conditions" else runs.over
    found = client.states(dag_id, run_id)
    mine = {task.partition(".")[2]: state for task, state in found.items() if task.startswith(f"{group}.")}
    return {**mine, "after": found[f"after_{group}"]}


DONE = {"wait": "success", "join": "success", "after": "success"}


@pytest.mark.parametrize(
    ("group", "markers"),
    [
        ("any_of", {"a": "skipped", "b": "success", "c": "skipped"}),
        ("two_of", {"a": "success", "b": "skipped", "c": "success"}),
        ("either", {"a": "skipped", "b": "skipped", "c": "success"}),
        ("optional", {"a": "success", "b": "skipped"}),
        ("marked", {"a": "failed", "b": "success", "c": "skipped"}),
    ],
)
def test_what_has_not_come_is_skipped_and_the_task_behind_runs(
    client: AirflowClient, runs: Runs, group: str, markers: dict[str, str]
) -> None:
    assert states(client, runs, group) == {**markers, **DONE}
    for name, state in markers.items():
        if state == "skipped":
            note = client.note("conditions", runs.complete, f"{group}.{name}")
            assert note == "the group was complete without it"


def test_an_event_that_is_late_turns_red_and_the_group_goes_on(
    airflow: Airflow, client: AirflowClient, runs: Runs
) -> None:
    """What Airflow has failed meanwhile behind the late marker comes to life again."""
    assert states(client, runs, "tolerant") == {"a": "failed", "b": "success", **DONE}
    for task_id in ("tolerant.join", "after_tolerant"):
        passed = [change.state for change in airflow.history.changes("conditions", runs.complete, task_id)]
        assert "upstream_failed" in passed
        assert passed[-1] == "success"
    assert "has not come by" in str(client.note("conditions", runs.complete, "tolerant.a"))


def test_the_notifier_is_told_once_what_is_missing(airflow: Airflow, client: AirflowClient, runs: Runs) -> None:
    assert states(client, runs, "warned") == {"a": "success", "wait": "success", "after": "success"}
    told = [json.loads(line) for line in runs.file.read_text().splitlines()]
    assert [(one["missing"], one["received"]) for one in told] == [(["a"], {})]


def test_a_sequence_takes_what_came_in_its_order(client: AirflowClient, runs: Runs) -> None:
    facts = client.xcom("conditions", runs.complete, "sequence.wait")
    assert facts["a"]["timestamp"] <= facts["b"]["timestamp"]
    assert states(client, runs, "sequence") == {"a": "success", "b": "success", "wait": "success", "after": "success"}


@pytest.mark.parametrize("group", ["agree", "agree_mqtt"])
def test_only_what_agrees_goes_together(client: AirflowClient, runs: Runs, group: str) -> None:
    assert set(states(client, runs, group).values()) == {"success"}
    orders = {name: client.xcom("conditions", runs.complete, f"{group}.{name}")["order"] for name in "ab"}
    assert orders == {"a": 2, "b": 2}


def test_a_message_from_before_the_run_counts_while_it_is_valid(client: AirflowClient, runs: Runs) -> None:
    assert set(states(client, runs, "fresh").values()) == {"success"}


@pytest.mark.parametrize("group", ["timeout", "cron", "until"])
def test_the_time_is_up(client: AirflowClient, runs: Runs, group: str) -> None:
    found = states(client, runs, group, "conditions_over")
    assert found.pop("wait") == "failed"
    assert set(found.values()) == {"upstream_failed"}
    log = client.log("conditions_over", runs.over, f"{group}.wait")
    assert "these events have not come: a, b, c" in log


def test_a_soft_failure_skips_everything(client: AirflowClient, runs: Runs) -> None:
    assert set(states(client, runs, "soft", "conditions_over").values()) == {"skipped"}


def test_an_event_that_the_group_cannot_do_without_fails_it_at_its_own_time(client: AirflowClient, runs: Runs) -> None:
    found = states(client, runs, "essential", "conditions_over")
    assert (found.pop("wait"), found.pop("c")) == ("failed", "failed")
    assert set(found.values()) == {"upstream_failed"}
    log = client.log("conditions_over", runs.over, "essential.wait")
    assert "c has not come in its own time, and without that '(a or b) and c' cannot hold" in log
