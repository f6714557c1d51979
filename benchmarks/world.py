"""Everything that is measured on: Airflow on PostgreSQL with its own processes, and three brokers.

PostgreSQL keeps the time of every commit here, so "in the database" means: where everybody can see it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plan, probes
from benchmarks.database import Database, keep_commit_times
from benchmarks.traffic import Sender
from servers.airflow import API_SERVER, TRIGGERER, Airflow
from servers.airflow_client import AirflowClient, wait_for
from servers.kafka import KafkaCluster
from servers.mosquitto import Mosquitto
from servers.postgres import Postgres
from servers.sqs import MotoServer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CONNECTED", "IDLING", "THRESHOLD", "Brokers", "World"]

ROOT = Path(__file__).parents[1]
THRESHOLD = 8
"""Seconds without a sign of life after which Airflow gives a triggerer's waits to another; its default is 30."""

CONNECTED = "every source is connected"
"""What a group's log says when nothing can be missed any more."""

IDLING = "sleeping 3600 seconds"
"""What the log of Airflow's own idle trigger says."""

_SETTINGS = {
    "TRIGGERER__CAPACITY": "4000",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(THRESHOLD),
    "SCHEDULER__USE_JOB_SCHEDULE": "False",
    # Airflow's default. The tests' scheduler looks five times as often, which takes a core when a thousand runs wait.
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
}


class Brokers:
    """Apache Kafka, moto and Mosquitto. A context manager: they run inside."""

    def __init__(self) -> None:
        self.kafka, self.sqs, self.mosquitto = KafkaCluster(), MotoServer(), Mosquitto()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
            servers = (self.kafka, self.sqs, self.mosquitto)
            started = [pool.submit(server.start) for server in servers]
            for server in servers:
                stack.callback(server.close)
            for one in started:
                one.result()
            self.send = Sender(self.kafka, self.sqs, self.mosquitto)
            stack.callback(self.send.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


class World:
    """Airflow on PostgreSQL, connected to the brokers. A context manager: it runs inside."""

    def __init__(self, brokers: Brokers) -> None:
        self.brokers = brokers
        self.send = brokers.send
        self._numbers = itertools.count(1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.postgres = stack.enter_context(Postgres())
            keep_commit_times(self.postgres)
            self.airflow = stack.enter_context(self._airflow())
            self.database = Database(self.airflow.database_url)
            stack.callback(self.database.close)
            self.database.index_changes()
            self.client: AirflowClient = self.airflow.client("admin")
            for dag_id in plan.DAGS:
                self.client.wait_parsed(dag_id)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _airflow(self) -> Airflow:
        server = Airflow(
            dags=[Path(__file__).parent / "dags"],
            database_url=self.postgres.create_database("airflow"),
            users={"admin": "admin", "marker": "user"},
            python_path=[ROOT],
            env={f"AIRFLOW_CONN_{name}": json.dumps(fields) for name, fields in self._connections().items()},
        )
        server.env["AIRFLOW_CONN_AIRFLOW_API_DEFAULT"] = server.api_connection("marker")
        server.env.update({f"AIRFLOW__{name}": value for name, value in _SETTINGS.items()})
        return server

    def _connections(self) -> Mapping[str, Mapping[str, Any]]:
        sqs, kafka = self.brokers.sqs, {"bootstrap.servers": self.brokers.kafka.bootstrap}
        aws = {"region_name": sqs.region, "endpoint_url": sqs.endpoint_url}
        connections: dict[str, dict[str, Any]] = {
            "BENCH_KAFKA": {"conn_type": "kafka", "extra": kafka},
            "BENCH_AWS": {"conn_type": "aws", "login": sqs.access_key, "password": sqs.secret_key, "extra": aws},
            "BENCH_MQTT": {"conn_type": "mqtt", "host": "127.0.0.1", "port": self.brokers.mosquitto.port},
        }
        for number in range(plan.AWAIT_CONNECTIONS):
            # Sensors that share a consumer group would take each other's messages.
            own = {**kafka, "group.id": f"bench-{number}", "auto.offset.reset": "earliest"}
            connections[plan.await_connection(number).upper()] = {"conn_type": "kafka", "extra": own}
        return connections

    # ------------------------------------------------------------------ runs

    def start_run(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run through the API and return its id."""
        return self.client.trigger(dag_id, run_id=self.new_name(dag_id), conf=conf)

    def new_name(self, prefix: str) -> str:
        """A name that has not been used here."""
        return f"{prefix}-{next(self._numbers)}"

    def start_group(self, dag_id: str, *, timeout: float = 60) -> str:
        """Start a run, and return its id when its group waits and all its streams are connected."""
        (run_id,) = self.start_groups(dag_id, 1, timeout=timeout)
        return run_id

    def start_groups(self, dag_id: str, count: int, *, timeout: float = 60) -> list[str]:
        """Start runs together, and return their ids when all their groups wait."""
        run_ids = [self.start_run(dag_id) for _ in range(count)]
        self.wait_said(dag_id, run_ids, CONNECTED, timeout=timeout)
        return run_ids

    def finish(self, dag_id: str, run_id: str) -> None:
        """End a run that is not needed any more."""
        self.client.mark_run(dag_id, run_id, "failed")

    def wait_said(self, dag_id: str, run_ids: Iterable[str], text: str, *, timeout: float) -> dict[str, float]:
        """Wait until the triggerer that runs now has written this into the log of each of these runs.

        :return: when each was written, as seconds since the epoch.
        :raises TimedOut: when one is still missing in the end.
        """
        # From the back, and no further than the first that is missing: looking at all of them again and again would
        # take the time of those that are looked at.
        missing, found = list(run_ids), dict[str, float]()
        pattern = f"*/*.trigger.{self.airflow.jobs[TRIGGERER]}.log"
        folder = self.airflow.home / "logs" / f"dag_id={dag_id}"

        def all_there() -> bool:
            while missing:
                said = (_said_at(path, text) for path in (folder / f"run_id={missing[-1]}").glob(pattern))
                at = next(filter(None, said), None)
                if at is None:
                    return False
                found[missing.pop()] = at
            return True

        pause = 0.02 if len(missing) == 1 else 0.25
        wait_for(all_there, timeout=timeout, pause=pause, what=lambda: f"{len(missing)} logs of {dag_id} say {text!r}")
        return found

    # ------------------------------------------------------------------ processes

    def triggerer(self) -> list[int]:
        """The two processes of the triggerer: the supervisor, and the one that runs the triggers."""
        supervisor = self.airflow.components[TRIGGERER].pid
        return [supervisor, *probes.children(supervisor)]

    def restart_triggerer(self) -> None:
        """A fresh one."""
        self.airflow.restart_component(TRIGGERER)

    def kafka_connections(self) -> int:
        """How many connections the triggerer has to Kafka."""
        return probes.connections(self.triggerer(), self.brokers.kafka.nodes[0].port)

    def settle(self, *, within: float = 20) -> None:
        """Wait until the triggerer has nothing to do, as far as it can be seen."""
        until = time.monotonic() + within
        while time.monotonic() < until and probes.cpu_share(self.triggerer(), 0.5) > 0.25:
            pass

    @property
    def api_server(self) -> int:
        """The process id of the API server."""
        return self.airflow.components[API_SERVER].pid


def _said_at(path: Path, text: str) -> float | None:
    """When this was written into a task's log."""
    content = path.read_bytes()
    if text.encode() not in content:
        return None
    for line in content.splitlines():
        if text.encode() in line:
            said = json.loads(line)["timestamp"].replace("Z", "+00:00")
            return datetime.fromisoformat(said).timestamp()
    return None
