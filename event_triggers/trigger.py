"""EventGroupTrigger: one wait in Airflow's triggerer.

Flow: Airflow makes the trigger from its serialised arguments (on 3.3 straight from the DAG, with templates still to
be rendered) and iterates :meth:`EventGroupTrigger.run`, which does one :class:`~event_triggers.wait.GroupWait` and
yields its verdict as one event. Airflow drops every event after the first, so there is only one, and it comes after
everything is recorded.

A restart, or another triggerer taking over, begins again from the same arguments; see the wait for why that is
harmless.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import jinja2
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from pydantic import JsonValue

from event_triggers.clock import move_on_after, parse_datetime
from event_triggers.compat import TELLS_WHO_STOPS
from event_triggers.errors import EventTriggersError
from event_triggers.event import Event, one_of_equal
from event_triggers.ledger import GroupRef
from event_triggers.runtime import Runtime, current_runtime
from event_triggers.templating import is_plain, quick
from event_triggers.terms import Terms, Timeline
from event_triggers.text import plain_logger
from event_triggers.verdict import Status, Verdict
from event_triggers.wait import GroupWait

if TYPE_CHECKING:
    from airflow.sdk import DAG

__all__ = ["EventGroupTrigger", "as_text"]

log = plain_logger(__name__)

_LOOK_WITHIN = 5.0
"""Seconds that a triggerer which may be shutting down waits for an answer and for the brokers."""
_LOOK_AGAIN = 0.5
_ENDED = frozenset({"success", "failed", "skipped", "removed", "upstream_failed"})


class EventGroupTrigger(BaseTrigger):
    """Awaits the events of one group.

    :param events: each event by name, as :meth:`Event.serialize` gives it; templates anywhere inside. This, and
        ``markers``, may be what :func:`as_text` makes of it.
    :param markers: the task id of each event's marker.
    :param timeout: seconds from the start of the try.
    :param deadline: as earlier releases said it: the start of the try and ``timeout`` in one, in ISO 8601.
    :param slack: how many seconds after ``timeout`` Airflow itself would end the deferral.
    :param handled: with a handler of arrivals: how many messages of each event it has been given.
    :param do_xcom_push: whether the sensor has an XCom.
    :param terms: as :meth:`Terms.serialize` gives them.
    :param started: when the try began, in ISO 8601; ``None`` when the trigger was started without a worker, and the try
        began when Airflow deferred the task.
    :param warned: whether somebody was told in this try what is missing.
    """

    def __init__(
        self,
        *,
        events: Mapping[str, Any] | str,
        markers: Mapping[str, str] | str,
        timeout: float,
        deadline: str | None = None,
        slack: float = 0.0,
        handled: Mapping[str, int] | None = None,
        do_xcom_push: bool = True,
        terms: Mapping[str, Any] | None = None,
        started: str | None = None,
        warned: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: Mapping[str, Any] = json.loads(events) if isinstance(events, str) else events
        self.markers: Mapping[str, str] = json.loads(markers) if isinstance(markers, str) else markers
        self.timeout = timeout
        self.deadline = deadline
        self.slack = slack
        self.handled = handled
        self.do_xcom_push = do_xcom_push
        self.terms = terms
        self.started = started
        self.warned = warned
        self.timeout_after: datetime | None = None
        """Set by the triggerer: when Airflow ends the deferral."""
        self._stopped = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "events": dict(self.events),
                "markers": self.markers,
                "timeout": self.timeout,
                "deadline": self.deadline,
                "slack": self.slack,
                "handled": self.handled,
                "do_xcom_push": self.do_xcom_push,
                "terms": self.terms,
                "started": self.started,
                "warned": self.warned,
            },
        )

    def get_template_env(self, dag: DAG | None = None) -> jinja2.Environment:
        """Where templates are rendered: a name that is not defined is an error, as it is on a worker."""
        env = super().get_template_env(dag)
        env.undefined = jinja2.StrictUndefined
        return quick(env)

    def render_template_fields(self, context: Any, jinja_env: jinja2.Environment | None = None) -> None:
        """Render what no worker has rendered. What one has, may hold text from messages, which is never a template."""
        if self.started is None and self.deadline is None:
            super().render_template_fields(context, jinja_env)
        self._let_go(context)

    def _let_go(self, context: Any) -> None:
        """Drop the DAG: Airflow's triggerer keeps one for each trigger, as large as all the rest of a wait.

        It holds the context and the task instance for as long as the trigger runs, and needs neither's task after the
        templates are rendered.
        """
        ti: Any = self.task_instance
        if context.get("ti") is ti and ti is not None:
            context.clear()
            ti.task = None

    def render_template(
        self, content: Any, context: Any, jinja_env: jinja2.Environment | None = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render what is a template, as Airflow does; most strings are none."""
        env = jinja_env or self.get_template_env()
        if isinstance(content, str) and is_plain(content, env) and not content.endswith(tuple(self.template_ext)):
            return content
        return super().render_template(content, context, env, seen_oids)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        runtime = current_runtime()
        started = self._started(runtime)
        deadline = started + timedelta(seconds=self.timeout)
        try:
            terms = Terms.deserialize(self.terms)
            events = {one_of_equal(name): Event.deserialize(data) for name, data in self.events.items()}
            self.events = _Declared(events)
            self.markers = {one_of_equal(name): one_of_equal(task_id) for name, task_id in self.markers.items()}
            timeline = Timeline.of(terms, events, started, self.timeout, warned=self.warned)
            deadline = timeline.deadline
            wait = GroupWait(
                self._group(),
                events,
                self.markers,
                hub=runtime.hub,
                ledger=runtime.ledger,
                clock=runtime.clock,
                terms=terms,
                timeline=timeline,
                handled=self.handled,
                payload_limit=runtime.payload_limit,
            )
            verdict = await wait.run()
        except EventTriggersError as error:
            verdict = Verdict(Status.ERROR, text=f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            self._stopped = True
            raise
        yield self._event(verdict, started, deadline)

    async def on_kill(self) -> None:
        """A person ended the wait: remove what the group has at the brokers, unless the sensor only starts over."""
        await self._forget_if_ended(killed=True)

    async def cleanup(self) -> None:
        """Look whether the wait has ended elsewhere, where that is not known and would leave something at a broker.

        Airflow before 3.3 does not say whether it stops a trigger because a person did something. And a triggerer that
        was taken for dead has run the wait together with the one that took it over: if that has ended the group, a
        session that was made anew here is left.
        """
        if not self._stopped:
            return
        lost = current_runtime().hub.has_lost_session(self._group().identity)
        if lost or not TELLS_WHO_STOPS:
            async with move_on_after(current_runtime().clock, _LOOK_WITHIN):
                # Who has ended the group removes its session first, and Airflow hears of the end a moment later.
                while not await self._forget_if_ended(killed=not TELLS_WHO_STOPS) and lost:
                    await current_runtime().clock.sleep(_LOOK_AGAIN)

    async def _forget_if_ended(self, *, killed: bool) -> bool:
        """Remove what the group has at the brokers, and say so, if its sensor has ended for good."""
        runtime = current_runtime()
        async with runtime.ledger.open(self._group(), self.markers, _say) as book:
            state = await book.sensor_state()
        if state in _ENDED:
            sources = [Event.deserialize(data).source for data in self.events.values()]
            await runtime.hub.forget(self._group().identity, sources, killed=killed)
            return True
        return False

    def _group(self) -> GroupRef:
        ti = self.task_instance
        if ti is None:
            raise EventTriggersError("EventGroupTrigger waits for a task; it cannot be used to schedule DAGs")
        index = ti.map_index if ti.map_index is not None else -1
        return GroupRef(str(ti.dag_id), str(ti.run_id), str(ti.task_id), int(index))

    def _started(self, runtime: Runtime) -> datetime:
        if self.started is not None:
            return parse_datetime(self.started)
        timeout = timedelta(seconds=self.timeout)
        if self.deadline is not None:
            return parse_datetime(self.deadline) - timeout
        if self.timeout_after is not None:
            return parse_datetime(self.timeout_after) - timedelta(seconds=self.slack) - timeout
        return runtime.clock.now()

    def _event(self, verdict: Verdict, started: datetime, deadline: datetime) -> TriggerEvent:
        if verdict.status is Status.COMPLETE and self.handled is None:
            result: JsonValue = dict(verdict.received)
            return TaskSuccessEvent(xcoms={"return_value": result} if self.do_xcom_push else None)
        return TriggerEvent(  # type: ignore[no-untyped-call]
            {
                "status": verdict.status.value,
                "received": dict(verdict.received),
                "missing": list(verdict.missing),
                "text": verdict.text,
                "arrivals": dict(verdict.arrivals),
                "handled": None if self.handled is None else dict(self.handled),
                "started": started.isoformat(),
                "deadline": deadline.isoformat(),
                "warned": self.warned,
            }
        )


def as_text(declared: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """Declared events, or their markers, as one text of JSON, where that is the same.

    Airflow keeps the arguments of a trigger that starts without a worker in the serialised DAG, and sends that along
    with every trigger: as data, events are a thousand small objects each time, in both processes of the triggerer.
    """
    try:
        text = json.dumps(declared, separators=(",", ":"))
    except (TypeError, ValueError):
        return declared
    return text if json.loads(text) == declared else declared


class _Declared(Mapping[str, Any]):
    """Events as data, made when somebody asks: a wait has them as objects, and data take several times as much."""

    __slots__ = ("_events",)

    def __init__(self, events: Mapping[str, Event]) -> None:
        self._events = events

    def __getitem__(self, name: str) -> Any:
        return self._events[name].serialize()

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)


def _say(level: int, text: str) -> None:
    log.log(level, "%s", text)
