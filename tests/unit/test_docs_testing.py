"""The page on sources of one's own: its files are written as they are printed, and run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
_BLOCK = re.compile(r'^```\w+ title="([^"]*)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: str) -> dict[str, str]:
    """The files that a page prints, by name."""
    return dict(_BLOCK.findall((HOWTO / page).read_text()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in blocks("custom-source.md").items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run_pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    """As a reader who has pytest and this package, and none of the other plugins here, which load slowly."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "event_triggers.pytest_plugin", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=280, check=False, env=environment
    )
    return done.returncode, done.stdout + done.stderr


def test_a_source_of_your_own_passes_the_suite_as_printed(folder: Path) -> None:
    code, said = run_pytest(folder, "-W", "error", "--strict-markers")
    assert code == 0, said
    assert re.search(r"\b2\d passed", said), said
    assert "skipped" not in said


def test_source_has_as_many_lines_as_the_page_says() -> None:
    text = blocks("custom-source.md")["folder_source.py"]
    lines = [line for line in text.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 30


def test_suite_runs_with_pytest_asyncio_in_its_strict_mode(folder: Path) -> None:
    plugin = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    code, said = run_pytest(folder, *plugin, "--strict-markers", "-k", "accepted or json")
    assert code == 0, said
    assert "2 passed" in said


def test_pytest_finds_the_plugin() -> None:
    assert [point.value for point in entry_points(group="pytest11", name="event_triggers")] == [
        "event_triggers.pytest_plugin"
    ]


def test_broken_source_is_told_its_rule(folder: Path) -> None:
    source = folder / "folder_source.py"
    forgetful = source.read_text().replace("(self.folder / message.position).unlink(missing_ok=True)", "pass")
    source.write_text(forgetful)
    code, said = run_pytest(folder, "-k", "accepted")
    assert code == 1
    page = (HOWTO / "custom-source.md").read_text()
    for line in ("Rule: an accepted message", "To mend it: acknowledge in settle()"):
        shown = next(text.strip() for text in page.splitlines() if text.strip().startswith(line))
        assert shown in said, said


def test_source_is_registered_as_printed(folder: Path) -> None:
    registered = re.search(r"entry-points\.(\S+)\]\n(.*)", (folder / "pyproject.toml").read_text())
    assert registered is not None
    group, line = registered[1].strip('"'), registered[2].replace('"', "")
    info = folder / "folder_source-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: folder-source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    command = [sys.executable, "-m", "event_triggers", "sources", "folder"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "folder: Folder of folder-source 1.0, queue, no connection, ready\n" in done.stdout


def test_pytest_plugin_imports_next_to_nothing() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import event_triggers.pytest_plugin;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["event_triggers"]
