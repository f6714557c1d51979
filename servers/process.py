"""One child process: started in a session of its own, waited for until ready, ended with all its children.

Nothing here knows what the process is. Every server here is a :class:`ManagedProcess` plus a readiness check.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["ManagedProcess", "ServerFailed", "accepts_connections"]


class ServerFailed(RuntimeError):
    """A server ended by itself or did not become ready in time; the end of its log is in the message."""


def accepts_connections(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on this port."""
    with contextlib.closing(socket.socket()) as sock:
        sock.settimeout(1)
        return sock.connect_ex((host, port)) == 0


class ManagedProcess:
    """A child process and everything it starts, as one thing to wait for, stop, kill and read the log of.

    :param name: for messages.
    :param command: program and arguments, without a shell.
    :param log: the file that takes its output.
    :param env: its whole environment; ``None`` for ours.
    :param cwd: its working folder.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = env
        self.cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, ready: Callable[[], bool] | None = None, *, timeout: float = 90) -> ManagedProcess:
        """Start it and return when ``ready()`` holds.

        :raises ServerFailed: when it ends before, or ``timeout`` seconds pass; it is stopped then.
        """
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.env) if self.env is not None else None,
                cwd=self.cwd,
                start_new_session=True,
            )
        if ready is not None:
            self.wait_until(ready, timeout)
        return self

    def wait_until(self, ready: Callable[[], bool], timeout: float = 90) -> None:
        """Return when ``ready()`` holds.

        :raises ServerFailed: when it ends before, or ``timeout`` seconds pass; it is stopped then.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                status = self._process and self._process.returncode
                raise ServerFailed(f"{self.name} ended with status {status}:\n{self.tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerFailed(f"{self.name} was not ready after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.05)

    def stop(self, *, timeout: float = 15, number: int = signal.SIGTERM) -> None:
        """End it with a signal, and what is left of its session after ``timeout`` seconds with SIGKILL."""
        if self._process is None:
            return
        self.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the whole session at once with SIGKILL."""
        if self._process is None:
            return
        self.signal(signal.SIGKILL)
        # A child may have moved to a process group of its own (Airflow's task runners do); it is in our session still.
        for pid in _session_members(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def tail(self, lines: int = 40) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> ManagedProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _session_members(session: int) -> list[int]:
    """The living processes of a session, as far as this system has ``/proc``."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            # The fields behind the name, which stands in brackets and may hold anything: state, parent, group, session.
            state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                members.append(int(stat.parent.name))
    return members
