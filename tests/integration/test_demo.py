"""The demo as its user runs it: a command that shows everything, and leaves nothing however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
_MARK = "EVENT_TRIGGERS_DEMO_TEST"


class DemoProcess:
    """``python -m demo`` with a temporary folder of its own and a mark that all its processes inherit."""

    def __init__(self, tmp: Path, **env: str) -> None:
        self.mark = uuid.uuid4().hex
        self.tmp = tmp
        self.output = ""
        self._ended = False
        self._read = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={**os.environ, **env, _MARK: self.mark, "TMPDIR": str(tmp)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._collect, name="output of the demo")
        self._reader.start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._read:
                self.output += line
                self._read.notify_all()
        with self._read:
            self._ended = True
            self._read.notify_all()

    def wait_for(self, text: str, timeout: float = 400) -> None:
        """Return when it has printed this."""
        with self._read:
            self._read.wait_for(lambda: text in self.output or self._ended, timeout)
            assert text in self.output, f"{text!r} was not printed:\n{self.output}"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, timeout: float = 400) -> int:
        """Its exit status."""
        status = self._process.wait(timeout)
        self._reader.join(30)
        return status

    def processes(self) -> list[str]:
        """The command lines of all living processes that bear the mark."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{_MARK}={self.mark}" in environ.read_text(errors="replace").split("\0"):
                    found.append((environ.parent / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
        return found

    def left(self) -> tuple[list[str], list[str]]:
        """The processes and files that it has left."""
        return self.processes(), [path.name for path in self.tmp.iterdir()]

    def kill(self) -> None:
        """End it in a hurry, for a test that failed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reader.join(30)
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[DemoProcess]]:
    started: list[DemoProcess] = []
    yield started
    for demo in started:
        demo.kill()


def _start(demos: list[DemoProcess], tmp_path: Path, **env: str) -> DemoProcess:
    demos.append(DemoProcess(tmp_path, **env))
    return demos[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.timeout(600)  # it starts an Airflow
class TestDemo:
    def test_shows_and_checks_everything_and_leaves_nothing(self, demos: list[DemoProcess], tmp_path: Path) -> None:
        demo = _start(demos, tmp_path, KEEP="1")
        demo.wait_for("Ctrl-C ends it")
        for task in ("inputs.orders", "inputs.stock", "inputs.shifts", "close_books"):
            assert re.search(rf" s  {task} +success +\S", demo.output), f"{task} was not shown:\n{demo.output}"
        assert len(re.findall("must not count", demo.output)) == 5
        assert len(re.findall(r"^  ok    ", demo.output, re.MULTILINE)) >= 15
        assert "FAILED" not in demo.output
        address = re.search(r"(http://\S+)/dags/daily_close/runs/", demo.output)
        assert address is not None
        assert _answers(address[1])
        demo.send(signal.SIGINT)
        assert demo.end(60) == 0, demo.output
        assert demo.left() == ([], []), demo.output

    def test_leaves_nothing_when_interrupted(self, demos: list[DemoProcess], tmp_path: Path) -> None:
        demo = _start(demos, tmp_path)
        demo.wait_for("starting Airflow")
        assert demo.processes()
        demo.send(signal.SIGTERM)
        assert demo.end(60) == 128 + signal.SIGTERM, demo.output
        assert demo.left() == ([], []), demo.output


def _answers(url: str) -> bool:
    import httpx

    return httpx.get(f"{url}/api/v2/version", trust_env=False, timeout=30).is_success
