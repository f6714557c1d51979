"""The examples of the pages about webhooks and asset events, run as they are shown."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from subprocess import run
from typing import Any

import anyio.to_thread
import pytest
import sqlalchemy as sa
from airflow.sdk import DAG, TaskGroup

from event_triggers import EventGroupSensor
from tests.hooks.kit import SECRET, ApiServer
from tests.support import missing
from tests.unit.dag_kit import in_the_database

PAGES = Path(__file__).parents[2] / "docs" / "sources"
_BLOCK = re.compile(r'^```\w+ title="([^"]*)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def shown(page: str) -> dict[str, str]:
    return dict(_BLOCK.findall((PAGES / page).read_text()))


def run_shell(script: str, **env: str) -> str:
    for program in ("bash", "curl", "openssl"):
        if shutil.which(program) is None:
            missing(f"{program} is not installed (apt-get install {program})")
    around = {**os.environ, "no_proxy": "*", **env}
    done = run(["bash", "-eu", "-c", script], env=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dags_of(page: str, name: str) -> list[DAG]:
    names: dict[str, Any] = {}
    exec(compile(shown(page)[name], name, "exec"), names)  # noqa: S102 - our own page
    return [value.dag for value in names.values() if isinstance(value, TaskGroup)]


async def test_a_signed_request(api: ApiServer) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Connection(conn_id="webhook_finance-signoff", conn_type="webhook", password=SECRET))
    script = shown("webhook.md")["send.sh"]
    first = await anyio.to_thread.run_sync(lambda: run_shell(script, SECRET=SECRET, AIRFLOW=api.url))
    assert first == '{"delivery":"signoff-2026-11-27"}'
    again = await anyio.to_thread.run_sync(lambda: run_shell(script, SECRET=SECRET, AIRFLOW=api.url))
    assert "stored already" in again
    (extra,) = api.events("finance-signoff")
    assert extra["body"] == '{"period": "2026-11-27", "approved": true}'


async def test_an_event_made_by_the_api(api: ApiServer) -> None:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session

    with create_session() as session:
        asset = AssetModel(name="orders", uri="orders")
        session.add(asset)
        session.flush()
        identity = asset.id
    async with api.caller() as client:
        answer = await client.post("/auth/token", json={"username": "admin", "password": "of-admin"})
    script = shown("assets.md")["create.sh"].replace('"asset_id": 1', f'"asset_id": {identity}')
    token = answer.json()["access_token"]
    await anyio.to_thread.run_sync(lambda: run_shell(script, TOKEN=token, AIRFLOW=api.url))
    with create_session() as session:
        extra = session.scalar(sa.select(AssetEvent.extra).where(AssetEvent.asset_id == identity))
    assert extra == {"rows": 3, "from_rest_api": True}


@pytest.mark.parametrize(("page", "name"), [("webhook.md", "close_books.py"), ("assets.md", "report.py")])
def test_the_dags_are_dags(page: str, name: str) -> None:
    dags = dags_of(page, name)
    for dag in dags:
        in_the_database(dag)
    assert any(isinstance(task, EventGroupSensor) for dag in dags for task in dag.tasks)
