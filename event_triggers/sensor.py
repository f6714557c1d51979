"""EventGroupSensor: defers at once, and says at the end how the wait went.

Flow: on Airflow 3.3 the wait starts in the triggerer without a worker (:attr:`start_trigger_args`); on older
versions, or when an event holds a value that only a worker can resolve, :meth:`EventGroupSensor.execute` defers. A
complete group ends in the triggerer. :meth:`EventGroupSensor.resume` runs on a worker when the group failed, or when
there are arrivals to hand over.

``timeout`` counts from the first start of the try: the deadline is fixed there and travels along with every deferral.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

from airflow.sdk import BaseSensorOperator, XComArg, timezone
from airflow.triggers.base import StartTriggerArgs

from event_triggers.compat import STARTS_FROM_TRIGGER, AirflowException, AirflowFailException, AirflowSensorTimeout
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.marker import EventMarker
from event_triggers.trigger import EventGroupTrigger
from event_triggers.wait import Status

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["ArrivedMessage", "EventGroupSensor"]

GRACE = timedelta(minutes=5)
"""How long after the deadline Airflow itself ends the deferral, should no triggerer be there to do it in time."""

_MOST_BYTES = 4 * 1024 * 1024
"""How long a group's declarations may be; they are stored with the DAG and with every deferral."""

_RUN_AFTER = "{{ dag_run.run_after.isoformat() }}"


class ArrivedMessage(NamedTuple):
    """One message, as a handler of arrivals is given it.

    :param event: the name of the event it counts for.
    :param payload: its body, as in the marker's XCom.
    :param facts: source, stream, position, id, timestamp, received_at.
    """

    event: str
    payload: Any
    facts: Mapping[str, Any]


class EventGroupSensor(BaseSensorOperator):
    """Waits for all events of a group, without a worker.

    Behind it there must be an :class:`~event_triggers.EventMarker` for each event, with the event's name as its task
    id (in the same task group). :class:`~event_triggers.EventGroup` lays all that out by itself.

    :param events: what to wait for, by name. Templates anywhere inside are rendered when the wait starts.
    :param markers: the task ids of the markers, where they are not the events' names.
    :param on_event: a function that is called on a worker with the list of :class:`ArrivedMessage` that came since
        its last call, each time some come; it may take a second argument ``context``. A try that fails hands over
        everything received so far again. Without it no worker is used.
    :param timeout: seconds or a timedelta, counted from the start of the try.
    :param kwargs: those of a sensor (``soft_fail``, ``retries``, ``execution_timeout``, callbacks, ...).
    :raises InvalidEventError: in one sentence, when something is declared wrongly.
    """

    template_fields: Sequence[str] = ("events",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"events": "json"}
    ui_color = "#cfe8fc"

    def __init__(
        self,
        *,
        events: Mapping[str, Event],
        markers: Mapping[str, str] | None = None,
        on_event: Callable[..., Any] | None = None,
        timeout: timedelta | float | None = None,
        **kwargs: Any,
    ) -> None:
        task_id = str(kwargs.get("task_id", "EventGroupSensor"))
        self._refuse_timeout(task_id, timeout)
        if timeout is not None:
            kwargs["timeout"] = timeout  # Airflow 3.1 does not take None for its default
        super().__init__(**kwargs)
        self.events = _declarations(events, f"EventGroupSensor {self.task_id!r}")
        self.markers = self._marker_ids(markers)
        if on_event is not None and not callable(on_event):
            raise InvalidEventError(f"EventGroupSensor {self.task_id!r}: on_event must be a function, got {on_event!r}")
        self.on_event = on_event
        if STARTS_FROM_TRIGGER and not any(XComArg.iter_xcom_references(self.events)):
            self.start_from_trigger = True
            self.start_trigger_args = self._start_trigger_args()

    @staticmethod
    def _refuse_timeout(task_id: str, timeout: timedelta | float | None) -> None:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and (not number or not 0 < seconds < float("inf")):
            raise InvalidEventError(
                f"EventGroupSensor {task_id!r}: timeout must be a positive number of seconds or a timedelta, "
                f"got {timeout!r}"
            )

    def _marker_ids(self, markers: Mapping[str, str] | None) -> dict[str, str]:
        unknown = sorted(set(markers or ()) - set(self.events))
        if unknown:
            raise InvalidEventError(
                f"EventGroupSensor {self.task_id!r}: markers names {unknown}, which are not among its events "
                f"{sorted(self.events)}"
            )
        prefix = self.task_id[: -len(self.label)] if self.label and self.task_id.endswith(self.label) else ""
        return {name: (markers or {}).get(name, prefix + name) for name in self.events}

    def _start_trigger_args(self) -> StartTriggerArgs:
        timeout = timedelta(seconds=self.timeout)
        longest = timeout + GRACE
        if self.execution_timeout is not None:
            longest = min(longest, self.execution_timeout)
        return StartTriggerArgs(
            trigger_cls=f"{EventGroupTrigger.__module__}.{EventGroupTrigger.__qualname__}",
            trigger_kwargs={
                "events": self.events,
                "markers": self.markers,
                "timeout": float(self.timeout),
                "deadline": None,
                "slack": (longest - timeout).total_seconds(),
                "handled": None if self.on_event is None else {},
                "do_xcom_push": self.do_xcom_push,
            },
            next_method="resume",
            next_kwargs=None,
            timeout=timeout + GRACE,
        )

    # ------------------------------------------------------------------ while the DAG file is parsed

    def resolve_template_files(self) -> None:
        """Airflow calls this for every task of a parsed DAG, when all is known of it: check the markers.

        :raises InvalidEventError: when an event has no marker directly behind this sensor.
        """
        super().resolve_template_files()
        if self.start_from_trigger and self._needs_jinja_of_dag():
            self.start_from_trigger, self.start_trigger_args = False, None
        for name, marker_id in self.markers.items():
            if marker_id not in self.downstream_task_ids:
                raise InvalidEventError(
                    f"EventGroupSensor {self.task_id!r}: event {name!r} has no marker; put EventMarker(task_id="
                    f"{marker_id!r}) directly behind the sensor, or use EventGroup, which does"
                )
            marker = self.dag.get_task(marker_id) if self.dag else None
            if not isinstance(marker, EventMarker):
                raise InvalidEventError(
                    f"EventGroupSensor {self.task_id!r}: task {marker_id!r} stands for event {name!r} but is a "
                    f"{type(marker).__name__}; make it an EventMarker"
                )

    def _needs_jinja_of_dag(self) -> bool:
        """Whether there are templates, and the DAG has Jinja macros or settings of its own: only a worker has those."""
        dag = self.dag
        own = dag is not None and (
            dag.user_defined_macros
            or dag.user_defined_filters
            or dag.jinja_environment_kwargs
            or dag.render_template_as_native_obj
            or getattr(self, "render_template_as_native_obj", None)
        )
        text = json.dumps(self.events, default=str).replace(_RUN_AFTER, "")
        return bool(own) and any(mark in text for mark in ("{{", "{%"))

    # ------------------------------------------------------------------ on a worker

    def execute(self, context: Context) -> None:
        self._wait_until(timezone.utcnow() + timedelta(seconds=self.timeout), None if self.on_event is None else {})

    def _wait_until(self, deadline: datetime, handled: Mapping[str, int] | None) -> NoReturn:
        self.defer(
            trigger=EventGroupTrigger(
                events=self.events,
                markers=self.markers,
                timeout=float(self.timeout),
                deadline=deadline.isoformat(),
                handled=handled,
                do_xcom_push=self.do_xcom_push,
            ),
            method_name="resume",
            timeout=max(deadline - timezone.utcnow(), timedelta()) + GRACE,
        )
        raise AssertionError("defer() always raises")

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on after the trigger's verdict: hand arrivals over, fail, or wait on.

        :raises AirflowSensorTimeout: when the time was up; names what is missing.
        :raises AirflowFailException: when a person marked a marker failed.
        :raises AirflowException: when the wait could not begin as it is configured.
        """
        status = Status(event["status"])
        handled = event.get("handled")
        if self.on_event is not None and event.get("arrivals"):
            handled = self._hand_over(context, event["arrivals"], handled or {})
        if status is Status.COMPLETE:
            return event["received"]
        if status is Status.ARRIVALS:
            self._wait_until(datetime.fromisoformat(event["deadline"]), handled)
        failure = self._failure(status, event)
        if self.soft_fail or self.never_fail:
            self.log.warning("%s", failure)  # what Airflow says of a skipped sensor does not name the reason
        raise failure

    def _failure(self, status: Status, event: Mapping[str, Any]) -> Exception:
        missing = ", ".join(event.get("missing") or ())
        text = event.get("text") or ""
        if status is Status.TIMEOUT:
            why = f" ({text})" if text else ""
            return AirflowSensorTimeout(f"after {self.timeout:.0f} s these events have not come: {missing}{why}")
        if status is Status.FAILED:
            return AirflowFailException(f"{text}; still missing: {missing}" if missing else text)
        return AirflowException(f"the group could not wait: {text}")

    def _hand_over(self, context: Context, arrivals: Mapping[str, int], handled: Mapping[str, int]) -> dict[str, int]:
        messages: list[ArrivedMessage] = []
        for name, count in arrivals.items():
            messages += self._messages(context, name)[handled.get(name, 0) : count]
        messages.sort(key=lambda message: str(message.facts.get("received_at")))
        if messages and self.on_event is not None:
            if "context" in inspect.signature(self.on_event).parameters:
                self.on_event(messages, context=context)
            else:
                self.on_event(messages)
        return {**handled, **arrivals}

    def _messages(self, context: Context, name: str) -> list[ArrivedMessage]:
        """All messages that the marker of this event holds."""
        ti = context["ti"]
        marker, index = self.markers[name], ti.map_index if ti.map_index is not None else -1
        facts = ti.xcom_pull(task_ids=marker, key="event", map_indexes=index) or {}
        payload = ti.xcom_pull(task_ids=marker, key="return_value", map_indexes=index)
        known = facts.get("messages", [])
        payloads = payload if facts.get("wanted", 1) > 1 and isinstance(payload, list) else [payload]
        padded = [*payloads, *([None] * len(known))]  # somebody may have removed what the marker held
        return [ArrivedMessage(name, body, fact) for body, fact in zip(padded, known, strict=False)]


def _declarations(events: Mapping[str, Event], where: str) -> dict[str, Any]:
    """The events as plain data, with the default of ``since`` filled in.

    :raises InvalidEventError: for an empty group, a name that can be no task id, or something that is no event.
    """
    if not isinstance(events, Mapping):
        raise InvalidEventError(f"{where}: events must be a mapping of names to Events, got {type(events).__name__}")
    if not events:
        raise InvalidEventError(f"{where}: a group without events would wait for nothing; give it at least one Event")
    declarations: dict[str, Any] = {}
    for name, event in events.items():
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-." for c in name):
            raise InvalidEventError(
                f"{where}: {name!r} is no name for an event; it becomes a task id, so letters, digits, '_', '-' and '.'"
            )
        if not isinstance(event, Event):
            raise InvalidEventError(
                f"{where}: {name!r} must be an Event, such as Event(KafkaTopic('orders')), got {type(event).__name__}"
            )
        event.check_serialisable(name)
        declaration = event.serialize()
        if declaration["since"] is None and event.source.replayable:
            declaration["since"] = _RUN_AFTER
        declarations[name] = declaration
    if len(json.dumps(declarations, default=str)) > _MOST_BYTES:
        raise InvalidEventError(
            f"{where}: the declarations of its events are longer than {_MOST_BYTES} bytes; split it"
        )
    return declarations
