"""The offline tester of groups: what it finds, what it says, and what it refuses."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from event_triggers import Event, KafkaTopic, SqsQueue
from event_triggers.cli import main
from event_triggers.offline import command
from event_triggers.offline.feed import impersonated
from event_triggers.offline.lines import OfflineError, read_lines
from event_triggers.offline.report import report
from event_triggers.sources.base import load_source

ROOT = Path(__file__).parents[2]

DAG_FILE = """
from airflow.sdk import DAG, task
from event_triggers import Event, EventGroup, EventGroupSensor, EventMarker, KafkaTopic, MqttTopic, SqsQueue

with DAG("first", schedule=None, user_defined_macros={"mine": lambda: "x"}):
    EventGroup("inputs", {"a": Event(KafkaTopic("t", key="4")), "b": Event(SqsQueue("q"), match={"n": [1]}, count=2)})
    EventGroup("rendered", {
        "conf": Event(KafkaTopic("{{ dag_run.conf.topic }}"), match={"v": ["{{ var.value.v }}"], "m": "{{ mine() }}"}),
    })
    called = EventGroup("called", {"a": Event(KafkaTopic("t"), match="tests.unit.test_offline.is_four")})
    @task
    def make(): ...
    EventGroup("late", {"a": Event(KafkaTopic("t"), match={"id": [make()]})})
    wait = EventGroupSensor(task_id="by_hand", events={"m": Event(MqttTopic("plant/+"))}, timeout=60)
    wait >> EventMarker(task_id="m")

with DAG("second", schedule=None):
    EventGroup("inputs", {"a": Event(KafkaTopic("t"))})
"""


def is_four(message: object) -> bool:
    body = message.json  # type: ignore[attr-defined]
    return bool(body["n"] == 4)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("dag.py").write_text(DAG_FILE)
    return tmp_path


def replayed(*arguments: str, messages: str = "{}") -> tuple[bool, list[str]]:
    """Whether the group is complete, and what is said of the messages."""
    Path("m.jsonl").write_text(messages)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    found = command.replayed_by(parser.parse_args(["dag.py", arguments[0], "m.jsonl", *arguments[1:]]))
    return found.complete, list(report(found))[1:]


def test_keys_counts_and_places(files: Path) -> None:
    complete, said = replayed(
        "inputs",
        "--dag=first",
        messages="""
            {"topic": "t", "key": "5", "body": {"n": 1}, "timestamp": "2026-01-01T00:00:00Z"}
            {"topic": "elsewhere", "body": 1}
            {"n": 1}
            {"source": "sqs", "text": "no JSON"}
        """,
    )
    moment = "2026-01-01T00:00:00+00:00"
    assert not complete
    assert said == [
        f"line 2, t, {moment}",
        "  a: does not count: its key is '5', wanted '4'",
        f"line 3, elsewhere, {moment}",
        "  no event of the group listens there; its sources are kafka t, sqs q",
        f"line 4, from anywhere, {moment}",
        "  a: does not count: its key is None, wanted '4'",
        "  b: counts (1 of 2)",
        f"line 5, sqs, {moment}",
        "  b: does not count: the body is not JSON, wanted a JSON object",
        "NOT COMPLETE, waits for: a, b (1 of 2); the time is up at 2026-01-08T00:00:00+00:00",
    ]


def test_equal_sources_of_two_groups_have_feeds_of_their_own() -> None:
    events = {"a": Event(KafkaTopic("t")), "b": Event(SqsQueue("q"))}
    changed, feeds = zip(*(impersonated(events) for _ in range(2)), strict=True)
    loaded = [[load_source(one[name].source.serialize()) for name in events] for one in changed]
    assert [[one.feed for one in group] for group in loaded] == [list(one.values()) for one in feeds]  # type: ignore[attr-defined]


def test_a_sensor_by_hand_is_found_by_its_task_id(files: Path) -> None:
    assert replayed("by_hand", messages='{"topic": "plant/4", "body": 1}')[0]


def test_a_function_is_asked(files: Path) -> None:
    complete, said = replayed("called", messages='{"n": 3}\n{"other": 1}\n{"n": 4}')
    assert complete
    assert "  a: does not count: tests.unit.test_offline.is_four says no" in said
    assert "  a: does not count: tests.unit.test_offline.is_four raised KeyError: 'n'" in said


def test_templates_are_rendered_for_the_run_that_is_described(files: Path) -> None:
    options = ["--conf", '{"topic": "t7"}', "--var", "v=4"]
    assert replayed("rendered", *options, messages='{"topic": "t7", "body": {"v": "4", "m": "x"}}')[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "dag.py has no group 'nowhere'; it has first: inputs; first: rendered"),
        (["inputs"], r"several DAGs of dag.py have a group 'inputs' \(first, second\); choose one with --dag"),
        (["inputs", "--dag=third"], "dag.py has no group 'inputs' in DAG 'third'; it has none"),
        (["rendered", "--conf", '{"topic": "t"}'], "cannot be rendered here: .*'v'; give it by .* --var"),
        (["rendered", "--conf", "[]"], "--conf must be a JSON object"),
        (["rendered", "--conf", "{"], "--conf is no JSON"),
        (["rendered", "--var", "v"], "--var 'v' must be NAME=VALUE"),
        (["by_hand", "--run-after", "noon"], "--run-after 'noon' is no ISO 8601 moment"),
        (["late"], "takes the output of another task"),
    ],
)
def test_what_cannot_be_done_is_said(files: Path, arguments: list[str], text: str) -> None:
    with pytest.raises(OfflineError, match=text):
        replayed(*arguments)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("{", "m.jsonl, line 1 is no JSON document"),
        ('{"body": 1, "text": "1"}', "has both a body and a text"),
        ('{"body": 1, "topic": "a", "queue": "b"}', "words for the same"),
        ('{"body": 1, "key": 4}', "its key must be a string, not 4"),
        ('{"body": 1, "headers": {"a": 4}}', "header 'a' must be a string, not 4"),
        ('{"body": 1, "timestamp": "noon"}', "its timestamp 'noon' is no ISO 8601 moment"),
    ],
)
def test_a_line_that_is_no_message_is_named(tmp_path: Path, messages: str, text: str) -> None:
    (tmp_path / "m.jsonl").write_text(messages)
    with pytest.raises(OfflineError, match=text):
        read_lines(tmp_path / "m.jsonl")


def test_a_file_with_a_mistake_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dag.py").write_text("from airflow.sdk import DAG\nfrom event_triggers import Event\nEvent('x')\n")
    (tmp_path / "m.jsonl").write_text("{}")
    assert main(["test-group", str(tmp_path / "dag.py"), "inputs", str(tmp_path / "m.jsonl")]) == 2
    assert "an Event's source must be a Source such as KafkaTopic" in capsys.readouterr().err


def test_as_a_program(tmp_path: Path) -> None:
    """It needs no database, and prints nothing but its report."""
    (tmp_path / "dag.py").write_text(DAG_FILE)
    (tmp_path / "m.jsonl").write_text('{"timestamp": "2026-01-01T00:00:00Z", "topic": "t", "body": 1}')
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        [sys.executable, "-m", "event_triggers", "test-group", "dag.py", "inputs", "m.jsonl", "--dag", "second"],
        env={**env, "AIRFLOW_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[1:]) == (
        0,
        ["line 1, t, 2026-01-01T00:00:00+00:00", "  a: counts", "COMPLETE"],
    ), done.stderr
    assert not list((tmp_path / "home").glob("*.db"))
