"""What the servers here have in common: a program with a folder of its own, started, ended and started again.

Ports and folder belong to the server, not to its process: stopped (or killed) and started again, it is the same server,
with whatever data its program keeps in its folder.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from servers.process import ManagedProcess, ServerFailed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Server", "installed"]


def installed(product: str, program: Path | None, package: str) -> Path:
    """The program of a product, when it is there.

    :raises ServerFailed: naming the Debian package that has it, when it is not.
    """
    if program is None:
        raise ServerFailed(
            f"{product} is not installed: its server was not found; on Debian: apt-get install {package}"
        )
    return program


class Server(ABC):
    """One server. A context manager: it is running inside, and nothing is left afterwards."""

    name: ClassVar[str]
    ready_within: ClassVar[float] = 20
    """Seconds that it may take to start."""
    ended_within: ClassVar[float] = 15
    """Seconds that it may take to end, when it is told to."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"event-triggers-{self.name}-"))
        self._process: ManagedProcess | None = None

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "output.log"

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What starts it.

        :raises ServerFailed: when it cannot be had on this machine.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Whether it takes clients."""

    def environment(self) -> Mapping[str, str] | None:
        """Its whole environment; ``None`` for ours."""
        return None

    def start(self) -> Self:
        """Start it and return when it takes clients.

        :raises ServerFailed: when it ends, or is not ready in time.
        """
        self._process = ManagedProcess(
            self.name, self.command(), log=self.folder / "output.log", env=self.environment(), cwd=self.folder
        )
        self._process.start(self.ready, timeout=self.ready_within)
        return self

    def stop(self) -> None:
        """End it in order; :meth:`start` goes on with the same ports, and with what it keeps."""
        if self._process is not None:
            self._process.stop(timeout=self.ended_within)
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
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()
