"""Spans, cron expressions, calendar days and time zones, as a group's declaration gives them. Pure: no clock is read.

**Cron across a change of the clock.** A cron expression names times of the wall clock in its zone. Where the clock
jumps, the rules are those of Airflow's own schedules:

* a time that the day of the change does not have (02:30 in spring) counts later by as much as the clock jumps: 03:30.
  No day loses its moment;
* a time that the day has twice (02:30 in autumn) counts the second time, when the day is past it for good. An
  expression for every hour (``30 * * * *``) counts both, as both are an hour of their own.

**Calendar days** begin with their first moment: where midnight is skipped that is 01:00, where it comes twice the
first one.

Zones are IANA names, ``UTC``, or fixed offsets such as ``+02:00``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterBadDateError, croniter  # type: ignore[import-untyped]

from event_triggers.errors import InvalidEventError

__all__ = [
    "check_cron",
    "check_timezone",
    "check_valid_for",
    "longest_cron_gap",
    "looks_like_cron",
    "next_cron",
    "seconds_of",
    "start_of",
]

_PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_CRON_FIELD = re.compile(r"[\w*/,#?()\-]+", re.ASCII)
_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):?([0-5]\d)")
_CENTURIES = 1000 * 366 * 86_400.0
_DAY = 86_400
# No clock was ever changed by more than a day, and the hours around it are looked at one by one.
_AROUND = 26
# Some day in the past, so that what is refused does not depend on when the DAG is parsed.
_SOME_DAY = datetime(2000, 1, 1)


def seconds_of(value: timedelta | float, what: str) -> float:
    """The length of a span in seconds: positive, finite, and no longer than a thousand years.

    :param what: what the span is, for the error: ``the timeout of group 'inputs'``.
    :raises InvalidEventError: when ``value`` is none.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # A whole number may be too large to be a float.
        seconds = float(value) if not abs(value) > _CENTURIES else math.inf if value > 0 else -math.inf
    else:
        raise InvalidEventError(f"{what} must be a timedelta or a number of seconds, got {value!r}")
    if not seconds > 0:
        raise InvalidEventError(f"{what} must be longer than nothing, got {seconds:g} seconds")
    if seconds > _CENTURIES:
        raise InvalidEventError(f"{what} is longer than a thousand years")
    return seconds


def looks_like_cron(text: str) -> bool:
    """Whether this is meant as a cron expression, right or wrong: ``@daily``, or five fields or more."""
    fields = text.split()
    if len(fields) == 1:
        return fields[0].startswith("@")
    return len(fields) >= 5 and all(_CRON_FIELD.fullmatch(field) for field in fields)


def check_cron(expression: str, what: str) -> None:
    """Refuse what is no cron expression, and one that never comes, such as the 30th of February.

    Five fields (minute, hour, day, month, weekday), a sixth for seconds, or a preset such as ``@daily``.

    :raises InvalidEventError: naming ``what`` and the expression.
    """
    if not isinstance(expression, str):
        raise InvalidEventError(f"{what} must be a cron expression such as '0 12 * * *', got {expression!r}")
    shown = repr(expression) if len(expression) <= 100 else f"{expression[:100]!r}..."
    plain = _plain(expression)
    if plain.startswith("@"):
        raise InvalidEventError(f"{what}: {shown} is no preset of cron; there are {', '.join(_PRESETS)}")
    fields = plain.split()
    wrong = None
    if len(fields) not in (5, 6) or len(plain) > 1000:
        wrong = f"it has {len(fields)} fields, not five"
    elif any(field.lower().startswith(("r", "h")) for field in fields):
        wrong = "a moment left to chance (H, R) would change with every restart"
    else:
        try:
            next(_walls(plain, _SOME_DAY))
        except CroniterBadDateError:
            raise InvalidEventError(f"{what}: the cron expression {shown} never comes") from None
        except Exception as error:  # what croniter raises on nonsense is of many kinds
            wrong = str(error) or type(error).__name__
    if wrong:
        raise InvalidEventError(
            f"{what}: {shown} is no cron expression: {wrong}; "
            f"write minute, hour, day, month and weekday, as in '0 12 * * 1-5'"
        )


def next_cron(expression: str, after: datetime, timezone: str) -> datetime:
    """The first moment of a cron expression strictly after another.

    :param after: an aware moment.
    :param timezone: whose wall clock the expression speaks of.
    :returns: an aware moment in UTC. See the module for days on which the clock is changed.
    :raises InvalidEventError: when the expression or the zone is none, or no such moment comes within 50 years.
    """
    check_cron(expression, "cron")
    zone, plain = _zone(timezone), _plain(expression)
    after = after.astimezone(_UTC)
    offsets = _offsets_around(after, zone)
    # Where no clock was changed nearby, nothing that the wall clock showed before can still be to come.
    back = max(offsets) - min(offsets)
    start = (after + _offset_at(after, zone)).replace(tzinfo=None, microsecond=0) - back
    found: datetime | None = None
    latest = timedelta(0)
    try:
        twice = croniter(plain).expanded[1] == ["*"]
        for wall in _walls(plain, start):
            # Of two times of the wall clock, the later one may be the earlier moment, where the clock was changed.
            if found is not None and wall.replace(tzinfo=_UTC) - latest >= found:
                return found
            for moment in _moments(wall, zone, twice):
                if moment > after and (found is None or moment < found):
                    found = moment
                    latest = max(_offsets_around(found, zone))
    except (CroniterBadDateError, OverflowError, ValueError):  # the latter two at the end of all years
        if found is not None:
            return found
    raise InvalidEventError(f"the cron expression {expression!r} has no moment within 50 years after {after}")


@lru_cache(maxsize=256)
def longest_cron_gap(expression: str, timezone: str) -> timedelta:
    """How far two moments of a cron expression that follow each other can lie apart, at most.

    It holds for all moments from the year 2000 on, by the rules of the zone as they are known; the change of the clock
    is included by what the zone's offsets have ever differed since then (an hour in most zones).

    :raises InvalidEventError: when the expression or the zone is none.
    """
    check_cron(expression, "cron")
    plain = _plain(expression)
    cron = croniter(plain)
    minutes = _values(cron.expanded[0], 60)
    slots = [hour * 3600 + minute * 60 for hour in _values(cron.expanded[1], 24) for minute in minutes]
    within = max((later - earlier for earlier, later in pairwise(slots)), default=0)
    over_night = _most_days(plain) * _DAY - (slots[-1] - slots[0])
    # As a sixth field says more often than once a minute, if anything, it adds nothing.
    return timedelta(seconds=max(within, over_night)) + _range_of_offsets(timezone)


def check_valid_for(value: str | timedelta | float, what: str) -> str | float:
    """How long back a message counts: ``"day"``, ``"month"``, or seconds.

    :raises InvalidEventError: naming ``what``.
    """
    if isinstance(value, str):
        if value in ("day", "month"):
            return value
        raise InvalidEventError(f"{what} must be 'day', 'month', a timedelta or a number of seconds, got {value!r}")
    return seconds_of(value, what)


def start_of(valid_for: str | float, moment: datetime, timezone: str) -> datetime:
    """From when on a message counts for this moment.

    :param valid_for: what :func:`check_valid_for` gave: the calendar day or month in the zone that holds the moment,
        or seconds before it.
    :param moment: an aware moment.
    :returns: an aware moment in UTC, never after ``moment``.
    :raises InvalidEventError: when the zone is unknown.
    """
    moment = moment.astimezone(_UTC)
    if not isinstance(valid_for, str):
        return moment - timedelta(seconds=valid_for)
    zone = _zone(timezone)
    day = moment.astimezone(zone).date()
    return _first_moment(day if valid_for == "day" else day.replace(day=1), zone)


def check_timezone(name: str, what: str) -> None:
    """Refuse what is no time zone.

    :raises InvalidEventError: naming ``what`` and the zone.
    """
    try:
        _zone(name)
    except InvalidEventError as error:
        raise InvalidEventError(f"{what}: {error}") from None


_UTC = timezone.utc


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    if isinstance(name, str):
        if name.upper() in ("UTC", "Z"):
            return _UTC
        offset = _OFFSET.fullmatch(name)
        if offset:
            size = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
            return timezone(-size if offset[1] == "-" else size)
        try:
            return ZoneInfo(name)
        except (LookupError, OSError, ValueError):
            near = get_close_matches(name[:100], available_timezones(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ", such as 'Europe/Berlin', 'UTC' or '+02:00'"
            raise InvalidEventError(f"{name[:100]!r} is no time zone{hint}") from None
    raise InvalidEventError(f"a time zone is a name such as 'Europe/Berlin', 'UTC' or '+02:00', got {name!r}")


def _plain(expression: str) -> str:
    stripped = expression.strip()
    return _PRESETS.get(stripped.lower(), stripped)


def _walls(plain: str, after: datetime) -> Iterator[datetime]:
    """The times of the wall clock that an expression names."""
    cron = croniter(plain, start_time=after)
    while True:
        yield cron.get_next(datetime)


def _offset_at(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _offsets_around(moment: datetime, zone: tzinfo) -> list[timedelta]:
    return [_offset_at(moment + timedelta(hours=hour), zone) for hour in range(-_AROUND, _AROUND + 1)]


def _moments(wall: datetime, zone: tzinfo, twice: bool) -> list[datetime]:
    """The moments (UTC) that count as this time of the wall clock; see the module."""
    first = wall.replace(tzinfo=zone, fold=0).astimezone(_UTC)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(_UTC)
    # A time that does not exist is read with the offset from before the change, which is the later reading.
    if second <= first:
        return [first]
    return [first, second] if twice else [second]


def _first_moment(day: date, zone: tzinfo) -> datetime:
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    after = midnight.astimezone(_UTC)
    if after.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return after
    # There is no such midnight. The clock jumped over it some time between these two moments: find when.
    before = midnight.replace(fold=1).astimezone(_UTC)
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(zone).date() < day:
            before = middle
        else:
            after = middle
    return after


@lru_cache(maxsize=256)
def _range_of_offsets(timezone: str) -> timedelta:
    zone = _zone(timezone)
    if not isinstance(zone, ZoneInfo):
        return timedelta(0)
    # Twice a month: the shortest summer time, Morocco's around Ramadan, lasts a month.
    offsets = [_offset_at(datetime(2000, 1, 1, tzinfo=_UTC) + timedelta(days=14 * n), zone) for n in range(26 * 60)]
    return max(offsets) - min(offsets)


def _values(expanded: list[int | str], size: int) -> list[int]:
    """The values of a field of croniter's, in order."""
    return list(range(size)) if expanded == ["*"] else sorted(int(value) for value in expanded)


def _most_days(plain: str) -> int:
    """The most days from a day that the expression names to the next one."""
    fields = plain.split()
    day, month, weekday = croniter(plain).expanded[2:5]
    if day == ["*"] and month == ["*"] and "#" not in fields[4] and "l" not in fields[4].lower():
        days = _values(weekday, 7)
        return max(later - earlier for earlier, later in zip(days, [*days[1:], days[0] + 7], strict=True))
    return _most_days_of_years(" ".join(["0 0", *fields[2:5]]))


def _most_days_of_years(daily: str) -> int:
    """The same, over the 400 years after which the calendar repeats. There are only 14 kinds of years."""
    kinds: dict[tuple[int, bool], tuple[int, list[int]]] = {}
    most, last, start = 0, None, 0
    for year in range(2000, 2450):
        first = date(year, 1, 1)
        length = (date(year + 1, 1, 1) - first).days
        kind = (first.weekday(), length == 366)
        if kind not in kinds:
            kinds[kind] = (length, _days_of_year(daily, year))
        for number in kinds[kind][1]:
            if last is not None:
                most = max(most, start + number - last)
            last = start + number
        start += length
    return most


def _days_of_year(daily: str, year: int) -> list[int]:
    days = []
    try:
        for wall in _walls(daily, datetime(year - 1, 12, 31, 23, 59)):
            if wall.year != year:
                break
            days.append(wall.timetuple().tm_yday)
    except CroniterBadDateError:
        pass
    return days
