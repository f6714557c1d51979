"""A real Airflow in a temporary home: API server, scheduler, DAG processor and triggerers, each a process of its own.

The database is migrated first, while the API server already loads; then the other components start side by side. A
component counts as started when its row in the ``job`` table says so. Intervals are set for tests: what Airflow looks
at every few seconds or minutes by default, it looks at within a second here. No telemetry, no examples, nothing outside
the home.

A component can be stopped, killed and started again alone, and keeps its port, its log and its environment.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from servers.airflow_client import AirflowClient
from servers.airflow_history import History
from servers.ports import free_port
from servers.process import ManagedProcess, ServerFailed

__all__ = ["API_SERVER", "DAG_PROCESSOR", "SCHEDULER", "TRIGGERER", "Airflow"]

API_SERVER = "api-server"
SCHEDULER = "scheduler"
DAG_PROCESSOR = "dag-processor"
TRIGGERER = "triggerer"

_JOB_TYPES = {SCHEDULER: "SchedulerJob", DAG_PROCESSOR: "DagProcessorJob", TRIGGERER: "TriggererJob"}
_START_TIMEOUT = 240.0

_SETTINGS = {
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__DEFAULT_TASK_RETRY_DELAY": "1",
    "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
    "API__HOST": "127.0.0.1",
    "API__WORKERS": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "SCHEDULER__JOB_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "1",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    # The first look at a connection blocks the triggerer's heartbeat for 4 to 6 s.
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
    # The API server starts while the migration runs.
    "DATABASE__CHECK_MIGRATIONS": "False",
    # Versions before 3.2 can send statistics about themselves.
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}


class Airflow:
    """One Airflow. A context manager: it is running inside, and gone with its home afterwards.

    :param dags: folders of DAG files. There is one more in the home, :attr:`scratch`, for what tests write themselves.
    :param python: the interpreter of the virtual environment in which Airflow is installed.
    :param database_url: an empty database; by default an SQLite file in the home.
    :param env: more environment for every component (``AIRFLOW_CONN_...``, ``AIRFLOW__SECTION__KEY``). It wins over all
        settings made here. A component sees later changes of :attr:`env` when it is started again.
    :param triggerers: how many triggerers to begin with.
    :param parallelism: how many tasks run at once.
    :param users: role by user name (roles: ``viewer``, ``user``, ``op``, ``admin``); their passwords are in
        :attr:`passwords`. By default there are no users, and everybody is admin without a password.
    :param python_path: folders that are importable in every component.
    """

    def __init__(
        self,
        *,
        dags: Sequence[Path] = (),
        python: str | Path = sys.executable,
        database_url: str | None = None,
        env: Mapping[str, str] | None = None,
        triggerers: int = 1,
        parallelism: int = 4,
        users: Mapping[str, str] | None = None,
        python_path: Sequence[Path] = (),
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="event-triggers-airflow-"))
        self.scratch = self.home / "scratch"
        self.scratch.mkdir()
        self._dag_folders = [self.scratch, *(folder.resolve() for folder in dags)]
        self.python = str(python)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database_url = database_url or f"sqlite:///{self.home / 'airflow.db'}"
        self.history = History(self.database_url)
        self.passwords = {name: secrets.token_urlsafe(12) for name in users or {}}
        self.components: dict[str, ManagedProcess] = {}
        self.jobs: dict[str, int] = {}
        """By component, the id of its row in Airflow's ``job`` table; a task's ``triggerer_job`` names one."""
        self._newest_job: dict[str, int] = {}
        self._clients: list[AirflowClient] = []
        names = [TRIGGERER, *(f"{TRIGGERER}-{number}" for number in range(2, triggerers + 1))]
        self._first_triggerers = names[:triggerers]
        # A configuration file that is there already keeps the components from writing one, each its own secrets.
        (self.home / "airflow.cfg").touch()
        self.env = {
            **_inherited(python_path),
            **{f"AIRFLOW__{name}": value for name, value in _SETTINGS.items()},
            **self._own_settings(parallelism, users or {}),
            **(env or {}),
        }

    # The whole

    def start(self) -> Airflow:
        """Migrate the database and start everything.

        :raises ServerFailed: when a component ends or is not ready within four minutes; all are ended then.
        """
        try:
            # The API server needs no tables before its first request, and loads as long as the migration takes.
            self._spawn(API_SERVER)
            self.run("db", "migrate", timeout=_START_TIMEOUT)
            self.history.install()
            for name in (SCHEDULER, DAG_PROCESSOR, *self._first_triggerers[:1]):
                self._spawn(name)
            for name in (*_JOB_TYPES, API_SERVER):
                if name in self.components:
                    self._await(name)
            for name in self._first_triggerers[1:]:
                self.start_component(name)
        except BaseException:
            self.close()
            raise
        return self

    def stop(self, *, timeout: float = 15) -> None:
        """End all components, with SIGTERM first; the home stays."""
        with ThreadPoolExecutor(len(self.components) or 1) as pool:
            list(pool.map(lambda name: self.stop_component(name, timeout=timeout), list(self.components)))

    def close(self) -> None:
        """End everything and remove the home."""
        for client in self._clients:
            client.close()
        # A scheduler waits for its tasks, and nobody is interested in them any more.
        self.stop(timeout=5)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Airflow:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Single components

    def start_component(self, name: str) -> ManagedProcess:
        """Start a component that does not run, and return when it does.

        :param name: one of the constants of this module, or a new name for one more triggerer (``triggerer-2``).
        """
        self._spawn(name)
        self._await(name)
        return self.components[name]

    def stop_component(self, name: str, *, timeout: float = 30) -> None:
        """End a component with SIGTERM, and return when it has ended."""
        self.components[name].stop(timeout=timeout)
        self.jobs.pop(name, None)

    def kill_component(self, name: str) -> None:
        """End a component, and all the processes that it started, at once with SIGKILL."""
        self.components[name].kill()
        self.jobs.pop(name, None)

    def restart_component(self, name: str) -> None:
        """Stop a component and start it again, with the environment as it is now."""
        self.stop_component(name)
        self.start_component(name)

    # Access

    def client(self, user: str | None = None) -> AirflowClient:
        """A client of the REST API, as one of the users; without one, as the only sort of user there is then: admin."""
        password = self.passwords[user] if user is not None else None
        client = AirflowClient(self.url, user, password, diagnose=self.diagnose)
        self._clients.append(client)
        return client

    def api_connection(self, user: str | None = None, *, port: int | None = None) -> str:
        """An Airflow connection to this API server as JSON, for an ``AIRFLOW_CONN_...`` variable.

        :param port: of a proxy in front of it.
        """
        fields: dict[str, object] = {"conn_type": "http", "schema": "http", "host": "127.0.0.1"}
        fields["port"] = port or self.port
        if user is not None:
            fields |= {"login": user, "password": self.passwords[user]}
        return json.dumps(fields)

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """Run an ``airflow`` command in this home and return what it printed.

        :raises ServerFailed: when it fails; its output is in the message.
        """
        command = [*self._airflow, *arguments]
        done = subprocess.run(
            command, env=self.env, cwd=self.home, timeout=timeout, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            text = f"airflow {' '.join(arguments)} failed with status {done.returncode}:\n{done.stdout}{done.stderr}"
            raise ServerFailed(text)
        return done.stdout

    def log(self, name: str) -> str:
        """Everything a component printed so far."""
        path = self._log_file(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def diagnose(self) -> str:
        """The ends of all components' logs."""
        return "\n".join(f"--- {name}\n{process.tail(25)}" for name, process in self.components.items())

    # Inside

    @property
    def _airflow(self) -> list[str]:
        return [self.python, "-m", "airflow"]

    def _log_file(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def _spawn(self, name: str) -> None:
        if name in self.components and self.components[name].running:
            raise ServerFailed(f"{name} runs already")
        arguments = [API_SERVER, "--port", str(self.port)] if name == API_SERVER else [_kind(name)]
        if _kind(name) in (SCHEDULER, TRIGGERER):
            # The API server finds the logs in the home, so nobody needs to serve them.
            arguments.append("--skip-serve-logs")
        command = [*self._airflow, *arguments]
        process = ManagedProcess(name, command, log=self._log_file(name), env=self.env, cwd=self.home)
        self.components[name] = process.start()

    def _await(self, name: str) -> None:
        ready = self._api_answers if name == API_SERVER else lambda: self._has_job(name)
        self.components[name].wait_until(ready, _START_TIMEOUT)

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/v2/version", timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _has_job(self, name: str) -> bool:
        # Rows of killed components still say "running", so the newest is ours: components of one kind start one by one.
        running = self.history.running_jobs(_JOB_TYPES[_kind(name)])
        if not running or running[-1] <= self._newest_job.get(_kind(name), 0):
            return False
        self.jobs[name] = self._newest_job[_kind(name)] = running[-1]
        return True

    def _own_settings(self, parallelism: int, users: Mapping[str, str]) -> dict[str, str]:
        settings = {
            "CORE__DAGS_FOLDER": str(self.scratch),
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(_bundles(self._dag_folders)),
            "CORE__PARALLELISM": str(parallelism),
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "API__PORT": str(self.port),
            "API__BASE_URL": self.url,
            "API__SECRET_KEY": secrets.token_urlsafe(32),
            "API_AUTH__JWT_ISSUER": "event-triggers-harness",
            "API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "DATABASE__SQL_ALCHEMY_CONN": self.database_url,
        }
        if users:
            passwords = self.home / "passwords.json"
            passwords.write_text(json.dumps(self.passwords))
            settings["CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(f"{name}:{role}" for name, role in users.items())
            settings["CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] = str(passwords)
        else:
            settings["CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "True"
        return {"AIRFLOW_HOME": str(self.home), **{f"AIRFLOW__{name}": value for name, value in settings.items()}}


def _kind(name: str) -> str:
    return TRIGGERER if name.startswith(TRIGGERER) else name


def _bundles(folders: Sequence[Path]) -> list[dict[str, object]]:
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    return [
        {"name": f"{folder.name}-{number}", "classpath": local, "kwargs": {"path": str(folder)}}
        for number, folder in enumerate(folders)
    ]


def _inherited(python_path: Sequence[Path]) -> dict[str, str]:
    """Our environment without anything of another Airflow, and with these folders importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "PYTEST_"))}
    folders = [*map(str, python_path), *filter(None, [env.pop("PYTHONPATH", "")])]
    if folders:
        env["PYTHONPATH"] = os.pathsep.join(folders)
    return env
