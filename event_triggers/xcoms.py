"""The XComs of markers: read over the REST API, and written over whatever this Airflow takes them unchanged.

Airflow 3.1 stores what comes over its REST API as JSON *text*, which tasks are then given as a string. There XComs are
written through the triggerer's supervisor, which is slower, and stores them as they are. So are, on any version, those
of a task that has been added to the DAG since the run began.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.compat import set_xcom_through_supervisor
from event_triggers.errors import AirflowApiError

__all__ = ["MarkerKey", "XComs"]

_PAGE = 100


class MarkerKey(NamedTuple):
    """Which task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    def path(self, *more: str) -> str:
        """A path below the task's, for all its map indexes."""
        return path_of("dags", self.dag_id, "dagRuns", self.run_id, "taskInstances", self.task_id, *more)

    @property
    def instance(self) -> str:
        """The task instance's path."""
        return self.path(*([str(self.map_index)] if self.map_index >= 0 else []))


class XComs:
    """Reads and writes XComs.

    :param over_rest: whether this Airflow keeps what is written over REST as it is (3.2 and later do).
    """

    def __init__(self, api: AirflowApi, *, over_rest: bool) -> None:
        self._api = api
        self._over_rest = over_rest

    async def get(self, key: MarkerKey, name: str) -> Any:
        """The value, or ``None`` when there is none.

        :raises AirflowApiError: when Airflow refuses.
        """
        try:
            answer = await self._api.call("GET", key.path("xcomEntries", name), params={"map_index": key.map_index})
        except AirflowApiError as error:
            if error.status != 404:
                raise
            return None
        return answer["value"]

    async def names(self, key: MarkerKey) -> list[str]:
        """The keys of all XComs of this task instance.

        :raises AirflowApiError: when Airflow refuses.
        """
        names: list[str] = []
        while True:
            params = {"map_index": key.map_index, "limit": _PAGE, "offset": len(names)}
            answer = await self._api.call("GET", key.path("xcomEntries"), params=params)
            page = answer["xcom_entries"]
            names += [entry["key"] for entry in page]
            if not page or len(names) >= answer["total_entries"]:
                return names

    async def create(self, key: MarkerKey, name: str, value: Any) -> bool:
        """Write a value where none is; ``False`` when one is there, which is left alone.

        :raises AirflowApiError: when Airflow refuses.
        """
        if not self._over_rest:
            if await self.get(key, name) is not None:
                return False
            await set_xcom_through_supervisor(*key, name, value)
            return True
        body = {"key": name, "value": value, "map_index": key.map_index}
        try:
            await self._api.call("POST", key.path("xcomEntries"), json=body)
        except AirflowApiError as error:
            if error.status == 409:
                return False
            if error.status != 404 or "not found in dag" not in str(error):
                raise
            return await self._create_for_new_task(key, name, value)
        return True

    async def _create_for_new_task(self, key: MarkerKey, name: str, value: Any) -> bool:
        """Airflow's route for new XComs knows only the tasks that the DAG had when the run began; a supervisor all."""
        await self._api.call("GET", key.instance)  # a task that is not in the run either is refused here
        if await self.get(key, name) is not None:
            return False
        await set_xcom_through_supervisor(*key, name, value)
        return True

    async def replace(self, key: MarkerKey, name: str, value: Any) -> None:
        """Write a value where one probably is.

        :raises AirflowApiError: when Airflow refuses.
        """
        if not self._over_rest:
            await set_xcom_through_supervisor(*key, name, value)
            return
        body = {"value": value, "map_index": key.map_index}
        try:
            await self._api.call("PATCH", key.path("xcomEntries", name), json=body)
        except AirflowApiError as error:
            if error.status != 404 or not await self.create(key, name, value):
                raise
