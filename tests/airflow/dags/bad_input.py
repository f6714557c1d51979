"""Groups for payloads that Airflow does not take as they are, and for what a sender would like to be run."""

from __future__ import annotations

from airflow.sdk import DAG, task

from event_triggers import Event, EventGroup, KafkaTopic

WHAT = ("template", "reserved", "nul", "deep", "nested", "large_number", "poison", "forged")


def expected(what: str) -> Event:
    return Event(KafkaTopic("airflow-tests", conn_id="tests_kafka"), match={"run": ["{{ run_id }}"], "what": [what]})


with DAG("bad_input", schedule=None):
    group = EventGroup("inputs", events={what: expected(what) for what in WHAT}, timeout=300)

    @task
    def collect(payloads: dict[str, object]) -> dict[str, object]:
        return payloads

    group >> collect({what: group[what].output for what in WHAT})
