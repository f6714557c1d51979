"""One PostgreSQL and one Airflow for all tests of this folder, ended with them: other folders have their own.

Airflow knows two users: ``admin``, as whom the tests look and act, and ``marker``, as whom ``event_triggers`` marks.
The latter's requests go through a proxy, so that tests can take Airflow's API away from it and from nobody else.
Tests make the connections to their brokers while Airflow runs (``client.set_connection``), so no broker has to start
before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.airflow import Airflow
from servers.airflow_client import AirflowClient
from servers.http_proxy import HttpProxy
from servers.postgres import Postgres, find_binaries
from tests.airflow.brokers import Brokers, running_brokers
from tests.support import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL cluster."""
    if find_binaries() is None:
        missing("PostgreSQL is not installed (apt-get install postgresql)")
    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="package")
def shared_api_proxy() -> Iterator[HttpProxy]:
    """What ``event_triggers`` takes for Airflow's API server; tests use :func:`api_proxy`."""
    with HttpProxy(0) as proxy:
        yield proxy


@pytest.fixture
def api_proxy(airflow: Airflow, shared_api_proxy: HttpProxy) -> Iterator[HttpProxy]:
    """Airflow's API as ``event_triggers`` sees it, to be broken; whole again after the test."""
    shared_api_proxy.seen.clear()
    yield shared_api_proxy
    shared_api_proxy.restore()


@pytest.fixture(scope="package")
def airflow(postgres: Postgres, shared_api_proxy: HttpProxy) -> Iterator[Airflow]:
    """Airflow on PostgreSQL, with the DAGs of ``tests/airflow/dags`` and ``dags``."""
    server = Airflow(
        dags=[Path(__file__).parent / "dags", ROOT / "dags"],
        database_url=postgres.create_database("airflow"),
        users={"admin": "admin", "marker": "user"},
        python_path=[ROOT],
    )
    shared_api_proxy.target_port = server.port
    server.env["AIRFLOW_CONN_AIRFLOW_API_DEFAULT"] = server.api_connection("marker", port=shared_api_proxy.port)
    with server:
        yield server


@pytest.fixture(scope="package")
def client(airflow: Airflow) -> AirflowClient:
    """The REST API as user ``admin``."""
    return airflow.client("admin")


@pytest.fixture(scope="package")
def brokers(client: AirflowClient) -> Iterator[Brokers]:
    """Apache Kafka, moto and Mosquitto, known to Airflow."""
    with running_brokers() as running:
        running.connect(client)
        yield running
