"""Redis, from Debian's package: a real server on a free port of the loopback interface, with its own folder.

Stopped (or killed) and started again, it has the same data if it was asked to be persistent.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.ports import free_port
from servers.process import accepts_connections
from servers.server import Server, installed

__all__ = ["Redis", "find_redis"]


def find_redis() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class Redis(Server):
    """One server.

    :param password: what clients must give; with none, everyone may connect.
    :param persistent: keep the data over a restart and a crash: every write is on disk before it is answered.
    :param settings: further settings, in the names of ``redis.conf``.
    :raises ServerFailed: when Redis is not installed.
    """

    name = "redis"

    def __init__(
        self,
        *,
        password: str | None = None,
        persistent: bool = False,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self._program = installed("Redis", find_redis(), "redis-server")
        super().__init__()
        self.host = "127.0.0.1"
        self.port = free_port()
        self.password = password
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
    def url(self) -> str:
        """Where it listens, with the password, for database 0."""
        login = "" if self.password is None else f":{self.password}@"
        return f"redis://{login}{self.host}:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        return [self._program, self._config]

    def ready(self) -> bool:
        # It listens before its data is loaded; then it refuses commands with -LOADING. A missing password is an answer.
        if not accepts_connections(self.port):
            return False
        with socket.create_connection((self.host, self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
