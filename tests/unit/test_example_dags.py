"""The example DAGs parse, also where no broker's client library is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

_PARSE = """
import json, sys
sys.modules.update(dict.fromkeys(["aiokafka", "aiobotocore", "botocore", "aiomqtt", "paho", "confluent_kafka"]))
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1], bundle_path=None)
graph = {
    dag_id: {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks} for dag_id, dag in bag.dags.items()
}
print(json.dumps({"errors": bag.import_errors, "graph": graph}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """The graph of each DAG of ``dags/``, parsed where no client library can be imported."""
    home = tmp_path_factory.mktemp("airflow")
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(ROOT / "dags")],
        env={**env, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["errors"] == {}
    graph: dict[str, dict[str, list[str]]] = result["graph"]
    return graph


def test_all_are_there(parsed: dict[str, dict[str, list[str]]]) -> None:
    assert sorted(parsed) == sorted(path.stem for path in (ROOT / "dags").glob("*.py"))


def test_daily_close(parsed: dict[str, dict[str, list[str]]]) -> None:
    graph = parsed["daily_close"]
    markers = ["inputs.orders", "inputs.shifts", "inputs.stock"]
    assert graph["inputs.wait"] == markers
    assert all(graph[marker] == ["close_books"] for marker in markers)
    assert graph["close_books"] == []


def test_by_hand(parsed: dict[str, dict[str, list[str]]]) -> None:
    graph = parsed["by_hand"]
    assert graph["wait"] == ["msg_1", "msg_2", "msg_3"]
    assert graph["msg_1"] == ["load_customers", "report"]
    assert graph["msg_2"] == graph["msg_3"] == ["report"]


def test_on_event(parsed: dict[str, dict[str, list[str]]]) -> None:
    assert parsed["on_event"]["inputs.wait"] == ["inputs.first", "inputs.second"]
