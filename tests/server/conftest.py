"""Airflow's API server inside this process, once for each database; see :mod:`tests.server.kit`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from servers.postgres import Postgres, find_binaries
from tests.server.kit import Server, running_server
from tests.support import missing


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The API server, on either database. It is ended here, for Airflow's settings are those of the whole process."""
    home = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        with running_server(f"sqlite:///{home / 'airflow.db'}", home) as server:
            yield server
        return
    if find_binaries() is None:
        missing("PostgreSQL is not installed (apt-get install postgresql)")
    with Postgres() as cluster, running_server(cluster.create_database("server"), home) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the user who marks."""
    async with server.client() as client:
        yield client
