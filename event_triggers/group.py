"""EventGroup: the sensor and the markers of a group, laid out as a task group. What DAG authors touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import TaskGroup

from event_triggers.condition import Condition
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.marker import EventJoin, EventMarker
from event_triggers.sensor import EventGroupSensor

__all__ = ["EventGroup"]

_OWN_TASKS = ("wait", "join")


class EventGroup(TaskGroup):
    """One deferrable sensor for all events of a group, and one marker task behind it for each.

    ``group >> task`` makes the task wait for all the markers. ``group["orders"]`` is a marker, and
    ``group["orders"].output`` its message's payload for a TaskFlow task.

    :param group_id: the id of the task group; its tasks are ``<group_id>.wait`` and ``<group_id>.<event>``.
    :param events: what to wait for, by name; see :class:`~event_triggers.Event`.
    :param timeout: seconds or a timedelta from the start of each try, or a cron expression for the latest moment; the
        default is Airflow's for sensors (seven days).
    :param condition: which events complete the group: ``"all"``, ``"any"``, :func:`~event_triggers.at_least`, or an
        expression such as ``"(orders and stock) or override"``. Where it can hold before all have come, the group ends
        in a task ``<group_id>.join``, so that what follows runs although some markers are skipped.
    :param on_event: this and the others are those of :class:`~event_triggers.EventGroupSensor`.
    :param sensor_args: further arguments of the sensor (``soft_fail``, ``retries``, callbacks, ...).
    :param marker_args: further arguments of every marker.
    :param kwargs: those of a :class:`~airflow.sdk.TaskGroup`.
    :raises InvalidEventError: in one sentence, when something is declared wrongly.
    """

    def __init__(
        self,
        group_id: str,
        events: Mapping[str, Event],
        *,
        timeout: timedelta | float | str | None = None,
        deadline: datetime | str | None = None,
        condition: str = "all",
        sequence: bool = False,
        within: timedelta | float | None = None,
        correlate: str | Mapping[str, str] | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        valid_for: timedelta | float | str | None = None,
        warn_after: timedelta | float | None = None,
        notifier: Callable[..., Any] | None = None,
        on_event: Callable[..., Any] | None = None,
        sensor_args: Mapping[str, Any] | None = None,
        marker_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(events, Mapping):
            for name in _OWN_TASKS:
                if name in events:
                    raise InvalidEventError(
                        f"EventGroup {group_id!r}: an event cannot be named {name!r}, the group has a task of that name"
                    )
        super().__init__(group_id=group_id, **kwargs)
        # child_id has no type hints in Airflow.
        markers = {name: str(self.child_id(name)) for name in events} if isinstance(events, Mapping) else None  # type: ignore[no-untyped-call]
        given: dict[str, Any] = {
            "events": events,
            "markers": markers,
            "timeout": timeout,
            "deadline": deadline,
            "condition": condition,
            "sequence": sequence,
            "within": within,
            "correlate": correlate,
            "since": since,
            "until": until,
            "valid_for": valid_for,
            "warn_after": warn_after,
            "notifier": notifier,
            "on_event": on_event,
            "join": self.child_id("join") if self._may_leave_some(events, condition) else None,  # type: ignore[no-untyped-call]
        }
        self._refuse("sensor_args", sensor_args, {*given, "task_id", "task_group", "dag"})
        self._refuse("marker_args", marker_args, {"task_id", "task_group", "dag"})
        self.sensor = EventGroupSensor(task_id="wait", task_group=self, dag=self.dag, **given, **(sensor_args or {}))
        self.markers: dict[str, EventMarker] = {}
        for name in events:
            self.markers[name] = EventMarker(task_id=name, task_group=self, dag=self.dag, **(marker_args or {}))
        self.sensor >> list(self.markers.values())
        self.join: EventJoin | None = None
        if given["join"] is not None:
            self.join = EventJoin(task_id="join", task_group=self, dag=self.dag)
            list(self.markers.values()) >> self.join

    def _may_leave_some(self, events: Mapping[str, Event], condition: str) -> bool:
        """Whether the group can be complete while some of its events have not come."""
        if not isinstance(events, Mapping) or not events or not all(isinstance(e, Event) for e in events.values()):
            return False  # the sensor says what is wrong
        try:
            return not Condition.parse(condition, {name: event.required for name, event in events.items()}).is_all
        except InvalidEventError as error:
            raise InvalidEventError(f"EventGroup {self.group_id!r}: {error}") from error

    def _refuse(self, argument: str, given: Mapping[str, Any] | None, own: set[str]) -> None:
        shared = sorted(own & set(given or ()))
        if shared:
            raise InvalidEventError(
                f"EventGroup {self.group_id!r}: {argument} cannot hold {shared}, the group sets those"
            )

    def __getitem__(self, event: str) -> EventMarker:
        """The marker of this event.

        :raises InvalidEventError: when the group has no such event.
        """
        try:
            return self.markers[event]
        except KeyError:
            raise InvalidEventError(
                f"EventGroup {self.group_id!r} has no event {event!r}; it has {sorted(self.markers)}"
            ) from None

    def events(self) -> Iterator[str]:
        """The names of the events, in the order given."""
        return iter(self.markers)
