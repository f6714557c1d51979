"""The terms of a group: what completes it, and when its time is up. Said by the author, carried by every wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from event_triggers.clock import parse_datetime
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.timing import next_cron, start_of

__all__ = ["Terms", "Timeline", "since_of"]


@dataclass(frozen=True)
class Terms:
    """What holds for all events of a group.

    :param condition: which events complete it; see :mod:`event_triggers.condition`.
    :param sequence: whether they count only in the order given.
    :param within: how many seconds the messages may lie apart.
    :param correlate: of each event, the dotted path of the value on which all must agree; empty when they need not.
    :param timezone: by which days, months and cron expressions go.
    :param cron: the time is up at the next moment of this expression.
    :param deadline: the time is up at this moment, in ISO 8601.
    :param warn_after: seconds from the start of the try until somebody is told what is missing.
    :param join: the task id of the group's last task, which is marked when the condition holds.
    """

    condition: str = "all"
    sequence: bool = False
    within: float | None = None
    correlate: Mapping[str, str] | None = None
    timezone: str = "UTC"
    cron: str | None = None
    deadline: str | None = None
    warn_after: float | None = None
    join: str | None = None

    @property
    def selective(self) -> bool:
        """Whether a message that matches need not be one that counts: it depends on the others."""
        return bool(self.sequence or self.within or self.correlate)

    def serialize(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON-compatible data."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {one.name: values[one.name] for one in fields(self) if values[one.name] != one.default}

    @classmethod
    def deserialize(cls, data: Mapping[str, Any] | None) -> Terms:
        """Read :meth:`serialize` back, its templates rendered.

        :raises InvalidEventError: when these are no terms, such as those of a later release.
        """
        known = {one.name for one in fields(cls)}
        unknown = sorted(set(data or ()) - known)
        if unknown:
            raise InvalidEventError(f"this group has terms that are not known here ({unknown}); upgrade event_triggers")
        return cls(**{name: value for name, value in (data or {}).items() if value is not None})


@dataclass(frozen=True)
class Timeline:
    """When things are due in one try.

    :param started: when the try began.
    :param deadline: when its time is up.
    :param warn_at: when somebody is told what is missing; ``None`` when nobody is, or has been.
    :param events: when the time of single events is up.
    """

    started: datetime
    deadline: datetime
    warn_at: datetime | None
    events: Mapping[str, datetime]

    @classmethod
    def of(
        cls, terms: Terms, events: Mapping[str, Event], started: datetime, timeout: float, *, warned: bool = False
    ) -> Timeline:
        """Lay out a try.

        :param timeout: the most seconds it may take.
        :param warned: whether somebody has been told what is missing.
        :raises InvalidEventError: when the rendered ``deadline`` is no moment.
        """
        due = [started + timedelta(seconds=timeout)]
        if terms.cron is not None:
            due.append(next_cron(terms.cron, started, terms.timezone))
        if terms.deadline is not None:
            due.append(_moment(terms.deadline))
        warn_at = None
        if terms.warn_after is not None and not warned:
            warn_at = started + timedelta(seconds=terms.warn_after)
        own = {name: _own_deadline(event, started, terms.timezone) for name, event in events.items()}
        deadline = min(due)
        return cls(started, deadline, warn_at, {n: at for n, at in own.items() if at is not None and at < deadline})


def _own_deadline(event: Event, started: datetime, timezone: str) -> datetime | None:
    if event.timeout is None:
        return None
    if isinstance(event.timeout, str):
        return next_cron(event.timeout, started, timezone)
    assert not isinstance(event.timeout, timedelta)  # noqa: S101 - the event has made seconds of it
    return started + timedelta(seconds=event.timeout)


def since_of(event: Event, timezone: str) -> datetime | None:
    """From when on messages count for this event."""
    if event.since is None:
        return None
    since = parse_datetime(event.since)
    if event.valid_for is None:
        return since
    assert not isinstance(event.valid_for, timedelta)  # noqa: S101 - the event has made seconds of it
    return start_of(event.valid_for, since, timezone)


def _moment(text: str) -> datetime:
    try:
        return parse_datetime(text)
    except (ValueError, AttributeError) as error:
        raise InvalidEventError(f"deadline={text!r} is no ISO 8601 moment: {error}") from error
