"""The smallest DAG that shows Airflow works: one task hands a value to the next."""

from __future__ import annotations

from airflow.sdk import DAG, task

import event_triggers

with DAG("two_tasks", schedule=None):

    @task
    def give() -> dict[str, object]:
        print("giving a value")
        return {"value": 20, "package": event_triggers.__name__}

    @task
    def take(given: dict[str, int]) -> int:
        return given["value"] + 1

    take(give())  # type: ignore[arg-type]
