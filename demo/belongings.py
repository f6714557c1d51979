"""What the demo owns while it runs, and gives back however it ends.

Flow: everything is made under one temporary folder and registered here before it is started; :meth:`Belongings.close`
ends it all, newest first, then whatever process is left below ours, then removes the folder.

Invariants:

* A signal raises :class:`Interrupted` in the main thread once, and never while closing.
* :meth:`Belongings.close` can be called again, and goes on where an interrupt has cut it off.
* On Linux an orphan of ours (a worker of an ended scheduler, a server whose start was cut off) becomes our child, so
  it is found and ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

__all__ = ["Belongings", "Interrupted"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36


class Interrupted(BaseException):
    """The demo was told to end, by Ctrl-C or another signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Belongings:
    """Ends and removes everything at the end.

    :attr:`folder` is the one temporary folder; :mod:`tempfile` of this process and of its children uses it.
    """

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []
        self._closing = False
        self._interrupted: int | None = None
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        self.folder = Path(tempfile.mkdtemp(prefix="event-triggers-demo-"))
        tempfile.tempdir = str(self.folder)
        os.environ["TMPDIR"] = str(self.folder)
        _adopt_orphans()

    def add(self, closer: Callable[[], object]) -> None:
        """Call this at the end. Register it before what it ends is started."""
        self._closers.append(closer)

    def check(self) -> None:
        """Raise what a signal could not raise, because it came inside a finaliser.

        :raises Interrupted: when we were told to end.
        """
        if self._interrupted is not None and not self._closing:
            raise Interrupted(self._interrupted)

    def pause(self, seconds: float) -> None:
        """Sleep, but not through an interrupt."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.5))
        self.check()

    def close(self) -> None:
        """End and remove everything. Signals are ignored meanwhile; it takes seconds at most."""
        self._closing = True
        while self._closers:
            try:
                self._closers.pop()()
            except Exception as error:  # the rest must be ended all the same
                print(f"demo: while ending: {type(error).__name__}: {error}", file=sys.stderr)
        _end_children()
        shutil.rmtree(self.folder, ignore_errors=True)
        tempfile.tempdir = None
        os.environ.pop("TMPDIR", None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted is None and not self._closing:
            self._interrupted = number
            raise Interrupted(number)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_children() -> None:
    """Kill what is left; the children of each one that ends become ours, so look again until there is none."""
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # Behind the name, which stands in brackets and may hold anything: the state and the parent.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found
