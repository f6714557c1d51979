"""EventGroupSensor: defers at once, and says at the end how the wait went.

Flow: on Airflow 3.3 the wait starts in the triggerer without a worker (:attr:`start_trigger_args`); on older
versions, or when an event holds a value that only a worker can resolve, :meth:`EventGroupSensor.execute` defers. A
complete group ends in the triggerer. :meth:`EventGroupSensor.resume` runs on a worker when the group failed, or when
there are arrivals to hand over.

``timeout`` counts from the first start of the try, which is fixed there and travels along with every deferral.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

from airflow.sdk import BaseSensorOperator, XComArg, timezone
from airflow.triggers.base import StartTriggerArgs

from event_triggers.compat import STARTS_FROM_TRIGGER, AirflowException, AirflowFailException, AirflowSensorTimeout
from event_triggers.declarations import RUN_AFTER, declared_events, declared_terms, with_defaults
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.marker import EventMarker
from event_triggers.terms import Terms, Timeline
from event_triggers.trigger import EventGroupTrigger, as_text
from event_triggers.verdict import Status

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["ArrivedMessage", "EventGroupSensor"]

GRACE = timedelta(minutes=5)
"""How long after the deadline Airflow itself ends the deferral, should no triggerer be there to do it in time."""


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
    :param timeout: seconds or a timedelta, counted from the start of the try; or a cron expression, whose next moment
        in the DAG's time zone is the latest.
    :param deadline: the latest moment, as a datetime or a template. Whatever comes first counts.
    :param condition: which events complete the group: ``"all"``, ``"any"``, :func:`~event_triggers.at_least`, or an
        expression such as ``"(orders and stock) or override"``. What has not come then is skipped.
    :param sequence: ``True`` when events count only in the order given.
    :param within: seconds or a timedelta: the messages must lie within this span of each other.
    :param correlate: the dotted path of a value on which all messages must agree; or such a path for each event.
    :param since: for all events that do not say it themselves; see :class:`~event_triggers.Event`.
    :param until: likewise.
    :param valid_for: likewise, for replayable sources.
    :param warn_after: seconds or a timedelta from the start of the try, after which ``notifier`` is called on a worker,
        once, when something is still missing.
    :param notifier: one of Airflow's notifiers, or a function that takes the context. The context's ``event_group``
        says what is missing.
    :param join: the task id of a task behind the markers that is marked when the condition holds, so that what follows
        runs although markers are skipped.
    :param kwargs: those of a sensor (``soft_fail``, ``retries``, ``execution_timeout``, callbacks, ...).
    :raises InvalidEventError: in one sentence, when something is declared wrongly.
    """

    template_fields: Sequence[str] = ("events", "terms")
    template_fields_renderers: ClassVar[dict[str, str]] = {"events": "json", "terms": "json"}
    ui_color = "#cfe8fc"

    def __init__(
        self,
        *,
        events: Mapping[str, Event],
        markers: Mapping[str, str] | None = None,
        on_event: Callable[..., Any] | None = None,
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
        join: str | None = None,
        **kwargs: Any,
    ) -> None:
        with _named(_full_id(kwargs)):
            events = with_defaults(events, since=since, until=until, valid_for=valid_for)
            terms, seconds = declared_terms(
                events,
                condition=condition,
                sequence=sequence,
                within=within,
                correlate=correlate,
                timeout=timeout,
                deadline=deadline,
                warn_after=warn_after,
                notifier=notifier,
                join=join,
            )
        if seconds is not None:
            kwargs["timeout"] = seconds  # Airflow 3.1 does not take None for its default
        super().__init__(**kwargs)
        with _named(self.task_id):
            self.events = declared_events(events)
        self.terms = terms.serialize()
        self._by_calendar = any(event.by_calendar for event in events.values()) or terms.cron is not None
        self.markers = self._marker_ids(markers)
        if on_event is not None and not callable(on_event):
            raise InvalidEventError(f"EventGroupSensor {self.task_id!r}: on_event must be a function, got {on_event!r}")
        self.on_event = on_event
        self.notifier = notifier
        self._lay_out()

    def _lay_out(self) -> None:
        """What depends on the DAG, which may not be known yet when the sensor is made."""
        if self._by_calendar and self.has_dag():  # type: ignore[no-untyped-call]
            zone = self.dag.timezone
            self.terms["timezone"] = str(getattr(zone, "name", zone))
        if STARTS_FROM_TRIGGER and not any(XComArg.iter_xcom_references([self.events, self.terms])):
            self.start_from_trigger = True
            self.start_trigger_args = self._start_trigger_args()

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
                "events": as_text(self.events),
                "markers": as_text(self.markers),
                "timeout": float(self.timeout),
                "deadline": None,
                "slack": (longest - timeout).total_seconds(),
                "handled": None if self.on_event is None else {},
                "do_xcom_push": self.do_xcom_push,
                "terms": self.terms,
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
        self._lay_out()
        self._check_join()
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
        text = json.dumps([self.events, self.terms], default=str).replace(RUN_AFTER, "")
        return bool(own) and any(mark in text for mark in ("{{", "{%"))

    def _check_join(self) -> None:
        join = self.terms.get("join")
        if join is None:
            return
        for name, marker_id in self.markers.items():
            if self.dag and join not in self.dag.get_task(marker_id).downstream_task_ids:
                raise InvalidEventError(
                    f"EventGroupSensor {self.task_id!r}: the join {join!r} must stand directly behind every "
                    f"marker, and does not behind {name!r}"
                )

    # ------------------------------------------------------------------ on a worker

    def execute(self, context: Context) -> None:
        self._wait(timezone.utcnow(), None if self.on_event is None else {}, warned=False)

    def _wait(self, started: datetime, handled: Mapping[str, int] | None, *, warned: bool) -> NoReturn:
        timeline = Timeline.of(Terms.deserialize(self.terms), {}, started, self.timeout)
        self.defer(
            trigger=EventGroupTrigger(
                events=self.events,
                markers=self.markers,
                timeout=float(self.timeout),
                started=started.isoformat(),
                handled=handled,
                do_xcom_push=self.do_xcom_push,
                terms=self.terms,
                warned=warned,
            ),
            method_name="resume",
            timeout=max(timeline.deadline - timezone.utcnow(), timedelta()) + GRACE,
        )
        raise AssertionError("defer() always raises")

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on after the trigger's verdict: hand arrivals over, tell what is missing, fail, or wait on.

        :raises AirflowSensorTimeout: when the time was up; names what is missing.
        :raises AirflowFailException: when a person marked a marker failed that the group cannot do without.
        :raises AirflowException: when the wait could not begin as it is configured.
        """
        status = Status(event["status"])
        handled = event.get("handled")
        if self.on_event is not None and event.get("arrivals"):
            handled = self._hand_over(context, event["arrivals"], handled or {})
        if status is Status.COMPLETE:
            return event["received"]
        if status is Status.WARNING:
            self._warn(context, event)
        if status in (Status.ARRIVALS, Status.WARNING):
            warned = status is Status.WARNING or bool(event.get("warned"))
            self._wait(self._began(event), handled, warned=warned)
        failure = self._failure(status, event)
        if self.soft_fail or self.never_fail:
            self.log.warning("%s", failure)  # what Airflow says of a skipped sensor does not name the reason
        raise failure

    def _began(self, event: Mapping[str, Any]) -> datetime:
        if "started" in event:
            return datetime.fromisoformat(event["started"])
        # An event of a trigger that an earlier release has started.
        return datetime.fromisoformat(event["deadline"]) - timedelta(seconds=self.timeout)

    def _failure(self, status: Status, event: Mapping[str, Any]) -> Exception:
        missing = ", ".join(event.get("missing") or ())
        text = event.get("text") or ""
        if status is Status.TIMEOUT:
            why = f" ({text})" if text else ""
            return AirflowSensorTimeout(f"{self._elapsed(event)} these events have not come: {missing}{why}")
        still = f"{text}; still missing: {missing}" if missing else text
        if status is Status.LATE:
            return AirflowSensorTimeout(still)
        if status is Status.FAILED:
            return AirflowFailException(still)
        return AirflowException(f"the group could not wait: {text}")

    def _elapsed(self, event: Mapping[str, Any]) -> str:
        """When the time was up, in the author's terms."""
        if self.terms.get("cron") or self.terms.get("deadline"):
            return f"by {event['deadline']}"
        return f"after {self.timeout:.0f} s"

    def _warn(self, context: Context, event: Mapping[str, Any]) -> None:
        missing = list(event.get("missing") or ())
        self.log.warning(
            "these events have not come yet: %s; the time is up at %s", ", ".join(missing), event["deadline"]
        )
        if self.notifier is None:
            return
        said = {"missing": missing, "received": dict(event.get("received") or {}), "deadline": event["deadline"]}
        try:
            self.notifier({**context, "event_group": said})
        except Exception:
            # Who is to be told must not keep the group from waiting on.
            self.log.exception("the notifier failed; the group waits on")

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


def _full_id(arguments: Mapping[str, Any]) -> str:
    """The task id that a sensor with these arguments will have."""
    task_id, group = str(arguments.get("task_id", "")), arguments.get("task_group")
    return task_id if group is None else str(group.child_id(task_id))


@contextmanager
def _named(task_id: str) -> Iterator[None]:
    """Say of which sensor a mistake is."""
    try:
        yield
    except InvalidEventError as error:
        raise InvalidEventError(f"EventGroupSensor {task_id!r}: {error}") from error
