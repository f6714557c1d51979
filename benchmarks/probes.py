"""What Linux knows of running processes: memory, CPU time, connections."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["anonymous_bytes", "children", "connections", "cpu_seconds", "cpu_share"]

_TICKS = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def anonymous_bytes(pids: Iterable[int]) -> int:
    """The memory that these processes have taken for their data.

    A page that a fork left shared counts in each of them from the beginning: when a garbage collection writes to it and
    the system copies it, none of them holds more than before.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that these processes have used so far, in the kernel and outside."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def cpu_share(pids: Iterable[int], seconds: float) -> float:
    """How much of a core these processes use, for so many seconds from now."""
    watched = list(pids)
    began, used = time.monotonic(), cpu_seconds(watched)
    time.sleep(seconds)
    return (cpu_seconds(watched) - used) / (time.monotonic() - began)


def connections(pids: Iterable[int], port: int) -> int:
    """How many TCP connections these processes have to this port."""
    held: set[str] = set()
    found = 0
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = descriptor.readlink().name
                if target.startswith("socket:["):
                    held.add(target.removeprefix("socket:[").rstrip("]"))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                remote, state, inode = int(fields[2].rpartition(":")[2], 16), fields[3], fields[9]
                if remote == port and state == _ESTABLISHED and inode in held:
                    held.discard(inode)
                    found += 1
    return found
