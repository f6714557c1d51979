"""What an author declares of a group, checked while the DAG file is parsed and made into plain data for the trigger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from event_triggers.condition import Condition
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event, check_moment, check_path
from event_triggers.terms import Terms
from event_triggers.timing import check_cron, check_valid_for, longest_cron_gap, seconds_of

__all__ = ["RUN_AFTER", "declared_events", "declared_terms", "with_defaults"]

RUN_AFTER = "{{ dag_run.run_after.isoformat() }}"
"""From when on the messages of a log count, where nothing else is said."""

_MOST_BYTES = 4 * 1024 * 1024
"""How long a group's declarations may be; they are stored with the DAG and with every deferral."""
_LONGEST = timedelta(days=366).total_seconds()
_CLOCK_CHANGE = 7200.0


def with_defaults(
    events: Mapping[str, Event],
    *,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    valid_for: timedelta | float | str | None = None,
) -> dict[str, Event]:
    """The events, with what is said for the whole group filled in where they say nothing themselves.

    :raises InvalidEventError: for an empty group, a name that can be no task id, something that is no event, or moments
        that contradict each other.
    """
    _check_names(events)
    if since is not None and valid_for is not None:
        raise InvalidEventError("since and valid_for both say from when on messages count; give one of them")
    check_moment(since, "since")
    check_moment(until, "until")
    if valid_for is not None:
        valid_for = check_valid_for(valid_for, "valid_for")
        if not any(event.source.replayable for event in events.values()):
            raise InvalidEventError(
                "valid_for looks back at messages that came before, and no event has a source that keeps them"
            )
    filled: dict[str, Event] = {}
    for name, event in events.items():
        if event.since is not None and event.valid_for is not None:
            raise InvalidEventError(f"event {name!r} has both since and valid_for; give one of them")
        own = event.since is not None or event.valid_for is not None
        filled[name] = _named(
            name,
            event,
            since=event.since if own else since,
            valid_for=event.valid_for if own or not event.source.replayable else valid_for,
            until=event.until if event.until is not None else until,
        )
    return filled


def _named(name: str, event: Event, **changes: Any) -> Event:
    changes = {field: value for field, value in changes.items() if value != getattr(event, field)}
    try:
        return replace(event, **changes) if changes else event
    except InvalidEventError as error:
        raise InvalidEventError(f"event {name!r}: {error}") from error


def _check_names(events: Mapping[str, Event]) -> None:
    if not isinstance(events, Mapping):
        raise InvalidEventError(f"events must be a mapping of names to Events, got {type(events).__name__}")
    if not events:
        raise InvalidEventError("a group without events would wait for nothing; give it at least one Event")
    for name, event in events.items():
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-." for c in name):
            raise InvalidEventError(
                f"{name!r} is no name for an event; it becomes a task id, so letters, digits, '_', '-' and '.'"
            )
        if not isinstance(event, Event):
            raise InvalidEventError(
                f"{name!r} must be an Event, such as Event(KafkaTopic('orders')), got {type(event).__name__}"
            )


def declared_events(events: Mapping[str, Event]) -> dict[str, Any]:
    """The events as plain data, with the default of ``since`` filled in.

    :raises InvalidEventError: when one cannot travel to the triggerer, or all of them are too much.
    """
    declarations: dict[str, Any] = {}
    for name, event in events.items():
        event.check_serialisable(name)
        declaration = event.serialize()
        if declaration["since"] is None and event.source.replayable:
            declaration["since"] = RUN_AFTER
        declarations[name] = declaration
    if len(json.dumps(declarations, default=str)) > _MOST_BYTES:
        raise InvalidEventError(f"the declarations of its events are longer than {_MOST_BYTES} bytes; split it")
    return declarations


def declared_terms(
    events: Mapping[str, Event],
    *,
    condition: str,
    sequence: bool,
    within: timedelta | float | None,
    correlate: str | Mapping[str, str] | None,
    timeout: timedelta | float | str | None,
    deadline: datetime | str | None,
    warn_after: timedelta | float | None,
    notifier: Callable[..., Any] | None,
    join: str | None,
) -> tuple[Terms, float | None]:
    """The terms of a group, and the most seconds that it may take (``None``: Airflow's default for sensors).

    :raises InvalidEventError: in one sentence, when something is declared wrongly.
    """
    parsed = Condition.parse(condition, {name: event.required for name, event in events.items()})
    if not isinstance(sequence, bool):
        raise InvalidEventError(f"sequence must be True or False, got {sequence!r}")
    if sequence and not parsed.no_choice:
        raise InvalidEventError(
            f"sequence=True takes every event in its order, and the condition {condition!r} leaves some out; leave out "
            f"one of the two, or say required=False of single events"
        )
    cron, seconds = _limit(timeout, deadline)
    warning = _warning(warn_after, notifier, None if cron or deadline else seconds)
    check_moment(deadline, "deadline")
    terms = Terms(
        condition=condition,
        sequence=sequence,
        within=None if within is None else seconds_of(within, "within"),
        correlate=_paths(events, correlate),
        cron=cron,
        deadline=deadline.isoformat() if isinstance(deadline, datetime) else deadline,
        warn_after=warning,
        join=join,
    )
    return terms, seconds


def _limit(timeout: timedelta | float | str | None, deadline: datetime | str | None) -> tuple[str | None, float | None]:
    if isinstance(timeout, str):
        check_cron(timeout, "timeout")
        # What counts is the expression; this only lets Airflow end a wait that no triggerer does.
        return timeout, longest_cron_gap(timeout, "UTC").total_seconds() + _CLOCK_CHANGE
    if timeout is None:
        return None, _LONGEST if deadline is not None else None
    return None, seconds_of(timeout, "timeout")


def _warning(
    warn_after: timedelta | float | None, notifier: Callable[..., Any] | None, timeout: float | None
) -> float | None:
    if warn_after is None and notifier is None:
        return None
    if warn_after is None or notifier is None:
        raise InvalidEventError("warn_after says when, and notifier who is told what is missing; give both")
    if not callable(notifier):
        raise InvalidEventError(f"notifier must be one of Airflow's notifiers or a function, got {notifier!r}")
    seconds = seconds_of(warn_after, "warn_after")
    if timeout is not None and seconds >= timeout:
        raise InvalidEventError(f"warn_after={warn_after!r} is not before the time is up, after {timeout:g} s")
    return seconds


def _paths(events: Mapping[str, Event], correlate: str | Mapping[str, str] | None) -> dict[str, str] | None:
    own = {name: event.correlate for name, event in events.items() if event.correlate is not None}
    if correlate is None and not own:
        return None
    if isinstance(correlate, Mapping):
        unknown = sorted(set(correlate) - set(events))
        if unknown:
            raise InvalidEventError(f"correlate names {unknown}, which are not among the events {sorted(events)}")
        given = dict(correlate)
    else:
        given = {} if correlate is None else dict.fromkeys(events, correlate)
    paths = {**given, **own}
    missing = [name for name in events if name not in paths]
    if missing:
        raise InvalidEventError(
            f"the events of this group must agree on a value, and nothing says where {missing} have it: give correlate "
            f"for the whole group, or for them too"
        )
    for name, path in paths.items():
        check_path(path, f"correlate of event {name!r}")
    return {name: paths[name] for name in events}
