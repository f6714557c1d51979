"""The plugin in a real API server."""

from __future__ import annotations

import httpx

import event_triggers
from servers.airflow import Airflow


def test_the_api_server_has_the_routes(airflow: Airflow) -> None:
    answer = httpx.get(f"{airflow.url}/event-triggers/version", trust_env=False)
    assert answer.json() == {"version": event_triggers.__version__}
