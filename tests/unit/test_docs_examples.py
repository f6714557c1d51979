"""The examples of ``docs/howto``: each DAG is parsed, its group is given the messages shown, and ends as shown."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from event_triggers.offline import command
from event_triggers.offline.dagfile import find_sensor
from event_triggers.offline.report import report
from tests.unit.dag_kit import in_the_database

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
_BLOCK = re.compile(r'^```(\w+) title="([^"]*)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_OTHERS = ("custom-source.md", "testing-dags.md")
"""Pages whose blocks are whole files: test_docs_testing.py and test_run_dag.py run them."""
_COMMAND = "python -m event_triggers test-group "


class Example(NamedTuple):
    """A DAG, messages, the command and what it prints, as they follow each other in a page."""

    dag: str
    messages: str
    arguments: list[str]
    output: str


def pages() -> list[Path]:
    return [page for page in sorted(HOWTO.glob("*.md")) if page.name not in _OTHERS]


def examples() -> Iterator[Example]:
    for page in pages():
        blocks: dict[str, str] = {}
        for language, title, text in _BLOCK.findall(page.read_text()):
            if title.startswith(_COMMAND):
                arguments = shlex.split(title.removeprefix(_COMMAND))
                yield Example(blocks[arguments[0]], blocks[arguments[2]], arguments, text)
            else:
                assert (language, title.rpartition(".")[2]) in (("python", "py"), ("json", "jsonl")), title
                blocks[title] = text


EXAMPLES = list(examples())


def test_every_block_with_a_title_belongs_to_an_example() -> None:
    shown = [title for page in pages() for _, title, _ in _BLOCK.findall(page.read_text())]
    assert sum(title.endswith(".py") for title in shown) == len(EXAMPLES) >= 14
    assert sum(title == "messages.jsonl" for title in shown) == len(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.arguments[0])
def test_it_ends_as_shown(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(example.arguments[0]).write_text(example.dag)
    Path(example.arguments[2]).write_text(example.messages)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(example.arguments)
    assert "\n".join(report(command.replayed_by(arguments))) + "\n" == example.output
    in_the_database(find_sensor(arguments.dag_file, arguments.group).dag)
