"""Looks at a triggerer from beside Airflow: how old its heartbeat becomes, and how large it becomes."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path

from servers.airflow import TRIGGERER, Airflow

__all__ = ["HEALTHY", "MOST_GROWTH", "TriggererWatch"]

HEALTHY = 15.0
"""Seconds after which a triggerer that is not heard of is given up, as the harness configures it by default."""
MOST_GROWTH = 100 * 1024 * 1024
"""Bytes that a triggerer may grow by while something is away."""


class TriggererWatch:
    """Keeps the worst of what it has seen. Needs Airflow's database, and nothing else of Airflow.

    :param name: which of the triggerers.
    """

    def __init__(self, airflow: Airflow, name: str = TRIGGERER) -> None:
        self._airflow = airflow
        self._name = name
        self._before = self._memory()
        self.oldest = 0.0
        """Seconds: the age of its heartbeat, at most."""
        self.growth = 0
        """Bytes."""
        self.samples = 0

    def sample(self) -> None:
        """Look once."""
        statement = "SELECT latest_heartbeat FROM job WHERE id = :id"
        ((heartbeat,),) = self._airflow.history.rows(statement, id=self._airflow.jobs[self._name])
        assert isinstance(heartbeat, datetime)
        self.oldest = max(self.oldest, (datetime.now(timezone.utc) - heartbeat).total_seconds())
        self.growth = max(self.growth, self._memory() - self._before)
        self.samples += 1

    def sample_for(self, seconds: float) -> None:
        """Look again and again for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.sample()
            time.sleep(0.2)

    def complaints(self) -> list[str]:
        """What is not as it should be."""
        found = [f"{self._name} was not heard of for {self.oldest:.1f} s"] if self.oldest >= HEALTHY else []
        if self.growth >= MOST_GROWTH:
            found.append(f"{self._name} has grown by {self.growth / 2**20:.0f} MiB")
        return found

    def _memory(self) -> int:
        """Bytes that the processes of the triggerer hold in memory."""
        pages, session = 0, self._airflow.components[self._name].pid
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            pages += int(fields[21]) if int(fields[3]) == session else 0
        return pages * os.sysconf("SC_PAGE_SIZE")
