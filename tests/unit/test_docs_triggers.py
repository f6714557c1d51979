"""The examples of triggers as a source, and of starting DAGs: each is parsed, and stored as Airflow stores DAGs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from event_triggers.event import Event
from event_triggers.sources._airflow_trigger import made
from event_triggers.sources.base import load_source
from event_triggers.sources.from_trigger import FromTrigger
from event_triggers.stream_trigger import StreamTrigger

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parsed(page: str) -> DAG:
    """The DAG of the only example of a page."""
    (code,) = _BLOCK.findall((DOCS / page).read_text())
    code = re.sub(r"^(with DAG\(.*\)):$", r"\1 as dag:", code, flags=re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)  # noqa: S102 - our own document
    dag = names["dag"]
    assert isinstance(dag, DAG)
    return dag


def test_triggers_as_sources() -> None:
    dag = parsed("sources/triggers.md")
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    assert "FileDeleteTrigger" in json.dumps(stored)
    events = dag.get_task("inputs.wait").events  # type: ignore[union-attr]
    assert set(events) == {"flag", "orders"}
    for data in events.values():
        source = load_source(data["source"])
        assert isinstance(source, FromTrigger)
        assert made(source.path, source.kwargs, source.coded).serialize()[0] == source.path
    assert Event.deserialize(events["orders"]).match == {"date": ["{{ ds }}"]}


@pytest.mark.parametrize("watcher", ["queue", "plant"])
def test_starting_dags(watcher: str) -> None:
    dag = parsed("howto/start-dags.md")
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    assert "event_triggers.stream_trigger.StreamTrigger" in json.dumps(stored)
    asset: Any = dag.timetable.asset_condition
    (trigger,) = [one.trigger for one in asset.watchers if one.name == watcher]
    path, kwargs = trigger.serialize()
    assert path == f"{StreamTrigger.__module__}.StreamTrigger"
    assert StreamTrigger(**json.loads(json.dumps(kwargs))).shared_stream_key() == trigger.shared_stream_key()
