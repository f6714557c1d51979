"""NATS with JetStream, from Debian's package: a real server on a free port of the loopback interface.

Stopped (or killed) and started again, it has the same streams.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from servers.certificates import Authority
from servers.ports import free_port
from servers.process import accepts_connections
from servers.server import Server, installed

__all__ = ["Nats", "find_nats"]


def find_nats() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin") or shutil.which("nats-server")
    return Path(found) if found else None


class Nats(Server):
    """One server.

    :param authorization: the inside of the configuration's block of this name; without one, everyone may connect.
    :param tls: clients must use TLS, with a certificate of :attr:`authority` if they show one.
    :param settings: further lines of the configuration.
    :raises ServerFailed: when NATS is not installed.
    """

    name = "nats"

    def __init__(self, *, authorization: str = "", tls: bool = False, settings: str = "") -> None:
        self._program = installed("NATS", find_nats(), "nats-server")
        super().__init__()
        self.port = free_port()
        self.authority = Authority(self.folder) if tls else None
        self._config = self.folder / "nats.conf"
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

    def command(self) -> Sequence[str | Path]:
        return [self._program, "-c", self._config]

    def ready(self) -> bool:
        # It listens to clients last of all, when its streams are recovered.
        return accepts_connections(self.port)
