"""Redis, from Debian's package: a real server on a free port of the loopback interface, with its own folder.

Port and folder belong to the server, not to its process: stopped (or killed) and started again, it is the same server,
with the same data if it was asked to be persistent.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from servers.ports import free_port
from servers.process import ManagedProcess, ServerFailed, accepts_connections

__all__ = ["Redis", "find_redis"]


def find_redis() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class Redis:
    """One server. A context manager: it is running inside, and gone afterwards.

    :param password: what clients must give; with none, everyone may connect.
    :param persistent: keep the data over a restart and a crash: every write is on disk before it is answered.
    :param settings: further settings, in the names of ``redis.conf``.
    :raises ServerFailed: when Redis is not installed.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        persistent: bool = False,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        program = find_redis()
        if program is None:
            raise ServerFailed("Redis is not installed: no redis-server found; on Debian: apt-get install redis-server")
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="event-triggers-redis-")
        self.folder = Path(self._folder.name)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.password = password
        self._process: ManagedProcess | None = None
        lines = [f"bind {self.host}", f"port {self.port}", f"dir {self.folder}", "daemonize no", "supervised no"]
        lines += ["appendonly yes", "appendfsync always"] if persistent else ["appendonly no"]
        # No dump when it is told to end: what it shall keep is in the append-only file.
        lines.append('save ""')
        if password is not None:
            lines.append(f'requirepass "{password}"')
        lines += [f"{name} {value}" for name, value in (settings or {}).items()]
        self._config = self.folder / "redis.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o600)

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "redis.log"

    @property
    def url(self) -> str:
        """Where it listens, with the password, for database 0."""
        login = "" if self.password is None else f":{self.password}@"
        return f"redis://{login}{self.host}:{self.port}/0"

    def start(self) -> Redis:
        """Start it and return when it answers.

        :raises ServerFailed: when it does not.
        """
        self._process = ManagedProcess("redis", [self._program, self._config], log=self.log)
        self._process.start(self._answers, timeout=20)
        return self

    def _answers(self) -> bool:
        # It listens before its data is loaded; then it refuses commands with -LOADING. A missing password is an answer.
        if not accepts_connections(self.port):
            return False
        with socket.create_connection((self.host, self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))

    def stop(self) -> None:
        """End it; :meth:`start` goes on with the same port and, if persistent, the same data."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Break every connection and be there again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove its folder."""
        self.stop()
        self._folder.cleanup()

    def __enter__(self) -> Redis:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()
