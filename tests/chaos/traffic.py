"""Sends a plan: one message after the other, each written down when its broker has it.

Runs are started some time before they are sent something, and no more of them than may be unfinished at a time, so that
a slow machine is not buried. A message over MQTT waits until the broker has the group's subscription, since before that
it would be nobody's; one over Kafka or SQS may come before the group listens.

Faults are tied to the plan: :meth:`Traffic.reach` returns when so many messages are out, and none beyond that point is
sent until :meth:`Traffic.go_on`. So the same seed breaks things at the same place.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
from confluent_kafka import Producer

from tests.chaos.mqtt_publisher import MqttPublisher
from tests.chaos.plan import DAG_ID, TOPIC, Sending, run_id_of
from tests.chaos.world import World

__all__ = ["Traffic"]

_AHEAD = 8
"""How many runs are started before they are sent anything."""
_MOST_UNFINISHED = 2 * _AHEAD
"""How many runs, beyond those that are still being sent something, may be unfinished when another is started."""
_PATIENCE = 900.0
"""Seconds: on a busy machine an API server may take minutes to start, and a run minutes to listen."""


class Traffic:
    """Sends a plan in threads of its own. A context manager.

    :param plan: what to send.
    :param window: how many runs are being sent something at a time.
    :param rate: awaited messages a second, at most.
    :param manifest: the file that takes a JSON line for each message that was sent.
    """

    def __init__(
        self, world: World, plan: Sequence[Sending], *, prefix: str, window: int, rate: float, manifest: Path
    ) -> None:
        self._world = world
        self._plan = plan
        self._prefix = prefix
        self._most_unfinished = window + _MOST_UNFINISHED
        self._pause = 0.5 / rate
        self._manifest = manifest
        self._changed = threading.Condition()
        self._sent = 0
        self._limit: float = 0
        self._wanted_runs = _AHEAD
        self._started: set[int] = set()
        self._subscribed = _Subscriptions(world.mosquitto.log)
        self._stopping = threading.Event()
        self._flow = threading.Lock()
        self._error: BaseException | None = None
        self._producer = Producer(
            {"bootstrap.servers": world.kafka.bootstrap, "enable.idempotence": True, "log_level": 0}
        )
        self._sqs = world.sqs.client()
        self._queue = self._sqs.get_queue_url(QueueName=world.create_queue(prefix))["QueueUrl"]
        self._mqtt = MqttPublisher(_PATIENCE)
        works = (self._send_all, self._start_runs)
        self._threads = [threading.Thread(target=self._guarded, args=(work,), name=work.__name__) for work in works]

    def __enter__(self) -> Traffic:
        self._mqtt.connect(self._world.mosquitto.port)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._mqtt.close()

    # ------------------------------------------------------------------ for those who break things

    def reach(self, position: int) -> None:
        """Send until so many messages are out; return then. What comes behind waits for :meth:`go_on`."""
        with self._changed:
            self._limit = position
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._sent >= position or self._error is not None)
        if self._error is not None:
            raise RuntimeError("nothing is sent any more") from self._error

    def go_on(self) -> None:
        """Send on, up to where :meth:`reach` is called for next."""
        with self._changed:
            self._limit = float("inf")
            self._changed.notify_all()

    def flow(self, messages: int) -> None:
        """Return when so many more messages are out, or all are."""
        self.reach(min(self._sent + messages, len(self._plan)))
        self.go_on()

    @contextmanager
    def without_mosquitto(self) -> Iterator[None]:
        """Nothing is sent inside the context, in which Mosquitto is started again."""
        with self._flow, self._mqtt.cut_off():
            yield

    # ------------------------------------------------------------------ the threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
            raise

    def _start_runs(self) -> None:
        for place, number in enumerate(dict.fromkeys(one.run for one in self._plan)):
            if not self._wait(partial(self._wants, place)):
                return
            while self._too_many():
                if self._stopping.wait(0.5):
                    return
            self._start_run(number)
            with self._changed:
                self._started.add(number)
                self._changed.notify_all()

    def _too_many(self) -> bool:
        try:
            return self._world.unfinished(self._prefix) >= self._most_unfinished
        except Exception:
            return True  # the database is away, on purpose

    def _wants(self, place: int) -> bool:
        return place < self._wanted_runs

    def _may_send(self, number: int) -> bool:
        return number < self._limit and self._plan[number].run in self._started

    def _wait(self, look: Callable[[], bool]) -> bool:
        """Return when ``look()`` holds; ``False`` when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: look() or self._stopping.is_set())
        return not self._stopping.is_set()

    def _start_run(self, number: int) -> None:
        run_id = run_id_of(self._prefix, number)
        body = {"dag_run_id": run_id, "logical_date": None}
        deadline = time.monotonic() + _PATIENCE
        while not self._stopping.is_set():
            try:
                answer = self._world.client.request("POST", f"/dags/{DAG_ID}/dagRuns", json=body)
                if answer.is_success or answer.status_code == httpx.codes.CONFLICT:
                    return
                trouble = f"{answer.status_code} {answer.text[:300]}"
            except httpx.HTTPError as error:
                trouble = repr(error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id} cannot be started: {trouble}")
            self._stopping.wait(0.5)

    def _send_all(self) -> None:
        first_of: dict[int, int] = {}
        for one in self._plan:
            first_of.setdefault(one.run, len(first_of))
        with self._manifest.open("w") as manifest:
            for number, one in enumerate(self._plan):
                with self._changed:
                    self._wanted_runs = max(self._wanted_runs, first_of[one.run] + 1 + _AHEAD)
                    self._changed.notify_all()
                if not self._wait(partial(self._may_send, number)):
                    return
                if one.broker == "mqtt" and not self._subscribed.wait_for(one.run_id, self._stopping):
                    return
                with self._flow:
                    self._send(one)
                line = {
                    "run": one.run_id,
                    "event": one.event,
                    "broker": one.broker,
                    "body": one.body,
                    "at": time.time(),
                }
                manifest.write(json.dumps(line) + "\n")
                with self._changed:
                    self._sent = number + 1
                    self._changed.notify_all()
                self._stopping.wait(self._pause)

    def _send(self, one: Sending) -> None:
        body = json.dumps(one.body)
        if one.broker == "kafka":
            self._producer.produce(TOPIC, body.encode(), key=one.id.encode())
            if self._producer.flush(_PATIENCE):
                raise TimeoutError("Kafka does not take a message")
        elif one.broker == "sqs":
            self._sqs.send_message(QueueUrl=self._queue, MessageBody=body)
        else:
            self._mqtt.publish(f"chaos/{one.run_id}/{one.event or 'other'}", body)


class _Subscriptions:
    """Which runs the MQTT broker has a subscription of, by its log."""

    _PATTERN = re.compile(r"chaos/([^/]+)/\+ \(QoS")

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        self._runs: set[str] = set()

    def wait_for(self, run_id: str, stopping: threading.Event) -> bool:
        """Return when it has; ``False`` when it is over."""
        deadline = time.monotonic() + _PATIENCE
        while run_id not in self._runs:
            with self._log.open() as log:
                log.seek(self._offset)
                new = log.read()
            complete = new[: new.rfind("\n") + 1]
            self._offset += len(complete)
            self._runs |= set(self._PATTERN.findall(complete))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{run_id} does not subscribe")
            if stopping.wait(0.0 if run_id in self._runs else 0.1):
                return False
        return True
