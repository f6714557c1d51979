"""How long a fault hurt, found afterwards in the task logs and in what became of the markers.

When triggerers were hit: until each of their waits listens again on another triggerer, by the line that the wait
itself logs, or until its sensor has ended. When it was a server: from its return until the next marker is marked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from tests.chaos.faults import Strike

__all__ = ["recovery_of"]

_LISTENS = "every source is connected"
_JOB = re.compile(r"\.trigger\.(\d+)\.log$")


def recovery_of(
    strike: Strike, logs: Path, marks: Iterable[tuple[str, str, float]], sensor_ends: Mapping[str, float]
) -> float | None:
    """Seconds; ``None`` when it cannot be told, because nothing was to be recovered.

    :param logs: the folder of Airflow's task logs.
    :param marks: run, task and time of each marker.
    :param sensor_ends: by run, when its sensor ended.
    """
    if not strike.jobs:
        return min((at - strike.at for _, _, at in marks if at > strike.at), default=None)
    again = []
    for run in strike.runs:
        times = [at for job, at in _began_to_listen(logs, run) if job not in strike.jobs]
        times += [sensor_ends[run]] if run in sensor_ends else []
        again += [min((at - strike.at for at in times if at > strike.at), default=0.0)]
    return max(again, default=None)


def _began_to_listen(logs: Path, run: str) -> list[tuple[int, float]]:
    """By which triggerer, and when."""
    found = []
    for path in logs.glob(f"dag_id=*/run_id={run}/task_id=*/*.log*"):
        job = _JOB.search(path.name)
        if job is None:
            continue
        for line in path.read_text(errors="replace").splitlines():
            if _LISTENS in line:
                at = str(json.loads(line)["timestamp"]).replace("Z", "+00:00")
                found.append((int(job[1]), datetime.fromisoformat(at).timestamp()))
    return found
