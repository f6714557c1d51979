"""DAGs that messages start, and a group of triggers of other providers. A test ends the pause of the former."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.amazon.aws.triggers.s3 import S3KeyTrigger
from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger
from airflow.providers.http.triggers.http import HttpSensorTrigger
from airflow.providers.standard.triggers.file import FileDeleteTrigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, Asset, AssetWatcher, task

from event_triggers import Event, EventGroup, FromTrigger, KafkaTopic, MqttTopic, SqsQueue, StreamTrigger

QUEUE = SqsQueue("starts", conn_id="tests_aws", visibility_timeout=10)
TRIGGERS = {
    "kafka": StreamTrigger(KafkaTopic("starts", conn_id="tests_kafka"), match={"go": [True]}, since="2020-01-01"),
    "sqs": StreamTrigger(QUEUE, match={"go": [True], "kind": ["one"]}),
    "sqs_other": StreamTrigger(QUEUE, match={"go": [True], "kind": ["other"]}),
    "mqtt": StreamTrigger(MqttTopic("starts/+", conn_id="tests_mqtt"), match={"go": [True]}),
    "wrong": StreamTrigger(SqsQueue("starts", conn_id="no_such_connection")),
}

for name, trigger in TRIGGERS.items():
    asset = Asset(f"starts_{name}", watchers=[AssetWatcher(f"starts_{name}", trigger=trigger)])
    with DAG(f"started_by_{name}", schedule=asset, is_paused_upon_creation=True):

        @task
        def payloads(triggering_asset_events: dict[Asset, list[object]]) -> list[object]:
            return [one.extra["payload"] for events in triggering_asset_events.values() for one in events]  # type: ignore[attr-defined]

        payloads()  # type: ignore[call-arg, misc]

with DAG("any_trigger", schedule=None):
    channel = MessageQueueTrigger(
        scheme="redis+pubsub", channels=["any-{{ run_id }}"], redis_conn_id="tests_redis", poll_interval=0.2
    )
    folder = "{{ dag_run.conf['folder'] }}"
    key = S3KeyTrigger("any", "{{ run_id }}.csv", aws_conn_id="tests_aws", poke_interval=0.5)
    page = HttpSensorTrigger(endpoint="{{ run_id }}", http_conn_id="tests_http", poke_interval=0.5)
    events = {
        "redis": Event(FromTrigger(channel, body="data"), match={"n": [1]}),
        "file": Event(FromTrigger(FileDeleteTrigger(f"{folder}/flag", poke_interval=0.2)), count=2),
        "moment": Event(FromTrigger(DateTimeTrigger(datetime(2020, 1, 1, tzinfo=timezone.utc)))),
        "s3": Event(FromTrigger(key)),
        "http": Event(FromTrigger(page)),
    }
    EventGroup("inputs", events=events, timeout=timedelta(minutes=5))
