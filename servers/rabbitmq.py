"""RabbitMQ, from Debian's package: a real AMQP broker on free ports, with its own folder, name and cookie.

Stopped (or killed) and started again, it has the same durable queues. Erlang finds its nodes through a daemon, epmd,
which it would start by itself and leave behind; this one is started here, on a port of its own, and ended with the
broker.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from servers.certificates import Authority
from servers.ports import free_port
from servers.process import ManagedProcess, accepts_connections
from servers.server import Server, installed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RabbitMq", "find_rabbitmq"]

# Debian's rabbitmq-server on the PATH insists on the system's user and folders; this is the one behind it.
_PLACES = "/usr/lib/rabbitmq/bin:/usr/local/sbin:/opt/homebrew/sbin"


def find_rabbitmq() -> Path | None:
    """The server's program, or ``None``."""
    found = shutil.which("rabbitmq-server", path=_PLACES)
    return Path(found) if found and shutil.which("epmd") else None


class RabbitMq(Server):
    """One broker.

    :param tls: also listen with TLS on :attr:`tls_port`, with a certificate of :attr:`authority`.
    :param users: names and passwords, beside ``guest``; all may do everything in all virtual hosts.
    :param vhosts: virtual hosts beside ``/``.
    :param settings: further settings, in the names of ``rabbitmq.conf``.
    :raises ServerFailed: when RabbitMQ is not installed.
    """

    name = "rabbitmq"
    ready_within = 120
    ended_within = 30

    def __init__(
        self,
        *,
        tls: bool = False,
        users: Mapping[str, str] | None = None,
        vhosts: tuple[str, ...] = (),
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self._program = installed("RabbitMQ", find_rabbitmq(), "rabbitmq-server")
        super().__init__()
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self.authority = Authority(self.folder) if tls else None
        self._distribution, self._epmd_port = free_port(), free_port()
        self._epmd: ManagedProcess | None = None
        (self.folder / "definitions.json").write_text(
            json.dumps(_definitions({"guest": "guest", **(users or {})}, ("/", *vhosts)))
        )
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("\n".join(self._lines(settings or {})) + "\n")

    def _lines(self, settings: Mapping[str, str | int]) -> list[str]:
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", f"load_definitions = {self.folder}/definitions.json"]
        # However full the disk of this machine is, and however slow it is: an alarm would block publishers.
        lines += ["disk_free_limit.absolute = 1MB", "log.console = true", "log.console.level = info"]
        if self.authority is not None:
            server = self.authority.server("localhost", "127.0.0.1")
            lines += [f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}"]
            lines += [f"ssl_options.cacertfile = {self.authority.certificate}"]
            lines += [f"ssl_options.certfile = {server.certificate}", f"ssl_options.keyfile = {server.key}"]
            # A client may show a certificate; one that is not of this authority is refused.
            lines += ["ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = false"]
        return [*lines, *(f"{name} = {value}" for name, value in settings.items())]

    @property
    def url(self) -> str:
        """For clients other than ours."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> Self:
        if self._epmd is None:
            command = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            self._epmd = ManagedProcess("epmd", command, log=self.folder / "epmd.log", env=self.environment())
            self._epmd.start(lambda: accepts_connections(self._epmd_port), timeout=20)
        return super().start()

    def command(self) -> Sequence[str | Path]:
        return [self._program]

    def ready(self) -> bool:
        return all(accepts_connections(port) for port in (self.port, self.tls_port) if port)

    def environment(self) -> Mapping[str, str]:
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(10))
            cookie.chmod(0o400)
        return {
            **os.environ,
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"event-triggers-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "feature_flags"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            # Erlang takes the place of the script, so that it is our child itself and no shell's.
            "RUNNING_UNDER_SYSTEMD": "true",
            # Idle schedulers sleep at once: the machine is shared.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def close(self) -> None:
        """End it and its epmd, and remove its folder."""
        self.stop()
        if self._epmd is not None:
            self._epmd.stop()
        super().close()


def _definitions(users: Mapping[str, str], vhosts: tuple[str, ...]) -> dict[str, object]:
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [{"name": name, "password": word, "tags": "administrator"} for name, word in users.items()],
        "vhosts": [{"name": vhost} for vhost in vhosts],
        "permissions": [{"user": user, "vhost": vhost, **everything} for user in users for vhost in vhosts],
        "queues": [],
        "exchanges": [],
        "bindings": [],
    }
