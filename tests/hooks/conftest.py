"""One API server for all tests of hooks and asset events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hooks.kit import ApiServer, api_server


@pytest.fixture(scope="package")
def api() -> Iterator[ApiServer]:
    """Airflow's API server. It is ended here, for Airflow's settings are those of the whole process meanwhile."""
    with api_server() as server:
        yield server
