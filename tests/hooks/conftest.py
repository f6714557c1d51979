"""One API server for all tests of hooks and asset events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hooks.kit import ApiServer, close_shared, shared_api


@pytest.fixture(scope="package")
def api(pytestconfig: pytest.Config) -> Iterator[ApiServer]:
    """Airflow's API server. It is ended here, for Airflow's settings are those of the whole process meanwhile."""
    yield shared_api(pytestconfig)
    close_shared(pytestconfig)
