"""One API server for all tests of hooks and asset events."""

from __future__ import annotations

import pytest

from tests.hooks.kit import ApiServer, shared_api


@pytest.fixture(scope="session")
def api(pytestconfig: pytest.Config) -> ApiServer:
    """Airflow's API server."""
    return shared_api(pytestconfig)
