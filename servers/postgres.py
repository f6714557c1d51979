"""A throw-away PostgreSQL cluster: own port, own folder, durable as far as tests need it.

PostgreSQL refuses to run as root, so there it runs as the system user ``postgres``, whom Debian's package creates.
:meth:`Postgres.stop`, :meth:`Postgres.kill` and :meth:`Postgres.start` again keep port and data; :meth:`Postgres.close`
removes everything.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from servers.ports import free_port
from servers.process import ManagedProcess, ServerFailed

__all__ = ["Postgres", "find_binaries"]

_SETTINGS = {
    # What is committed survives SIGKILL (so synchronous_commit stays on), not the end of the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
}


def find_binaries() -> Path | None:
    """The folder of PostgreSQL's server programs (the newest Debian has, else what is on ``PATH``), or ``None``."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]), reverse=True
    )
    if debian:
        return debian[0].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One cluster. A context manager: it is running inside, and gone afterwards.

    :raises ServerFailed: when PostgreSQL is not installed, or there is no user to run it as.
    """

    user = "postgres"
    """The superuser; no password is asked for on the loopback interface."""

    def __init__(self) -> None:
        binaries = find_binaries()
        if binaries is None:
            raise ServerFailed("PostgreSQL is not installed: no initdb found; on Debian: apt-get install postgresql")
        self._binaries = binaries
        self._as_user = _other_user_than_root()
        self.port = free_port()
        # Not below a folder of pytest's, which the other user may not enter.
        self.home = Path(tempfile.mkdtemp(prefix="event-triggers-postgres-"))
        self._data = self.home / "data"
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._process = ManagedProcess(
            "postgres",
            [*self._as_user, binaries / "postgres", "-D", self._data, "-p", str(self.port), *options],
            log=self.home / "postgres.log",
            cwd=self.home,
        )

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self._process.pid

    def start(self) -> Postgres:
        """Start it, making the cluster first when there is none, and return when it takes connections."""
        if not self._data.exists():
            self._initialise()
        self._process.start(self._ready, timeout=60)
        return self

    def stop(self) -> None:
        """End it as an administrator would who cannot wait: clients are disconnected, what is committed is kept."""
        self._process.stop(number=signal.SIGINT)

    def kill(self) -> None:
        """End it with SIGKILL, all its backends too."""
        # Every backend has a session of its own. They would notice by themselves, but a new postmaster refuses to
        # start while one of them still holds the shared memory.
        backends = _children(self._process.pid) if self._process.running else []
        self._process.kill()
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in backends) and time.monotonic() < deadline:
            time.sleep(0.01)

    def restart(self) -> None:
        """Disconnect every client, and be there again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove its folder."""
        self._process.stop(timeout=5, number=signal.SIGINT)
        shutil.rmtree(self.home, ignore_errors=True)

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database and return its address for SQLAlchemy (psycopg2).

        :param template: a database to copy; nobody may be connected to it.
        """
        self.run_sql(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.run_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def url(self, database: str) -> str:
        """A database's address for SQLAlchemy."""
        return f"postgresql+psycopg2://{self.user}@127.0.0.1:{self.port}/{database}"

    def run_sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement and return what it prints, tab-separated without header.

        :raises ServerFailed: when the statement fails.
        """
        return self._run(
            "psql", "-X", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", *self._address(database), "-c", statement
        )

    def __enter__(self) -> Postgres:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _initialise(self) -> None:
        if self._as_user:
            shutil.chown(self.home, self.user)
        initdb: list[str | Path] = [
            self._binaries / "initdb",
            "-D",
            self._data,
            "-U",
            self.user,
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        self._run_as_user([*initdb, "--locale=C", "--no-sync"])

    def _ready(self) -> bool:
        command: list[str | Path] = [self._binaries / "pg_isready", "-q", *self._address("postgres")]
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0

    def _address(self, database: str) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", database]

    def _run(self, program: str, *arguments: str) -> str:
        return _output([self._binaries / program, *arguments], cwd=self.home)

    def _run_as_user(self, command: Sequence[str | Path]) -> str:
        return _output([*self._as_user, *command], cwd=self.home)


def _output(command: Sequence[str | Path], *, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerFailed(f"{Path(command[0]).name} failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def _other_user_than_root() -> list[str]:
    """What to put before a command so that it does not run as root; nothing when we are not root."""
    if os.geteuid() != 0:
        return []
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        raise ServerFailed("PostgreSQL does not run as root, and there is no user 'postgres' to run it as") from None
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerFailed("PostgreSQL does not run as root, and setpriv (util-linux) is not there to change the user")
    # Unlike su and runuser, setpriv becomes the program, so signals reach PostgreSQL itself.
    return [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]


def _children(parent: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(stat.parent.name))
    return children
