"""Airflow's REST API, as far as tests and the demo look at it.

Synchronous. Every wait has a limit, and its error says what was there instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx

__all__ = ["AirflowClient", "TimedOut", "wait_for"]

T = TypeVar("T")
_PAGE = 100
_FINISHED = ("success", "failed")


class TimedOut(AssertionError):
    """What was waited for did not come; the message tells what was there instead."""


def wait_for(
    look: Callable[[], T | None], *, timeout: float = 120, what: str | Callable[[], str] = "it", pause: float = 0.1
) -> T:
    """Call ``look`` until it gives something true, and return that.

    The pauses grow with the time that has passed, to five times the first: each look takes the server's time, and who
    has waited for long can wait for a little longer.

    :param timeout: seconds.
    :param pause: seconds between the first looks.
    :param what: for the error, text or a function that gives it, called at the end only.
    :raises TimedOut: when the time is up.
    """
    began = time.monotonic()
    while True:
        found = look()
        if found:
            return found
        waited = time.monotonic() - began
        if waited > timeout:
            raise TimedOut(f"not within {timeout:.0f} s: {what() if callable(what) else what}")
        time.sleep(min(max(pause, waited / 10), 5 * pause))


class AirflowClient:
    """One user of one API server.

    :param url: the server's address, without path.
    :param login: the user; ``None`` with a SimpleAuthManager where everybody is admin.
    :param password: the user's password.
    :param diagnose: gives text to add when a wait times out (the ends of the servers' logs).
    """

    def __init__(
        self,
        url: str,
        login: str | None = None,
        password: str | None = None,
        *,
        diagnose: Callable[[], str] = str,
    ) -> None:
        self.url = url
        self._credentials = {"username": login, "password": password} if login is not None else None
        self._diagnose = diagnose
        self._token = ""
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Requests

    @property
    def token(self) -> str:
        """A token of this user, fetched when first asked for."""
        if not self._token:
            if self._credentials is None:
                answer = self._http.get("/auth/token")
            else:
                answer = self._http.post("/auth/token", json=self._credentials)
            answer.raise_for_status()
            self._token = answer.json()["access_token"]
        return self._token

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send a request below ``/api/v2`` and return the answer, whatever its status."""
        for _ in range(2):
            headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
            answer = self._http.request(method, f"/api/v2{path}", headers=headers, **kwargs)
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                break
            self._token = ""
        return answer

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send a request below ``/api/v2`` and return the answer's document.

        :raises httpx.HTTPStatusError: with the answer's body in its message, when the status is not 2xx.
        """
        answer = self.request(method, path, **kwargs)
        if not answer.is_success:
            text = f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
            raise httpx.HTTPStatusError(text, request=answer.request, response=answer)
        return answer.json() if answer.content else None

    def _pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self.call("GET", path, params={"limit": _PAGE, "offset": offset})
            yield from page[key]
            offset += _PAGE
            if offset >= page["total_entries"]:
                return

    # Connections

    def set_connection(self, conn_id: str, conn_type: str, **fields: Any) -> None:
        """Create a connection, or change the one of this id. It counts at once, without a restart.

        :param fields: ``host``, ``port``, ``login``, ``password``, ``schema``, and ``extra`` as a mapping.
        """
        if isinstance(fields.get("extra"), Mapping):
            fields["extra"] = json.dumps(fields["extra"])
        body = {"connection_id": conn_id, "conn_type": conn_type, **fields}
        if self.request("PATCH", f"/connections/{conn_id}", json=body).status_code == httpx.codes.NOT_FOUND:
            self.call("POST", "/connections", json=body)

    # DAGs and runs

    def import_errors(self) -> dict[str, str]:
        """The traceback of each DAG file that cannot be imported, by file name."""
        return {error["filename"]: error["stack_trace"] for error in self._pages("/importErrors", "import_errors")}

    def wait_parsed(self, dag_id: str, *, timeout: float = 120) -> None:
        """Return when Airflow knows the DAG.

        :raises TimedOut: when it does not in time; the import errors are in the message.
        """

        def known() -> bool:
            return self.request("GET", f"/dags/{dag_id}/details").is_success

        def problem() -> str:
            errors = "\n".join(f"{name}:\n{trace}" for name, trace in self.import_errors().items())
            return f"DAG {dag_id!r} is not known\n{errors or self._diagnose()}"

        wait_for(known, timeout=timeout, what=problem)

    def trigger(
        self, dag_id: str, *, run_id: str | None = None, conf: Mapping[str, Any] | None = None, **fields: Any
    ) -> str:
        """Start a run and return its id. Further fields of the request (``logical_date``, ``run_after``) by keyword."""
        body = {"dag_run_id": run_id, "conf": dict(conf or {}), "logical_date": None, **fields}
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The run as the API gives it."""
        run: dict[str, Any] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return run

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a whole run, as a person does on its page."""
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Remove a run with all that belongs to it."""
        self.call("DELETE", f"/dags/{dag_id}/dagRuns/{run_id}")

    def wait_run(self, dag_id: str, run_id: str, state: str | None = None, *, timeout: float = 120) -> str:
        """Return when the run has ended, with its state.

        :param state: the state it must have in the end.
        :raises TimedOut: when it has not ended in time, or ended otherwise.
        """

        def ended() -> str | None:
            now = str(self.run(dag_id, run_id)["state"])
            return now if now in _FINISHED else None

        what = f"run {run_id} of {dag_id} ended"
        end = wait_for(ended, timeout=timeout, what=lambda: f"{what}; {self._seen(dag_id, run_id)}")
        if state is not None and end != state:
            raise TimedOut(f"{what} as {end}, not {state}; {self._seen(dag_id, run_id)}")
        return end

    # Tasks

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run as the API gives them."""
        return list(self._pages(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances"))

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """One task instance as the API gives it: state, note, try_number, trigger, triggerer_job, ..."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        found: dict[str, Any] = self.call("GET", path if map_index < 0 else f"{path}/{map_index}")
        return found

    def states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of each task of a run, by its id; those of a mapped task are named ``id[0]``, ``id[1]``, ..."""
        return {_name(task): task["state"] for task in self.tasks(dag_id, run_id)}

    def wait_states(
        self, dag_id: str, run_id: str, wanted: Mapping[str, str | None], *, timeout: float = 120
    ) -> dict[str, str | None]:
        """Return when every task named in ``wanted`` has its state there, with all states.

        :raises TimedOut: when they have not in time; the states seen are in the message.
        """

        def reached() -> dict[str, str | None] | None:
            states = self.states(dag_id, run_id)
            return states if all(name in states and states[name] == state for name, state in wanted.items()) else None

        what = f"wanted {dict(wanted)}"
        return wait_for(reached, timeout=timeout, what=lambda: f"{what}; {self._seen(dag_id, run_id)}")

    def note(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        """A task's note."""
        note: str | None = self.task(dag_id, run_id, task_id)["note"]
        return note

    def tries(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """Every try of a task as the API gives it, the present one last."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/tries"
        tries: list[dict[str, Any]] = self.call("GET", path)["task_instances"]
        return tries

    def log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int | None = None) -> str:
        """What a try logged (the present one, if none is named), one event a line; empty when it has not started."""
        number = self.task(dag_id, run_id, task_id)["try_number"] if try_number is None else try_number
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{number}"
        answer = self.request("GET", path, params={"full_content": "true"})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ""
        answer.raise_for_status()
        return "\n".join(_line(entry) for entry in answer.json()["content"])

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Mark a task, as a person does on its page."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path if map_index < 0 else f"{path}/{map_index}", json={"new_state": state})

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str] | None = None, *, downstream: bool = False
    ) -> None:
        """Clear tasks of a run (all, if none is named), as a person does on its page."""
        body: dict[str, Any] = {
            "dag_run_id": run_id,
            "dry_run": False,
            "only_failed": False,
            "reset_dag_runs": True,
            "include_downstream": downstream,
        }
        if task_ids is not None:
            body["task_ids"] = list(task_ids)
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    # XComs

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """A task's XCom, decoded.

        :raises LookupError: when there is none.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self.request("GET", path, params={"deserialize": "true"})
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise LookupError(f"no XCom {key!r} of {task_id} in run {run_id} of {dag_id}")
        answer.raise_for_status()
        return answer.json()["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str) -> list[str]:
        """The names of a task's XComs, sorted."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries"
        return sorted(entry["key"] for entry in self._pages(path, "xcom_entries"))

    def _seen(self, dag_id: str, run_id: str) -> str:
        return f"the tasks are {self.states(dag_id, run_id)}\n{self._diagnose()}"


def _name(task: Mapping[str, Any]) -> str:
    return str(task["task_id"]) if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]"


def _line(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    details = [str(error) for error in entry.get("error_detail") or ()]
    return "\n".join([str(entry.get("event", "")), *details])
