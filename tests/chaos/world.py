"""Everything that a scenario runs on: Airflow on PostgreSQL with two triggerers, and three brokers.

The brokers are behind proxies, which Airflow goes through and those who publish do not. A triggerer that gives no sign
of life for :data:`THRESHOLD` seconds loses its waits to the other one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from servers.airflow import API_SERVER, SCHEDULER, TRIGGERER, Airflow
from servers.kafka import KafkaCluster, KafkaListener
from servers.mosquitto import Mosquitto
from servers.ports import free_port
from servers.postgres import Postgres
from servers.proxy import TcpProxy
from servers.sqs import ElasticMqServer
from tests.chaos.plan import DAG_ID, QUEUE_PREFIX, TOPIC

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["THRESHOLD", "World"]

ROOT = Path(__file__).parents[2]
THRESHOLD = 8


class World:
    """All servers. A context manager: they run inside, and nothing is left afterwards."""

    triggerers = (TRIGGERER, f"{TRIGGERER}-2")

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        enter = stack.enter_context
        listener = KafkaListener("PROXIED", port=free_port())
        self.kafka_proxy = enter(TcpProxy(listener.port))
        behind = KafkaListener("PROXIED", port=listener.port, advertised=self.kafka_proxy.port)
        self.kafka = KafkaCluster(listeners=[[behind]])
        self.sqs = ElasticMqServer()
        self.sqs_proxy = enter(TcpProxy(self.sqs.port))
        # Sessions are kept over a restart; writing them at every change would be most of its work.
        saving: dict[str, str | int] = {"sys_interval": 1, "autosave_on_changes": "false", "autosave_interval": 1800}
        self.mosquitto = Mosquitto(persistent=True, settings=saving)
        self.mqtt_proxy = enter(TcpProxy(self.mosquitto.port))
        self.postgres = enter(Postgres())
        self.airflow = self._airflow()
        with ThreadPoolExecutor(4) as pool:
            servers = (self.kafka, self.sqs, self.mosquitto, self.airflow)
            started = [pool.submit(server.start) for server in servers]
            for server in servers:
                stack.callback(server.close)
        for one in started:
            one.result()
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap, "log_level": 0})
        for future in admin.create_topics([NewTopic(TOPIC, 3)]).values():
            future.result()
        self.client = self.airflow.client("admin")
        self.client.wait_parsed(DAG_ID)

    def _airflow(self) -> Airflow:
        aws = {"region_name": "us-east-1", "endpoint_url": f"http://{self.sqs_proxy.address}"}
        connections = {
            "CHAOS_KAFKA": {"conn_type": "kafka", "extra": {"bootstrap.servers": self.kafka_proxy.address}},
            "CHAOS_AWS": {"conn_type": "aws", "login": "access", "password": "secret", "extra": aws},
            "CHAOS_MQTT": {"conn_type": "mqtt", "host": "127.0.0.1", "port": self.mqtt_proxy.port},
        }
        server = Airflow(
            dags=[Path(__file__).parent / "dags"],
            database_url=self.postgres.create_database("airflow"),
            users={"admin": "admin", "marker": "user"},
            python_path=[ROOT],
            triggerers=len(self.triggerers),
            env={f"AIRFLOW_CONN_{name}": json.dumps(fields) for name, fields in connections.items()},
        )
        server.env["AIRFLOW_CONN_AIRFLOW_API_DEFAULT"] = server.api_connection("marker")
        server.env["AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD"] = str(THRESHOLD)
        return server

    # ------------------------------------------------------------------ what Airflow's database says

    def waits_of(self, triggerer: str) -> set[str]:
        """The runs whose waits belong to this triggerer now."""
        statement = (
            "SELECT task_instance.run_id FROM task_instance JOIN trigger ON trigger.id = task_instance.trigger_id"
            " WHERE trigger.triggerer_id = :job"
        )
        return {row[0] for row in self.airflow.history.rows(statement, job=self.airflow.jobs[triggerer])}

    def unfinished(self, prefix: str) -> int:
        """How many runs of a scenario have not ended."""
        statement = "SELECT count(*) FROM dag_run WHERE run_id LIKE :runs AND state NOT IN ('success', 'failed')"
        return int(self.airflow.history.rows(statement, runs=f"{prefix}-%")[0][0])

    def marks(self, prefix: str, since: float = 0) -> list[tuple[str, str, float]]:
        """Run, task and time of everything in a scenario that became ``success``, oldest first."""
        statement = (
            "SELECT run_id, task_id, at FROM harness_state_change"
            " WHERE run_id LIKE :runs AND state = 'success' AND at > :since ORDER BY id"
        )
        return [
            (row[0], row[1], row[2]) for row in self.airflow.history.rows(statement, runs=f"{prefix}-%", since=since)
        ]

    @property
    def database(self) -> str:
        """The address of Airflow's database, as PostgreSQL's own clients write it."""
        return self.airflow.database_url.replace("postgresql+psycopg2", "postgresql")

    # ------------------------------------------------------------------ processes

    def runner_of(self, triggerer: str) -> list[int]:
        """The subprocesses of a triggerer: the one that runs the waits."""
        children = Path(f"/proc/{self.pid(triggerer)}/task/{self.pid(triggerer)}/children").read_text()
        return [int(child) for child in children.split()]

    def pid(self, triggerer: str) -> int:
        """The process id of a triggerer's supervisor."""
        return self.airflow.components[triggerer].pid

    def kill_runner(self, triggerer: str) -> None:
        """End only the subprocess; the supervisor then ends by itself."""
        for pid in self.runner_of(triggerer):
            os.kill(pid, signal.SIGKILL)
        process = self.airflow.components[triggerer]
        self.until(lambda: not process.running, 120, f"{triggerer} ends when its subprocess is killed")
        process.kill()

    def revive(self) -> list[str]:
        """Start what has ended, as whoever runs Airflow does (systemd, Kubernetes); tells what."""
        ended = [name for name, process in self.airflow.components.items() if not process.running]
        # The API server first: the others need it.
        for name in sorted(ended, key=(API_SERVER, SCHEDULER, "dag-processor", *self.triggerers).index):
            self.airflow.components[name].kill()
            self.airflow.start_component(name)
        return ended

    def until(self, look: Callable[[], bool], timeout: float, what: str) -> None:
        """Return when ``look()`` holds.

        :raises TimeoutError: when it does not in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            # The database may be away, on purpose.
            with contextlib.suppress(Exception):
                if look():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:.0f} s: {what}\n{self.airflow.diagnose()}")
            time.sleep(0.2)

    # ------------------------------------------------------------------ for the witness

    def create_queue(self, prefix: str) -> str:
        """The queue of a scenario."""
        self.sqs.create_queue(QUEUE_PREFIX + prefix)
        return QUEUE_PREFIX + prefix

    def witness_job(self, prefix: str, manifest: Path, *, thorough: bool) -> dict[str, Any]:
        """What the witness is told."""
        client = {
            "region_name": self.sqs.region,
            "endpoint_url": self.sqs.endpoint_url,
            "aws_access_key_id": self.sqs.access_key,
            "aws_secret_access_key": self.sqs.secret_key,
        }
        return {
            "manifest": str(manifest),
            "database": self.database,
            "dag": DAG_ID,
            "prefix": prefix,
            "sqs": {
                "client": client,
                "queue": QUEUE_PREFIX + prefix,
                "grace": 60,
                "patience": 90,
                "thorough": thorough,
            },
            "mqtt": {"host": "127.0.0.1", "port": self.mosquitto.port},
        }
