"""For all tests: ending the run ends what it started."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from types import FrameType

import pytest

# Importing Airflow makes a home and reads its configuration: never the home of whoever runs the tests.
_HOME = tempfile.mkdtemp(prefix="event-triggers-tests-")
os.environ["AIRFLOW_HOME"] = _HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


@pytest.fixture(scope="session", autouse=True)
def collector() -> None:
    """Python's collector stays as it is: what a test leaves behind is noticed then, and not many tests later."""
    from event_triggers import garbage

    garbage._calmed = True


def pytest_unconfigure() -> None:
    """Remove that home."""
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that fixtures stop their servers."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    pytest.exit(f"ended by signal {number}", returncode=128 + number)
