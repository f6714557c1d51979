"""Event: one thing to wait for. A source, what matches, how many, and from when to when."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any

from event_triggers.clock import parse_datetime
from event_triggers.errors import InvalidEventError
from event_triggers.matching import PackedPattern, check_pattern
from event_triggers.message import Message
from event_triggers.sources.base import Source, load_source
from event_triggers.timing import check_cron, check_valid_for, seconds_of

__all__ = ["Event", "MatchCallable", "check_moment", "check_path", "dotted_path", "load_callable", "one_of_equal"]

MatchCallable = Callable[[Message], bool]


@dataclass(frozen=True, slots=True)
class Event:
    """One awaited event of a group.

    Strings anywhere inside (topic, match values, ``since``, ``until``) may hold Jinja templates; they are rendered when
    the wait starts, once. The path of a callable may not: what runs in the triggerer is the choice of the DAG's author.

    :param source: where its messages come from.
    :param match: which messages count. A mapping is an event pattern over the JSON body (see
        :mod:`event_triggers.matching`); a string is the dotted path of a callable ``(message) -> bool`` that the
        triggerer can import (a function given itself is taken by its path); ``None`` takes every message of the
        source.
    :param count: how many messages it takes.
    :param since: messages stamped earlier do not count. For a replayable source (Kafka) reading starts there; the
        default is the run's ``run_after``. For a queue the default is to take whatever it still holds.
    :param until: messages stamped later do not count, whenever they come. One that its broker does not stamp is
        stamped when it comes.
    :param required: ``False`` for an event that is shown but not waited for.
    :param timeout: this event's own time, in seconds or as a timedelta from the start of the try, or a cron expression
        (its next moment, in the DAG's time zone). When it is up the event's marker fails, and the group with it if its
        condition can no longer hold.
    :param valid_for: instead of ``since``: a message that came in the same ``"day"`` or ``"month"`` before the run (by
        the DAG's time zone), or within this timedelta before it, counts. For replayable sources.
    :param correlate: the dotted path of the value on which all messages of the group must agree, where this event's
        differs from the group's.
    :raises InvalidEventError: in one sentence, when something of this is wrong.
    """

    source: Source
    match: Mapping[str, Any] | MatchCallable | str | None = None
    count: int = 1
    since: datetime | str | None = None
    until: datetime | str | None = field(default=None, kw_only=True)
    required: bool = field(default=True, kw_only=True)
    timeout: timedelta | float | str | None = field(default=None, kw_only=True)
    valid_for: timedelta | float | str | None = field(default=None, kw_only=True)
    correlate: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.source, Source):
            raise InvalidEventError(f"an Event's source must be a Source such as KafkaTopic(...), got {self.source!r}")
        count: object = self.count
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InvalidEventError(f"an Event's count must be a whole number from 1, got {count!r}")
        self.source.validate()
        self._check_match()
        self._check_moments()
        self._check_time()
        if not isinstance(self.required, bool):
            raise InvalidEventError(f"an Event's required must be True or False, got {self.required!r}")
        if self.correlate is not None:
            check_path(self.correlate, "an Event's correlate")

    def _check_match(self) -> None:
        match = self.match
        if match is None:
            return
        if isinstance(match, str):
            if _templated(match):
                raise InvalidEventError(
                    f"match={match!r}: the path of a callable cannot be a template, or whoever fills it in would "
                    f"choose what runs in the triggerer; write the path itself"
                )
            if not ("." in match and all(part.isidentifier() for part in match.split("."))):
                raise InvalidEventError(
                    f"match={match!r} is no dotted path of a callable, such as 'my_package.my_module.my_function'"
                )
        elif isinstance(match, Mapping):
            check_pattern(match)
        elif callable(match):
            object.__setattr__(self, "match", dotted_path(match))
        else:
            raise InvalidEventError(
                f"match must be a mapping, the dotted path of a callable, or None; got {type(match).__name__}"
            )

    def _check_moments(self) -> None:
        since, until = (check_moment(getattr(self, name), name) for name in ("since", "until"))
        if since is not None and until is not None and until < since:
            raise InvalidEventError(f"until={self.until!r} is before since={self.since!r}, so no message could count")

    def _check_time(self) -> None:
        if isinstance(self.timeout, str):
            check_cron(self.timeout, "an Event's timeout")
        elif self.timeout is not None:
            object.__setattr__(self, "timeout", seconds_of(self.timeout, "an Event's timeout"))
        if self.valid_for is None:
            return
        object.__setattr__(self, "valid_for", check_valid_for(self.valid_for, "an Event's valid_for"))
        if not self.source.replayable:
            raise InvalidEventError(
                f"valid_for={self.valid_for!r} looks back at messages that came before, and {self.source.label} is a "
                f"queue that keeps none; leave it out"
            )

    @property
    def by_calendar(self) -> bool:
        """Whether it goes by the days, months or hours of a time zone."""
        return isinstance(self.timeout, str) or isinstance(self.valid_for, str)

    def serialize(self) -> dict[str, Any]:
        """The declaration as JSON-compatible data (values still to be resolved by Airflow stay as they are)."""
        data = {
            "source": self.source.serialize(),
            "match": dict(self.match) if isinstance(self.match, PackedPattern) else self.match,
            "count": self.count,
            "since": _plain(self.since),
        }
        # What is seldom said is left out: it travels with every wait.
        for name, default in _SELDOM.items():
            value = _plain(getattr(self, name))
            if value != default:
                data[name] = value
        return data

    @classmethod
    def deserialize(cls, data: Mapping[str, Any]) -> Event:
        """Make an event again from what :meth:`serialize` gave, its templates rendered.

        :raises InvalidEventError: when a rendered value is not what the declaration needs.
        """
        return cls(
            source=load_source(data["source"]),
            match=_packed(data.get("match")),
            count=data.get("count", 1),
            since=one_of_equal(data.get("since") or None),
            **{name: data[name] for name in _SELDOM if data.get(name) is not None},
        )

    def check_serialisable(self, name: str) -> None:
        """Refuse an event that cannot travel to the triggerer.

        :raises InvalidEventError: naming the event.
        """
        data = self.serialize()
        kind = data["source"].get("type")
        if not isinstance(kind, str) or _templated(kind):
            raise InvalidEventError(f"event {name!r}: its source's type must be the path of a class, got {kind!r}")
        try:
            json.dumps(data, default=_allow_references, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidEventError(
                f"event {name!r} cannot be sent to the triggerer, because something in it is not JSON: {error}"
            ) from error


_SELDOM: Mapping[str, Any] = {
    "until": None,
    "required": True,
    "timeout": None,
    "valid_for": None,
    "correlate": None,
}


def _packed(match: Any) -> Any:
    """A pattern as small as it can be: a triggerer holds thousands."""
    try:
        return PackedPattern(match) if isinstance(match, dict) else match
    except (TypeError, ValueError):
        return match  # whoever checks it says what is wrong


def one_of_equal(text: Any) -> Any:
    """The same object for equal text: thousands of waits have the same moments, names and tasks."""
    return sys.intern(text) if type(text) is str else text


def _plain(value: Any) -> Any:
    return parse_datetime(value).isoformat() if isinstance(value, datetime) else value


def check_moment(value: Any, what: str) -> datetime | None:
    """Refuse what is no moment; give it when it is known already (no template, no value of another task).

    :raises InvalidEventError: naming ``what``.
    """
    if value is None or hasattr(value, "resolve") or (isinstance(value, str) and _templated(value)):
        return None
    if not isinstance(value, (str, datetime)):
        raise InvalidEventError(f"{what} must be a datetime or an ISO 8601 string, got {value!r}")
    try:
        return parse_datetime(value)
    except ValueError as error:
        raise InvalidEventError(f"{what}={value!r} is no ISO 8601 moment: {error}") from error


def check_path(path: object, what: str) -> None:
    """Refuse what is no dotted path into a message's body.

    :raises InvalidEventError: naming ``what``.
    """
    if not isinstance(path, str) or not path or not all(path.split(".")):
        raise InvalidEventError(f"{what} must be the dotted path of a field, such as 'order.id'; got {path!r}")


def _templated(text: str) -> bool:
    return "{{" in text or "{%" in text


def _allow_references(value: object) -> object:
    # XComArg and its kin: Airflow puts the value there before the wait starts.
    if hasattr(value, "resolve"):
        return None
    raise TypeError(f"{type(value).__name__} {value!r}")


def dotted_path(function: Callable[..., Any]) -> str:
    """The path under which another process can import this function.

    :raises InvalidEventError: for a lambda, a method, a nested function, one that lives in a DAG file, or an async one.
    """
    _refuse_async(function)
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if (
        not module
        or not name
        or not name.isidentifier()
        or module == "__main__"
        or module.startswith("unusual_prefix_")
    ):
        raise InvalidEventError(
            f"match={function!r} cannot be imported by the triggerer; put the function at the top level of a module "
            f"that is installed there, not in the DAG file, a class or another function"
        )
    return f"{module}.{name}"


def _refuse_async(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise InvalidEventError(f"match={function!r} is an async function; make it a plain one")


def load_callable(path: str) -> MatchCallable:
    """Import the callable at a dotted path.

    :raises InvalidEventError: when there is none.
    """
    module_name, _, name = path.rpartition(".")
    try:
        function = getattr(import_module(module_name), name)
    except Exception as error:  # importing runs the module, which may raise anything
        raise InvalidEventError(
            f"match={path!r} cannot be imported here: {error}; install its module where the triggerer runs, and "
            f"restart that"
        ) from error
    if not callable(function):
        raise InvalidEventError(f"match={path!r} is a {type(function).__name__}, not a callable")
    _refuse_async(function)
    return function  # type: ignore[no-any-return]
