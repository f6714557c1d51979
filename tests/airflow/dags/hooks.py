"""A group that waits for a hook and for an asset event, one that reads both from the past, a DAG that a hook starts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, task

from event_triggers import AssetEvents, Event, EventGroup, Webhook

hook, orders = Webhook("tests"), Asset("tests-orders")


def group_dag(dag_id: str, run: str, **more: Any) -> DAG:
    with DAG(dag_id, schedule=None, max_active_runs=64) as dag:
        events = {
            "signoff": Event(hook, match={"run": [run], "approved": [True]}, **more),
            "orders": Event(
                AssetEvents(orders),
                match={"run": [run], "$message": {"headers": {"dag_id": ["hooks_orders"]}}},
                **more,
            ),
        }
        group = EventGroup("inputs", events=events, timeout=timedelta(minutes=10))

        @task
        def collect(payloads: dict[str, object]) -> dict[str, object]:
            return payloads

        group >> collect({name: group[name].output for name in events})
    return dag


live = group_dag("hooks_live", "{{ run_id }}")
past = group_dag("hooks_past", "{{ dag_run.conf['run'] }}", since="{{ dag_run.conf['since'] }}")

with DAG("hooks_orders", schedule=None) as makes_orders:

    @task(outlets=[orders])
    def load(*, outlet_events, dag_run=None):  # type: ignore[no-untyped-def]
        outlet_events[orders].extra = {"run": dag_run.conf["run"], "rows": 3}

    load()  # type: ignore[call-arg]

with DAG("hooks_started", schedule=[hook.asset]) as started:

    @task
    def bodies(*, triggering_asset_events=None) -> list[str]:  # type: ignore[no-untyped-def]
        return [event.extra["body"] for event in triggering_asset_events[hook.asset]]

    bodies()
