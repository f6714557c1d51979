"""The independent witness: what was sent, compared with what Airflow's database and the brokers hold.

A program of its own, which knows nothing of the package and shares no code with it or with those who send. It is told
by a JSON file where to look, and prints a JSON report:

``awaited``, ``unwanted``
    how many messages were sent of each sort.
``lost``
    awaited messages that are in no XCom of the marker that awaits them.
``doubled``
    messages that are in a marker more than once, and markers that became ``success`` more than once.
``wrong``
    markers with a message that is not theirs, with a payload other than what was sent, with facts or a note that
    do not fit; green markers without a payload.
``unfinished``
    markers, sensors and runs that are not ``success``.
``left``
    awaited messages that their queue still has, and sessions that the MQTT broker still keeps.
``gone``
    messages that nobody wanted and that are not in their queue any more.

Every one of these lists is empty when the promises hold.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psycopg2  # type: ignore[import-untyped]
from botocore.session import Session
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def main(path: str) -> None:
    """Look, compare and print."""
    job = json.loads(Path(path).read_text())
    sent = [json.loads(line) for line in Path(job["manifest"]).read_text().splitlines()]
    with psycopg2.connect(job["database"]) as connection:
        report = compare(sent, read_airflow(connection, job["dag"], job["prefix"]))
    left, gone = look_into_queue(sent, job["sqs"])
    report["left"] = left + left_sessions(job["mqtt"])
    report["gone"] = gone
    print(json.dumps(report))


# -------------------------------------------------------------------------------------------------------- the database


def read_airflow(connection: Any, dag: str, prefix: str) -> dict[str, Any]:
    """The rows that matter, by run and task."""

    def rows(statement: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, {"dag": dag, "runs": f"{prefix}-%"})
            return list(cursor.fetchall())

    runs = rows("SELECT run_id, state FROM dag_run WHERE dag_id = %(dag)s AND run_id LIKE %(runs)s")
    states = rows("SELECT run_id, task_id, state FROM task_instance WHERE dag_id = %(dag)s AND run_id LIKE %(runs)s")
    notes = rows(
        "SELECT run_id, task_id, content FROM task_instance JOIN task_instance_note ON ti_id = task_instance.id"
        " WHERE dag_id = %(dag)s AND run_id LIKE %(runs)s"
    )
    xcoms = rows("SELECT run_id, task_id, key, value FROM xcom WHERE dag_id = %(dag)s AND run_id LIKE %(runs)s")
    marked = rows(
        "SELECT run_id, task_id, count(*) FROM harness_state_change"
        " WHERE dag_id = %(dag)s AND run_id LIKE %(runs)s AND state = 'success' GROUP BY run_id, task_id"
    )
    return {
        "runs": dict(runs),
        "states": {(run, task): state for run, task, state in states},
        "notes": {(run, task): note for run, task, note in notes},
        "xcoms": {(run, task, key): decoded(value) for run, task, key, value in xcoms},
        "marked": {(run, task): count for run, task, count in marked},
    }


def decoded(value: Any) -> Any:
    """An XCom's value; Airflow keeps JSON text in a column of JSON."""
    return json.loads(value) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------------ the comparison


def compare(sent: list[dict[str, Any]], airflow: dict[str, Any]) -> dict[str, Any]:
    """The report, as far as it is about Airflow."""
    expected: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for one in sent:
        if one["event"] is not None:
            expected[one["run"], one["event"]][one["body"]["id"]] = one["body"]
    report: dict[str, Any] = {"awaited": sum(map(len, expected.values())), "markers": len(expected)}
    report["unwanted"] = len(sent) - report["awaited"]
    report |= {name: [] for name in ("lost", "doubled", "wrong", "unfinished")}
    for (run, event), bodies in expected.items():
        compare_marker(f"{run} {event}", bodies, marker_of(airflow, run, f"inputs.{event}"), report)
    for run in sorted({run for run, _ in expected}):
        for what, state in (("run", airflow["runs"].get(run)), ("sensor", airflow["states"].get((run, "inputs.wait")))):
            if state != "success":
                report["unfinished"].append(f"{run} {what}: {state}")
    return report


def marker_of(airflow: dict[str, Any], run: str, task: str) -> dict[str, Any]:
    """All that is known of one marker."""
    return {
        "state": airflow["states"].get((run, task)),
        "note": airflow["notes"].get((run, task)) or "",
        "payload": airflow["xcoms"].get((run, task, "return_value")),
        "facts": airflow["xcoms"].get((run, task, "event")),
        "marked": airflow["marked"].get((run, task), 0),
    }


def compare_marker(name: str, bodies: dict[str, Any], marker: dict[str, Any], report: dict[str, Any]) -> None:
    """What is wrong with one marker that awaits these messages."""
    payload = marker["payload"]
    held = payload if isinstance(payload, list) else [] if payload is None else [payload]
    counts = Counter(str(one.get("id")) if isinstance(one, dict) else repr(one) for one in held)
    report["lost"] += [f"{name}: {missing}" for missing in bodies if missing not in counts]
    report["doubled"] += [f"{name}: {one} {count} times" for one, count in counts.items() if count > 1]
    report["wrong"] += [f"{name}: holds {one}" for one in held if one not in bodies.values()]
    if marker["state"] != "success":
        report["unfinished"].append(f"{name}: {marker['state']}")
        return
    if marker["marked"] > 1:
        report["doubled"].append(f"{name}: became success {marker['marked']} times")
    facts = (marker["facts"] or {}).get("messages") or []
    ids = {fact.get("id") for fact in facts}
    if len(facts) != len(bodies) or len(ids) != len(facts):
        report["wrong"].append(f"{name}: {len(bodies)} messages are awaited, and {len(ids)} are in its facts")
    if payload is None or isinstance(payload, list) != (len(bodies) > 1):
        report["wrong"].append(f"{name}: its payload is {type(payload).__name__}")
    # A note that is written after a crash shows the place of the message only.
    shown = [*bodies, *(str(fact.get("position")) for fact in facts)]
    if not any(one in marker["note"] for one in shown):
        report["wrong"].append(f"{name}: its note shows none of its messages: {marker['note']!r}")


# --------------------------------------------------------------------------------------------------------- the brokers


def look_into_queue(sent: list[dict[str, Any]], sqs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What was awaited and is in the queue, and what nobody wanted and is not.

    What was recorded just before a crash is acknowledged when it comes again, so the queue is given some time. Its own
    count is enough where it fits; else, and when asked to be thorough, the queue is emptied.
    """
    client: Any = Session().create_client("sqs", **sqs["client"])
    url = client.get_queue_url(QueueName=sqs["queue"])["QueueUrl"]
    unwanted = {one["body"]["id"] for one in sent if one["broker"] == "sqs" and one["event"] is None}
    deadline = time.monotonic() + sqs["grace"]
    while (fits := count(client, url) == len(unwanted)) is False and time.monotonic() < deadline:
        time.sleep(0.5)
    if fits and not sqs["thorough"]:
        return [], []
    kept: set[str] = set()
    # What the last listener gave back may stay invisible for up to a minute.
    deadline = time.monotonic() + sqs["patience"]
    while time.monotonic() < deadline:
        answer = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=600)
        for message in answer.get("Messages", ()):
            kept.add(json.loads(message["Body"])["id"])
            client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        if not answer.get("Messages") and count(client, url) == 0:
            break
    left = [f"sqs {one}" for one in sorted(kept - unwanted)]
    remaining = count(client, url)
    if remaining:
        left.append(f"sqs: {remaining} messages stay invisible")
    return left, [f"sqs {one}" for one in sorted(unwanted - kept)]


def count(client: Any, url: str) -> int:
    """How many messages the queue has."""
    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return sum(int(attributes[f"ApproximateNumberOfMessages{which}"]) for which in ("", "NotVisible", "Delayed"))


def left_sessions(broker: dict[str, Any]) -> list[str]:
    """Whether there are sessions without a connection, by the broker's own count.

    The broker publishes that number when it changes, and forgets it after a minute. So we leave a session of our own.
    """
    told = Told()
    watcher = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    watcher.on_message = told.on_message
    watcher.on_subscribe = told.on_subscribe
    watcher.connect(broker["host"], broker["port"])
    watcher.subscribe("$SYS/broker/clients/disconnected")
    watcher.loop_start()
    others: int | None = None
    try:
        told.subscribed.wait(10)
        for _ in range(6):
            told.counts.clear()
            leave_session(broker, seconds=60)
            others = told.newest() - 1 if told.any() else others
            told.counts.clear()
            leave_session(broker, seconds=0)
            if others == 0:
                break
            told.any()
    finally:
        watcher.loop_stop()
        watcher.disconnect()
    if others is None:
        return ["mqtt: the broker does not tell how many sessions it has"]
    return [f"mqtt: {others} sessions"] if others else []


class Told:
    """What the broker tells of the number of its sessions."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.subscribed = threading.Event()
        self._changed = threading.Condition()

    def on_subscribe(self, *_: Any) -> None:
        self.subscribed.set()

    def on_message(self, client: Any, userdata: Any, message: Any) -> None:
        with self._changed:
            # What it told before we asked may be old.
            if not message.retain:
                self.counts.append(int(message.payload))
                self._changed.notify_all()

    def any(self) -> bool:
        """Wait for news; whether there were any."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.counts), timeout=4)

    def newest(self) -> int:
        return self.counts[-1]


def leave_session(broker: dict[str, Any], *, seconds: int) -> None:
    """Connect and disconnect; the broker keeps the session for so long."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="witness", protocol=mqtt.MQTTv5)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = seconds
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(broker["host"], broker["port"], clean_start=True, properties=properties)
    client.loop_start()
    try:
        connected.wait(10)
    finally:
        client.disconnect()
        client.loop_stop()


if __name__ == "__main__":
    main(sys.argv[1])
