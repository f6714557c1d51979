"""For all tests: ending the run ends what it started."""

from __future__ import annotations

import signal
from types import FrameType

import pytest


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that fixtures stop their servers."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    pytest.exit(f"ended by signal {number}", returncode=128 + number)
