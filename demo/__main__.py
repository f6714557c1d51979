"""``python -m demo``: exits 0 only when everything was as promised.

``KEEP=1`` in the environment leaves Airflow's page open at the end, until Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import time

from demo.belongings import Belongings, Interrupted
from demo.run import Demo
from demo.view import View

__all__ = ["main"]


def main() -> int:
    """Run the demo and return the exit status."""
    began = time.monotonic()
    view = View()
    belongings = Belongings()
    status = 1
    try:
        try:
            status = _run(belongings, view)
        finally:
            belongings.close()
    except Interrupted as interrupt:
        status = 128 + interrupt.number
        view.plain(f"\ninterrupted by {interrupt}")
    finally:
        # Again, for an interrupt that came between the work and its end.
        belongings.close()
    view.plain(f"\n{_VERDICTS.get(status, 'ended')} after {time.monotonic() - began:.0f} s; nothing is left running")
    return status


_VERDICTS = {0: "everything was as promised", 1: "NOT everything was as promised"}


def _run(belongings: Belongings, view: View) -> int:
    demo = Demo(belongings, view)
    try:
        demo.start()
        demo.send(demo.story)
        status = 0 if demo.finish() else 1
    except Exception as error:  # whatever it was, the demo has failed and says so
        view.leave()
        view.plain(f"\nFAILED: {type(error).__name__}: {error}")
        status = 1
    if _keep() and hasattr(demo, "watch"):
        _stay(demo, view)
    return status


def _keep() -> bool:
    return os.environ.get("KEEP", "") not in ("", "0")


def _stay(demo: Demo, view: View) -> None:
    run = f"{demo.airflow.url}/dags/daily_close/runs/{demo.watch.run_id}"
    view.plain(f"\nAirflow's page stays open (no login): {run}\nCtrl-C ends it.")
    try:
        while True:
            demo.belongings.pause(3600)
    except Interrupted:
        view.plain("")


if __name__ == "__main__":
    sys.exit(main())
