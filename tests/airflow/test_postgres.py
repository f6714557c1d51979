"""PostgreSQL is started again while a group waits: what came meanwhile counts, whatever part of Airflow ends.

Airflow's scheduler, triggerer and DAG processor try again for a few seconds and then end. Whoever runs Airflow has them
started again; so does the test.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient, wait_for
from servers.postgres import Postgres
from tests.airflow.brokers import Brokers
from tests.airflow.test_api_down import DAG_ID, check_end, publish_last, publish_most, start_connected


def start_what_ended(airflow: Airflow) -> None:
    """What a process manager does."""
    ended = {name for name, process in airflow.components.items() if not process.running}
    with ThreadPoolExecutor(len(ended) or 1) as pool:
        list(pool.map(airflow.start_component, ended))


def test_the_database_is_back_at_once(
    airflow: Airflow, client: AirflowClient, brokers: Brokers, postgres: Postgres
) -> None:
    run_id = start_connected(client)
    publish_most(brokers, run_id)
    postgres.restart()
    publish_last(brokers, run_id)
    wait_for(lambda: has_ended(airflow, client, run_id), what=airflow.diagnose, timeout=200)
    check_end(client, brokers, run_id)


def has_ended(airflow: Airflow, client: AirflowClient, run_id: str) -> bool:
    """Whether the run has ended well; starts again whatever of Airflow has ended by now.

    The group may be complete before the scheduler finds that its connection is gone, and ends.
    """
    start_what_ended(airflow)
    answer = client.request("GET", f"/dags/{DAG_ID}/dagRuns/{run_id}")
    return answer.is_success and answer.json()["state"] == "success"
