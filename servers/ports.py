"""Ports for servers that are started later, or again.

A port that the system picks is free only as long as it is held: the system may give it to the next outgoing
connection, or to the next who asks, before the server is there or while it is restarted. So these ports lie below those
that systems hand out by themselves, and whoever gets one holds it as a lock until its process ends. The locks are byte
ranges of one file, so a process that is killed leaves nothing held.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["Ports", "free_port"]

# The ephemeral ports of IANA, Linux and macOS begin above; few well-known services listen within.
_PORTS = range(10_000, 32_768)
# Tests seed the other one, and processes that begin alike would meet.
_chance = random.SystemRandom()


class Ports:
    """Ports of the loopback interface, shared by all processes that use the same file.

    Not for use on both sides of a fork: a child has none of the locks.

    :param locks: made if it is not there. This process must open it nowhere else: closing it would give up all locks.
    """

    def __init__(self, ports: Sequence[int], locks: Path) -> None:
        self._ports = ports
        self._locks = os.open(locks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._given: set[int] = set()
        self._giving = threading.Lock()

    def take(self) -> int:
        """A port that nobody listens on, and that no other call gets, here or elsewhere, while this process lives.

        :raises RuntimeError: none is left.
        """
        with self._giving:
            first = _chance.randrange(len(self._ports))
            for port in [*self._ports[first:], *self._ports[:first]]:
                if port not in self._given and self._lock(port) and _free(port):
                    self._given.add(port)
                    return port
        raise RuntimeError(f"none of {len(self._ports)} TCP ports is free on 127.0.0.1")

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


def free_port() -> int:
    """A TCP port of the loopback interface, for this process alone: see :meth:`Ports.take`."""
    return _of_process(os.getpid()).take()


@cache
def _of_process(_: int) -> Ports:
    # By user, since nobody else could open it.
    return Ports(_PORTS, Path(tempfile.gettempdir()) / f"event-triggers-ports-{os.getuid()}")


def _free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
