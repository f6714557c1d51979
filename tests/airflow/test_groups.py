"""From broker to marker: each broker alone, all three together, many groups on one triggerer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from servers.airflow import TRIGGERER, Airflow
from servers.airflow_client import AirflowClient, wait_for
from tests.airflow.brokers import TOPIC, Brokers

Publish = Callable[[str], None]


def start(client: AirflowClient, dag_id: str) -> str:
    """Begin a run and return its id when its sensor waits."""
    client.wait_parsed(dag_id)
    run_id = client.trigger(dag_id)
    client.wait_states(dag_id, run_id, {"inputs.wait": "deferred"})
    return run_id


def starts_to_defer(client: AirflowClient) -> int:
    """How many workers a sensor needs to begin its wait: none since Airflow 3.3, one before."""
    major, minor = client.call("GET", "/version")["version"].split(".")[:2]
    return 0 if (int(major), int(minor)) >= (3, 3) else 1


def successes(airflow: Airflow, dag_id: str, run_id: str) -> list[str]:
    """The tasks of a run in the order in which they became successful."""
    return [change.task_id for change in airflow.history.changes(dag_id, run_id) if change.state == "success"]


def check_end(
    airflow: Airflow, client: AirflowClient, dag_id: str, run_id: str, payloads: Mapping[str, Any], source: str | None
) -> None:
    """The sensor ended without a worker, every marker has its payload and note, and the next task was given them."""
    client.wait_run(dag_id, run_id, "success")
    starts = airflow.history.worker_starts(dag_id, run_id)
    assert (starts["inputs.wait"], starts["collect"]) == (starts_to_defer(client), 1)
    assert client.xcom(dag_id, run_id, "collect") == dict(payloads)
    facts = client.xcom(dag_id, run_id, "inputs.wait")
    assert set(facts) == set(payloads)
    for name, payload in payloads.items():
        assert client.xcom(dag_id, run_id, f"inputs.{name}") == payload
        last = facts[name][-1] if isinstance(facts[name], list) else facts[name]
        assert last["received_at"]
        note = client.note(dag_id, run_id, f"inputs.{name}")
        assert note is not None
        assert last["position"] in note
        assert run_id in note
        assert source is None or note.startswith(source)


def one_at_a_time(
    airflow: Airflow, client: AirflowClient, dag_id: str, run_id: str, steps: Mapping[str, Callable[[], None]]
) -> None:
    """Publish for one event after the other; its marker turns before the next is published, and no other does."""
    open_ones = list(steps)
    for name, publish in steps.items():
        publish()
        open_ones.remove(name)
        states = client.wait_states(dag_id, run_id, {f"inputs.{name}": "success"})
        assert {other: states[f"inputs.{other}"] for other in open_ones} == dict.fromkeys(open_ones)
        if open_ones:
            assert states["inputs.wait"] == "deferred"
    client.wait_run(dag_id, run_id, "success")
    markers = [task for task in successes(airflow, dag_id, run_id) if task in {f"inputs.{name}" for name in steps}]
    assert markers == [f"inputs.{name}" for name in steps]


def test_kafka(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "over_kafka")

    def body(what: str) -> dict[str, Any]:
        return {"run": run_id, "what": what, "nested": {"list": [1, None]}}

    def publish(what: str) -> None:
        brokers.to_kafka({"run": "another run", "what": what})
        brokers.to_kafka(body(what))

    order = ("two", "one", "three")
    one_at_a_time(airflow, client, "over_kafka", run_id, {name: partial(publish, name) for name in order})
    check_end(airflow, client, "over_kafka", run_id, {name: body(name) for name in order}, f"kafka {TOPIC}")


def test_a_kafka_message_from_before_the_wait_counts(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    """``since`` defaults to the run's ``run_after``, and the triggerer is away when the messages come."""
    client.wait_parsed("over_kafka")
    airflow.stop_component(TRIGGERER)
    try:
        run_id = client.trigger("over_kafka")
        for what in ("one", "two", "three"):
            brokers.to_kafka({"run": run_id, "what": what})
    finally:
        airflow.start_component(TRIGGERER)
    client.wait_run("over_kafka", run_id, "success")


def test_sqs(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "over_sqs")
    bodies = {"one": {"run": run_id, "n": 1}, "three": {"run": run_id, "n": 3}, "two": {"run": run_id, "n": 2}}
    queues = {"one": "one", "two": "two", "three": "three.fifo"}
    steps = {name: partial(brokers.to_sqs, queues[name], bodies[name]) for name in bodies}
    brokers.to_sqs("one", {"run": "another run"})
    one_at_a_time(airflow, client, "over_sqs", run_id, steps)
    check_end(airflow, client, "over_sqs", run_id, bodies, "sqs ")
    # What was recorded is deleted, what nobody wanted is not.
    wait_for(lambda: brokers.kept("two") == 0 and brokers.kept("three.fifo") == 0, what="recorded messages are deleted")
    assert brokers.kept("one") == 1


def test_mqtt(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "over_mqtt")
    bodies: dict[str, Any] = {name: {"run": run_id, "what": name} for name in ("one", "two")}
    bodies["three"] = [{"run": run_id, "number": 1}, {"run": run_id, "number": 2}]

    def publish(name: str) -> None:
        for body in bodies[name] if isinstance(bodies[name], list) else [bodies[name]]:
            brokers.to_mqtt(f"airflow-tests/plant/{name}", {"run": "another run"})
            brokers.to_mqtt(f"airflow-tests/plant/{name}", body)

    for name in bodies:
        wait_for(partial(brokers.subscriptions, f"airflow-tests/+/{name}"), what=f"{name} is subscribed to")
    one_at_a_time(airflow, client, "over_mqtt", run_id, {name: partial(publish, name) for name in bodies})
    check_end(airflow, client, "over_mqtt", run_id, bodies, "mqtt ")


def test_all_three_in_one_group(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    run_id = start(client, "over_all")
    wait_for(lambda: brokers.subscriptions("airflow-tests/+/shift"), what="the group's topic is subscribed")
    shifts = [{"run": run_id, "shift": number} for number in range(3)]
    bodies: dict[str, Any] = {
        "stock": {"run": run_id, "detail": {"status": "COMPLETE"}},
        "shifts": shifts,
        "orders": {"run": run_id, "table": "orders"},
    }

    def publish_shifts() -> None:
        for shift in shifts:
            brokers.to_mqtt("airflow-tests/plant/shift", shift)

    steps: dict[str, Callable[[], None]] = {
        "stock": partial(brokers.to_sqs, "stock", bodies["stock"]),
        "shifts": publish_shifts,
        "orders": partial(brokers.to_kafka, bodies["orders"]),
    }
    one_at_a_time(airflow, client, "over_all", run_id, steps)
    check_end(airflow, client, "over_all", run_id, bodies, None)
    ends = successes(airflow, "over_all", run_id)
    # The task waits for the markers alone, so it may even be done before the sensor's own end is written.
    assert ends.index("inputs.orders") < min(ends.index("inputs.wait"), ends.index("collect"))


def test_twenty_groups_of_twenty_share_one_consumer(airflow: Airflow, client: AirflowClient, brokers: Brokers) -> None:
    client.wait_parsed("many")
    run_ids = [client.trigger("many") for _ in range(20)]
    for run_id in run_ids:
        client.wait_states("many", run_id, {"inputs.wait": "deferred"})
        wait_for(partial(began, client, run_id), what="the wait began")
    # The newest group is waiting, so every stream is open; a reading of the past closes its own connections in the end.
    port = int(brokers.kafka.bootstrap.rpartition(":")[2])
    triggerer = airflow.components[TRIGGERER].pid
    few = wait_for(
        lambda: (found := connections(triggerer, port)) and found <= 3 and found,
        what=lambda: f"{connections(triggerer, port)} connections to Kafka",
    )
    assert 1 <= few <= 3  # one consumer: a connection for metadata and one for each broker it reads from
    for number in range(20):
        for run_id in run_ids:
            brokers.to_kafka({"run": run_id, "number": number})
    for run_id in run_ids:
        client.wait_run("many", run_id, "success", timeout=240)
        assert airflow.history.worker_starts("many", run_id)["inputs.wait"] == starts_to_defer(client)


def began(client: AirflowClient, run_id: str) -> bool:
    """Whether the sensor's log says that it waits."""
    return "waiting for" in client.log("many", run_id, "inputs.wait")


def connections(session: int, port: int) -> int:
    """How many TCP connections to a local port the processes of this session have, as Linux tells."""
    inodes = {
        fields[9]
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "01" and fields[2].endswith(f":{port:04X}")
    }
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[3]) != session:
                continue
            links = [link.readlink() for link in (stat.parent / "fd").iterdir()]
        except OSError:
            continue  # the process has ended meanwhile
        found += sum(1 for link in links if (match := re.match(r"socket:\[(\d+)\]", str(link))) and match[1] in inodes)
    return found
