"""The demo itself: start, send, watch, check, say how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timezone
from pathlib import Path

from demo.belongings import Belongings
from demo.brokers import Brokers
from demo.checks import Sent, all_checks
from demo.story import EVENTS, Step, write
from demo.view import View
from demo.watch import CLOSE, DAG_ID, SENSOR, Watch, marker
from servers.airflow import Airflow
from servers.airflow_client import TimedOut

__all__ = ["Demo"]

ROOT = Path(__file__).resolve().parent.parent

_LOOK_EVERY = 0.25
_STEP_WITHIN = 60.0
_SHOWN_FOR = 1.0
"""Seconds that each message is left alone, so that a person can follow."""


class Demo:
    """One run of the example DAG, from the first server to the last check.

    :param belongings: takes what is to be ended.
    :param view: where it is shown.
    :param day: the date of the run.
    """

    def __init__(self, belongings: Belongings, view: View, day: date | None = None) -> None:
        self.belongings = belongings
        self.view = view
        self.day = day or datetime.now(timezone.utc).date()
        self.story = write(self.day)
        self.sent: list[Sent] = []
        self.brokers: Brokers
        self.airflow: Airflow
        self.watch: Watch

    def start(self) -> None:
        """Start the brokers and Airflow, and a run of the DAG; return when its sensor waits in the triggerer."""
        self.view.say("starting three brokers (no Docker, no Java)")
        self.brokers = Brokers(self.belongings, lambda text: self.view.say("  " + text))
        self.airflow = Airflow(
            dags=[ROOT / "dags"],
            python_path=[ROOT],
            # No runs by the clock: the demo starts its own.
            env={**self.brokers.connections, "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"},
        )
        self.belongings.add(self.airflow.close)
        self.view.say("starting Airflow: API server, scheduler, DAG processor, triggerer (20 s or more)")
        self.airflow.start()
        client = self.airflow.client()
        version = client.call("GET", "/version")["version"]
        self.view.say(f"Airflow {version} runs at {self.airflow.url}")
        client.wait_parsed(DAG_ID)
        run_id = client.trigger(DAG_ID, logical_date=f"{self.day.isoformat()}T00:00:00Z")
        self.watch = Watch(self.airflow, run_id)
        self.view.say(f"started a run of {DAG_ID} for {self.day.isoformat()}")
        self._until(lambda: self.watch.states().get(SENSOR) == "deferred", "the sensor deferred")
        self.view.say("the triggerer starts to wait (the first connection it looks up takes it 5 s or more)")
        self._until(lambda: "every source is connected" in self.watch.log(SENSOR), "the wait began")

    def send(self, steps: Sequence[Step]) -> None:
        """Send messages one after the other, each when the one before has done what it was to do."""
        for step in steps:
            at = time.time()
            self.brokers.publish(step)
            self.sent.append(Sent(step, at))
            verdict = step.about if step.event else f"must not count: {step.about}"
            self.view.say(f"sent to {step.broker} {step.where}: {step.body.decode()}   ({verdict})")
            self._settle(step, time.monotonic() + _SHOWN_FOR)

    def finish(self) -> bool:
        """Wait for the end of the run, check everything, print it; whether everything was as promised."""
        self._until(lambda: self.watch.states().get(CLOSE) == "success", f"{CLOSE} ended")
        run_state = self.airflow.client().wait_run(DAG_ID, self.watch.run_id)
        self.view.show(self.watch.rows())
        self.view.leave()
        self.view.plain("")
        good = run_state == "success"
        for check in all_checks(self.watch, self.brokers, self.day, self.sent):
            self.belongings.check()
            good = good and check.kept
            seen = "" if check.kept else f"\n          {check.seen}"
            self.view.plain(f"  {'ok    ' if check.kept else 'FAILED'}  {check.promise}{seen}")
        self._say_timings()
        return good

    def _settle(self, step: Step, shown_until: float) -> None:
        if step.event is not None:
            number = sum(one.step.event == step.event for one in self.sent)
            self._until(lambda: self._arrived(step, number), f"the message arrived at {marker(step.event or '')}")
        self._until(lambda: time.monotonic() >= shown_until, "a moment has passed")

    def _arrived(self, step: Step, number: int) -> bool:
        task_id = marker(step.event or "")
        if step.completes:
            return self.watch.turned(task_id) is not None
        return f"({number} of " in self.watch.note(task_id)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Show what happens until ``condition`` holds.

        :raises TimedOut: when it does not within a minute.
        """
        deadline = time.monotonic() + _STEP_WITHIN
        while True:
            self.belongings.check()
            self.view.show(self.watch.rows())
            if condition():
                return
            if time.monotonic() > deadline:
                seen = f"the tasks are {self.watch.states()}\n{self.watch.log(SENSOR)}\n{self.airflow.diagnose()}"
                raise TimedOut(f"not within {_STEP_WITHIN:.0f} s: {what}; {seen}")
            time.sleep(_LOOK_EVERY)

    def _say_timings(self) -> None:
        self.view.plain("\n  from sending a message to its green marker:")
        for event in EVENTS:
            last = next(one for one in reversed(self.sent) if one.step.event == event)
            turned = self.watch.turned(marker(event))
            took = f"{(turned - last.at) * 1000:6.0f} ms" if turned else "never"
            self.view.plain(f"    {event:<8} {took}   ({last.step.broker})")
        last_marker, started = self.watch.turned(marker(EVENTS[-1])), self.watch.turned(CLOSE, "running")
        if last_marker and started:
            self.view.plain(f"    then {(started - last_marker) * 1000:.0f} ms until {CLOSE} ran")
