"""Airflow's real API server in this process, on a socket and a PostgreSQL of its own, and callers of hooks.

No scheduler runs beside it: what a test finds in the database is what requests have written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn
from airflow import settings
from fastapi import FastAPI

from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.sources.base import AirflowCall, Opening, Position
from servers.ports import free_port
from servers.postgres import Postgres, find_binaries
from tests.support import missing

__all__ = ["ApiServer", "api_server", "signed"]

SECRET = "a secret of tests"
_PASSWORD = "of-admin"


class ApiServer:
    """Airflow's API server, and a bare second one that has the hooks only, as another process of it would."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stack = ExitStack()
        self.postgres = Postgres()
        self.url = ""
        self.second_url = ""

    def start(self) -> ApiServer:
        stack = self._stack
        stack.enter_context(self.postgres)
        url = self.postgres.create_database("airflow")
        stack.enter_context(_environment(self._settings(url)))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        _create_tables()
        from airflow.api_fastapi.app import create_app, purge_cached_app

        from event_triggers.server.app import create_app as create_own

        purge_cached_app()
        second = FastAPI()
        second.mount("/event-triggers", create_own())
        self.url = stack.enter_context(_served(create_app("core")))
        self.second_url = stack.enter_context(_served(second))
        return self

    def close(self) -> None:
        self._stack.close()

    def _settings(self, url: str) -> dict[str, str]:
        passwords = self._home / "passwords.json"
        passwords.write_text(json.dumps({"admin": _PASSWORD}))
        return {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests, as long as the algorithm that signs with it asks: 64",
            "AIRFLOW__API_AUTH__JWT_ISSUER": "tests",
            "AIRFLOW__API__SECRET_KEY": "another secret",
        }

    # ------------------------------------------------------------------ hooks

    def hook(self, scheme: str = "hmac", *, secret: str | None = SECRET, **extra: Any) -> str:
        """A new hook's name."""
        from airflow.models.connection import Connection
        from airflow.utils.session import create_session

        name = f"hook-{uuid.uuid4().hex[:12]}"
        with create_session() as session:
            session.add(
                Connection(
                    conn_id=f"webhook_{name}",
                    conn_type="webhook",
                    password=secret,
                    extra=json.dumps({"scheme": scheme, **extra}),
                )
            )
        return name

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[httpx.AsyncClient]:
        """Somebody outside."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60) as client:
            yield client

    async def send(self, name: str, body: bytes, delivery: str = "", *, url: str = "") -> httpx.Response:
        """Deliver to a hook of scheme ``hmac``."""
        async with self.caller() as client:
            address = f"{url or self.url}/event-triggers/hooks/{name}"
            return await client.post(address, content=body, headers=signed(body, delivery))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The extras of a hook's asset events, in their order."""
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.utils.session import create_session

        with create_session() as session:
            query = sa.select(AssetEvent.extra).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            return list(session.scalars(query.where(AssetModel.name == f"webhook/{name}").order_by(AssetEvent.id)))

    # ------------------------------------------------------------------ triggerers

    def opening(self, *, port: int | None = None, start: Position | None = None, plugin: bool = True) -> Opening:
        """As a triggerer opens a stream.

        :param port: of a proxy in front.
        :param plugin: whether the API server has the plugin, as far as this opening sees it.
        """
        url = self.url if port is None else f"http://127.0.0.1:{port}"

        @asynccontextmanager
        async def airflow() -> AsyncIterator[AirflowCall]:
            settings = ApiSettings(url, login="admin", password=_PASSWORD, origin="the test")
            async with AirflowApi(settings) as api:
                yield api.call if plugin else _without_plugin(api)

        return Opening(airflow=airflow, start=start)


def _without_plugin(api: AirflowApi) -> AirflowCall:
    async def call(method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        if path.startswith("/event-triggers/"):
            path = "/api/v2/no-such-route"
        return await api.call(method, path, json=json, params=params)

    return call


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """An API server, while the context lasts."""
    if find_binaries() is None:
        missing("PostgreSQL is not installed (apt-get install postgresql)")
    server = ApiServer(Path(os.environ["AIRFLOW_HOME"]))
    try:
        yield server.start()
    finally:
        server.close()


def signed(body: bytes, delivery: str = "", *, secret: str = SECRET, stamp: int | None = None) -> dict[str, str]:
    """The headers of our own scheme."""
    at = str(int(time.time()) if stamp is None else stamp)
    digest = hmac.new(secret.encode(), f"{at}.{delivery}.".encode() + body, hashlib.sha256).hexdigest()
    headers = {"X-Webhook-Timestamp": at, "X-Webhook-Signature": f"v1={digest}"}
    return headers | ({"X-Webhook-Delivery": delivery} if delivery else {})


@contextmanager
def _served(app: Any) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, name=f"uvicorn-{port}", daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the API server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    _connect()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _connect()


def _connect() -> None:
    settings.dispose_orm(do_log=False)
    settings.configure_vars()  # type: ignore[no-untyped-call]
    settings.configure_orm()  # type: ignore[no-untyped-call]


def _create_tables() -> None:
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.utils.db import synchronize_log_template

    import_all_models()  # type: ignore[no-untyped-call]
    Base.metadata.create_all(settings.engine)
    synchronize_log_template()
