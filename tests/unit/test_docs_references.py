"""The tests that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))

_LINK = re.compile(r"\[([^\]]+)\]\(\.\./(tests/[^)]+)\)")
_NAMED = re.compile(
    r"`((?:unit|property|integration|airflow|chaos|conformance|hooks)/[\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?"
)


def references(text: str) -> list[tuple[str, list[str]]]:
    """The files that a document names, each with the tests (or test classes) that it names there."""
    found = [(path, re.findall(r"`(test_\w+)`", words)) for words, path in _LINK.findall(text)]
    found += [(f"tests/{path}", re.findall(r"`(\w+)`", names)) for path, names in _NAMED.findall(text)]
    return found


@pytest.mark.parametrize("document", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    for path, names in references(document.read_text()):
        code = (ROOT / path).read_text()
        for name in names:
            assert re.search(rf"^\s*(?:async def|def|class) {name}\b", code, re.M), f"{path} has no {name}"


def test_guarantees_name_their_tests() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    rows = text.split("## By broker")[1].split("## What is not")[0].splitlines()
    promises = [row for row in rows if row.startswith("| ") and not row.startswith(("| promise", "| |", "| ---"))]
    assert len(promises) > 20
    unnamed = [row for row in promises if not references(row.rpartition(" | ")[2]) and "the same" not in row]
    assert unnamed == []


def test_every_point_of_security_names_its_test() -> None:
    rows = (ROOT / "docs" / "security.md").read_text().split("## Payloads")[1].splitlines()
    points = [row for row in rows if row.startswith("| ") and not row.startswith(("| guaranteed", "| ---"))]
    assert len(points) > 20
    assert [row for row in points if not references(row.rpartition(" | ")[2])] == []
