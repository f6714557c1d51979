"""``python -m event_triggers test-pattern``: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from event_triggers.cli import main

ORDERS = {"table": "orders", "date": "2026-11-22"}
STOCK = {"table": "stock", "date": "2026-11-21"}
PATTERN = json.dumps({"table": ["orders", "stock"], "date": ["2026-11-22"]})


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file with one document a line."""
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, [ORDERS, STOCK])) + "\n\n")
    return path


def test_lines(lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test-pattern", PATTERN, str(lines)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{lines}:1: matches",
        f"{lines}:2: does not match, 1 of 2 hold: date: got '2026-11-21', wanted '2026-11-22'",
    ]


def test_one_document_over_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(STOCK, indent=2))
    (tmp_path / "pattern.json").write_text(PATTERN)
    assert main(["test-pattern", f"@{tmp_path / 'pattern.json'}", str(path)]) == 1
    assert capsys.readouterr().out == (
        f"{path}: does not match, 1 of 2 hold: date: got '2026-11-21', wanted '2026-11-22'\n"
    )


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(ORDERS).encode())))
    assert main(["test-pattern", PATTERN, "-"]) == 0
    assert capsys.readouterr().out == "-: matches\n"


def test_a_whole_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "messages.jsonl"
    told = {"key": "store-4", "headers": {"type": "close"}, "topic": "etl", "timestamp": "2026-11-22T10:00:00+01:00"}
    path.write_text("\n".join(map(json.dumps, [{**told, "body": ORDERS}, {**told, "key": "store-5", "text": "no"}])))
    pattern = {
        "$message": {
            "key": [{"prefix": "store-"}],
            "headers": {"type": ["close"]},
            "topic": ["etl"],
            "timestamp": [{"prefix": "2026-11-22T09"}],
        },
        "table": ["orders"],
    }
    assert main(["test-pattern", json.dumps(pattern), str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}:1: matches",
        f"{path}:2: does not match, 4 of 6 hold: body: not a JSON object, wanted one",
    ]


def test_a_body_with_one_field_is_no_message(tmp_path: Path) -> None:
    path = tmp_path / "body.json"
    path.write_text('{"text": "done"}')
    assert main(["test-pattern", '{"text": ["done"]}', str(path)]) == 0
    assert main(["test-pattern", '{"$message": {"key": [{"exists": false}]}, "text": ["done"]}', str(path)]) == 1


@pytest.mark.parametrize(
    ("pattern", "text", "error"),
    [
        ("{", "{}", "PATTERN is no JSON: "),
        ("@nowhere.json", "{}", "nowhere.json cannot be read: "),
        ('{"a": []}', "{}", "PATTERN['a']: an empty list allows nothing"),
        ('{"a": [1]}', "{}\n{", "line 2 is no JSON document"),
    ],
)
def test_errors(pattern: str, text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    assert main(["test-pattern", pattern, str(path)]) == 2
    assert error in capsys.readouterr().err
    assert main(["test-pattern", '{"a": [1]}', str(tmp_path / "none")]) == 2
