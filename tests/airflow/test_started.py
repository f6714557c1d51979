"""Messages that start DAGs through asset watchers, and triggers of other providers in a group, in a real Airflow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
import redis

from servers.airflow import TRIGGERER, Airflow
from servers.airflow_client import AirflowClient, wait_for
from servers.redis import Redis, find_redis
from tests.airflow.brokers import Brokers
from tests.support import missing

STARTED = {"kafka": "kafka", "sqs": "sqs", "mqtt": "mqtt"}


def payloads(client: AirflowClient, name: str) -> list[dict[str, Any]]:
    """What the events of an asset carry, oldest first."""
    # The pattern is a part of a name, which others have, too.
    found = client.call("GET", "/assets", params={"name_pattern": f"starts_{name}"})["assets"]
    (asset,) = (one for one in found if one["name"] == f"starts_{name}")

    def events() -> Any:
        # Airflow (3.3.2) answers 500 while a run that an event has started is still queued: it has no start yet.
        answer = client.request("GET", "/assets/events", params={"asset_id": asset["id"], "limit": 100})
        return answer.json()["asset_events"] if answer.is_success else None

    told = wait_for(lambda: {"events": known} if (known := events()) is not None else None, what="Airflow tells")
    return [event["extra"]["payload"] for event in sorted(told["events"], key=lambda event: event["id"])]


def numbers(client: AirflowClient, name: str) -> list[int]:
    return [payload["payload"]["n"] for payload in payloads(client, name)]


def send(brokers: Brokers, name: str, *values: int, **more: Any) -> None:
    for n in values:
        body = {"go": True, "n": n, **more}
        if name == "kafka":
            brokers.to_kafka(body, topic="starts")
        elif name == "mqtt":
            brokers.to_mqtt("starts/here", body)
        else:
            brokers.to_sqs("starts", {"kind": "other" if name == "sqs_other" else "one", **body})


@pytest.fixture(scope="module")
def awake(client: AirflowClient, brokers: Brokers) -> Iterator[Brokers]:
    """Brokers whose messages start DAGs."""
    names = ["kafka", "sqs", "sqs_other", "mqtt", "wrong"]
    for name in names:
        client.wait_parsed(f"started_by_{name}")
        client.call("PATCH", f"/dags/started_by_{name}", json={"is_paused": False})
    # Airflow makes the watchers of a DAG that is not paused any more when it parses its file again, a minute later.
    wait_for(lambda: brokers.subscriptions("starts/+") > 0, timeout=240, what="the session of the watcher exists")
    yield brokers
    for name in names:
        client.call("PATCH", f"/dags/started_by_{name}", json={"is_paused": True})


@pytest.mark.parametrize("name", sorted(STARTED))
def test_messages_start_dags_and_none_is_lost_with_the_triggerer(
    airflow: Airflow, client: AirflowClient, awake: Brokers, name: str
) -> None:
    send(awake, name, 1, 2)
    send(awake, name, 99, go=False)
    wait_for(lambda: {1, 2} <= set(numbers(client, name)), what="the first events are stored")
    send(awake, name, *range(3, 8))
    airflow.kill_component(TRIGGERER)
    try:
        send(awake, name, 8, 9)
    finally:
        airflow.start_component(TRIGGERER)
    wait_for(lambda: set(range(1, 10)) <= set(numbers(client, name)), what=lambda: f"all: {numbers(client, name)}")
    assert 99 not in numbers(client, name)
    payload = payloads(client, name)[0]
    assert payload["source"] == name
    assert payload["payload"]["go"] is True
    assert payload["id"]
    # The scheduler takes its time.
    runs = wait_for(lambda: client.call("GET", f"/dags/started_by_{name}/dagRuns")["dag_runs"], what="a run is started")
    assert {run["run_type"] for run in runs} == {"asset_triggered"}


def test_two_watchers_share_a_queue(client: AirflowClient, awake: Brokers) -> None:
    before = numbers(client, "sqs"), numbers(client, "sqs_other")
    for n in (101, 102, 103):
        send(awake, "sqs", n)
        send(awake, "sqs_other", n + 100)
    wait_for(lambda: {101, 102, 103} <= set(numbers(client, "sqs")), what="the one has its events")
    wait_for(lambda: {201, 202, 203} <= set(numbers(client, "sqs_other")), what="the other has its own")
    assert set(numbers(client, "sqs_other")) - set(before[1]) == {201, 202, 203}
    assert set(numbers(client, "sqs")) - set(before[0]) == {101, 102, 103}


def test_what_is_wrong_is_told_in_the_log(airflow: Airflow, awake: Brokers) -> None:
    text = "its messages cannot start DAGs: ConnectionMissingError: the Airflow connection 'no_such_connection' is not"
    wait_for(lambda: text in airflow.log(TRIGGERER), what="the triggerer's log says so")


@pytest.fixture
def pages(client: AirflowClient) -> Iterator[set[str]]:
    """A web server: the paths that are there."""
    there: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.lstrip("/") in there else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        client.set_connection("tests_http", "http", host="127.0.0.1", port=server.server_port)
        thread = threading.Thread(target=server.serve_forever, name="pages")
        thread.start()
        yield there
        server.shutdown()
        thread.join()


def test_triggers_of_any_provider_are_members_of_a_group(
    client: AirflowClient, brokers: Brokers, pages: set[str], tmp_path: Path
) -> None:
    if find_redis() is None:
        missing("Redis is not installed (apt-get install redis-server)")
    aws = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    s3 = boto3.client("s3", endpoint_url=brokers.sqs.endpoint_url, **aws)
    s3.create_bucket(Bucket="any")
    with Redis() as server, redis.Redis(port=server.port) as channel:
        client.set_connection("tests_redis", "redis", host="127.0.0.1", port=server.port)
        client.wait_parsed("any_trigger")
        run_id = client.trigger("any_trigger", conf={"folder": str(tmp_path)})
        name = f"any-{run_id}"
        wait_for(lambda: dict(channel.pubsub_numsub(name)).get(name.encode()), what="somebody listens to Redis")
        channel.publish(name, json.dumps({"n": 1, "from": "redis"}))
        pages.add(run_id)
        s3.put_object(Bucket="any", Key=f"{run_id}.csv", Body=b"1")
        for _ in range(2):
            (tmp_path / "flag").touch()
            wait_for(lambda: not (tmp_path / "flag").exists(), what="the trigger has deleted the file")
        client.wait_run("any_trigger", run_id, "success")
    assert client.xcom("any_trigger", run_id, "inputs.redis") == {"n": 1, "from": "redis"}
    assert client.xcom("any_trigger", run_id, "inputs.file") == [True, True]
    assert client.xcom("any_trigger", run_id, "inputs.s3") == {"status": "success"}
    facts = client.xcom("any_trigger", run_id, "inputs.wait")
    assert facts["moment"]["source"] == "trigger"
    s3.close()
