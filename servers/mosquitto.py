"""Eclipse Mosquitto, from Debian's package: a real MQTT broker on free ports, with its own folder.

Stopped (or killed) and started again, it has the same sessions, queued and retained messages, if it was asked to be
persistent. Debian's build has no websockets.
"""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.certificates import Authority
from servers.ports import free_port
from servers.process import accepts_connections
from servers.server import Server, installed

__all__ = ["Mosquitto", "find_mosquitto"]


def find_mosquitto() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin") or shutil.which("mosquitto")
    return Path(found) if found else None


class Mosquitto(Server):
    """One broker.

    :param users: names and passwords; with none, everyone may connect.
    :param acl: the lines of an access list, see ``mosquitto.conf(5)``.
    :param persistent: keep sessions and messages over a restart.
    :param tls: also listen with TLS on :attr:`tls_port`, with a certificate of :attr:`authority`.
    :param client_certificates: clients of the TLS listener must show a certificate of :attr:`authority`.
    :param settings: further settings, in the names of ``mosquitto.conf(5)``.
    :raises ServerFailed: when Mosquitto is not installed.
    """

    name = "mosquitto"

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        acl: str = "",
        persistent: bool = False,
        tls: bool = False,
        client_certificates: bool = False,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self._program = installed("Mosquitto", find_mosquitto(), "mosquitto")
        super().__init__()
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self.authority = Authority(self.folder) if tls else None
        self._config = self.folder / "mosquitto.conf"
        lines = [*self._general(persistent, settings or {}), *self._access(users, acl)]
        if self.authority is not None:
            lines += self._tls(self.authority, client_certificates)
        self._config.write_text("\n".join(lines) + "\n")

    def _general(self, persistent: bool, settings: Mapping[str, str | int]) -> list[str]:
        # Into a file of its own, which it writes line by line; what it prints is held back in its buffer.
        lines = [f"user {getpass.getuser()}", f"log_dest file {self.log}", "log_type all"]
        lines += ["log_timestamp_format %H:%M:%S"]
        if persistent:
            # Written when it is told to end, not only now and then.
            lines += ["persistence true", f"persistence_location {self.folder}/", "autosave_interval 1"]
            lines += ["autosave_on_changes true"]
        return [*lines, *(f"{name} {value}" for name, value in settings.items())]

    def _access(self, users: Mapping[str, str] | None, acl: str) -> list[str]:
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(not users).lower()}"]
        if users:
            path = self.folder / "passwords"
            path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
            path.chmod(0o600)
            subprocess.run(["mosquitto_passwd", "-U", path], check=True, capture_output=True, timeout=30)
            lines.append(f"password_file {path}")
        if acl:
            path = self.folder / "acl"
            path.write_text(acl)
            path.chmod(0o600)
            lines.append(f"acl_file {path}")
        return lines

    def _tls(self, authority: Authority, client_certificates: bool) -> list[str]:
        server = authority.server("localhost", "127.0.0.1")
        return [
            f"listener {self.tls_port} 127.0.0.1",
            f"cafile {authority.certificate}",
            f"certfile {server.certificate}",
            f"keyfile {server.key}",
            f"require_certificate {str(client_certificates).lower()}",
        ]

    @property
    def log(self) -> Path:
        """What the broker says, every packet of it."""
        return self.folder / "mosquitto.log"

    def command(self) -> Sequence[str | Path]:
        return [self._program, "-c", self._config]

    def ready(self) -> bool:
        return all(accepts_connections(port) for port in (self.port, self.tls_port) if port)
