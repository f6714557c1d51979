"""NATS with JetStream, from Debian's package: a real server on a free port of the loopback interface.

Port and folder belong to the server, not to its process: stopped (or killed) and started again, it is the same server
with the same streams.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from servers.certificates import Authority
from servers.ports import free_port
from servers.process import ManagedProcess, ServerFailed, accepts_connections

__all__ = ["Nats", "find_nats"]


def find_nats() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin") or shutil.which("nats-server")
    return Path(found) if found else None


class Nats:
    """One server. A context manager: it is running inside, and gone afterwards.

    :param authorization: the inside of the configuration's block of this name; without one, everyone may connect.
    :param tls: clients must use TLS, with a certificate of :attr:`authority` if they show one.
    :param settings: further lines of the configuration.
    :raises ServerFailed: when NATS is not installed.
    """

    def __init__(self, *, authorization: str = "", tls: bool = False, settings: str = "") -> None:
        program = find_nats()
        if program is None:
            raise ServerFailed("NATS is not installed: no nats-server found; on Debian: apt-get install nats-server")
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="event-triggers-nats-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.authority = Authority(self.folder) if tls else None
        self._config = self.folder / "nats.conf"
        self._process: ManagedProcess | None = None
        lines = [f"listen: 127.0.0.1:{self.port}", f'jetstream {{ store_dir: "{self.folder}/data" }}', settings]
        if authorization:
            lines.append(f"authorization {{ {authorization} }}")
        if self.authority is not None:
            server = self.authority.server("localhost", "127.0.0.1")
            files = {"cert_file": server.certificate, "key_file": server.key, "ca_file": self.authority.certificate}
            lines += ["tls {", *(f'  {name}: "{path}"' for name, path in files.items()), "}"]
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o600)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "nats.log"

    def start(self) -> Nats:
        """Start it and return when it listens.

        :raises ServerFailed: when it does not.
        """
        self._process = ManagedProcess("nats", [self._program, "-c", self._config], log=self.log)
        # It listens to clients last of all, when its streams are recovered.
        self._process.start(lambda: accepts_connections(self.port), timeout=20)
        return self

    def stop(self) -> None:
        """End it; :meth:`start` goes on with the same port and data."""
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

    def __enter__(self) -> Nats:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()
