"""The guide's tables are true: every pattern, document and result in docs/patterns.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.matching import PatternIndex, check_pattern, explain, matches
from event_triggers.message import Message
from event_triggers.offline.lines import read_line

GUIDE = (Path(__file__).parents[2] / "docs" / "patterns.md").read_text()
ROW = re.compile(r"^\| `(.+?)` \| `(.+?)` \| (yes|no) \|$", re.MULTILINE)
MISTAKE = re.compile(r"^\| `(\{.+?\})` \| `(match\[.+?)` \|$", re.MULTILINE)


@pytest.mark.parametrize(("pattern", "document", "result"), ROW.findall(GUIDE))
def test_examples(pattern: str, document: str, result: str) -> None:
    line = read_line("guide", 1, document.encode())
    message = Message(
        "kafka", line.stream or "", "0", "0", line.body, line.key, headers=line.headers, timestamp=line.timestamp
    )
    wanted = json.loads(pattern)
    assert matches(wanted, message) is (result == "yes")
    assert (explain(wanted, message) is None) is (result == "yes")
    index: PatternIndex[str] = PatternIndex()
    index.add(wanted, "token")
    assert index.matching(message) == (["token"] if result == "yes" else [])


@pytest.mark.parametrize(("pattern", "text"), MISTAKE.findall(GUIDE))
def test_mistakes(pattern: str, text: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        check_pattern(json.loads(pattern))
    assert str(refused.value) == text


def test_every_row_is_run() -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `{")]
    different = GUIDE[GUIDE.index("## Where it differs") :]
    others = [line for line in different.splitlines() if line.startswith("| `{")]
    assert len(ROW.findall(GUIDE)) + len(MISTAKE.findall(GUIDE)) + len(others) == len(rows)
    assert len(ROW.findall(GUIDE)) > 50
