"""Spans, cron expressions, days and months, across the changes of the clock."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest
from airflow.utils.dates import cron_presets
from hypothesis import example, given, settings
from hypothesis import strategies as st

from event_triggers.errors import InvalidEventError
from event_triggers.timing import (
    check_cron,
    check_timezone,
    check_valid_for,
    longest_cron_gap,
    looks_like_cron,
    next_cron,
    seconds_of,
    start_of,
)

UTC = timezone.utc
BERLIN = "Europe/Berlin"
# Days on which the clock is changed: by an hour, by half an hour, by two, by a whole day; at midnight, across it.
CHANGES = [
    (BERLIN, date(2026, 3, 29)),
    (BERLIN, date(2026, 10, 25)),
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
    ("Antarctica/Troll", date(2026, 3, 29)),
    ("Antarctica/Troll", date(2026, 10, 25)),
    ("America/Santiago", date(2026, 9, 6)),
    ("America/Havana", date(2026, 11, 1)),
    ("America/St_Johns", date(2006, 10, 29)),
    ("Pacific/Apia", date(2011, 12, 30)),
    ("UTC", date(2026, 3, 29)),
    ("+05:30", date(2026, 3, 29)),
]
ZONES = [*sorted({zone for zone, _ in CHANGES}), "America/New_York", "Asia/Kolkata", "Africa/Casablanca", "-09:30"]


def at(text: str, zone: str = "UTC") -> datetime:
    """A moment, from what the wall clock shows there; in UTC. ``b`` behind it: the second time it shows that."""
    wall = datetime.fromisoformat(text.rstrip("b"))
    return wall.replace(tzinfo=ZoneInfo(zone), fold=text.endswith("b")).astimezone(UTC)


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5.0), (0.25, 0.25), (timedelta(minutes=2), 120.0), (timedelta(microseconds=1), 1e-6)]
)
def test_seconds(value: timedelta | float, seconds: float) -> None:
    assert seconds_of(value, "timeout") == seconds


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, "timeout of 'x' must be longer than nothing, got 0 seconds"),
        (-1.5, "must be longer than nothing"),
        (timedelta(0), "must be longer than nothing"),
        (math.nan, "must be longer than nothing"),
        (-math.inf, "must be longer than nothing"),
        (-(10**400), "must be longer than nothing"),
        (math.inf, "is longer than a thousand years"),
        (10**400, "is longer than a thousand years"),
        (timedelta.max, "is longer than a thousand years"),
        (True, "must be a timedelta or a number of seconds, got True"),
        ("5", "must be a timedelta or a number of seconds, got '5'"),
        (None, "must be a timedelta or a number of seconds, got None"),
    ],
)
def test_what_is_no_span(value: object, says: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        seconds_of(value, "timeout of 'x'")  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_how_long_a_message_is_valid() -> None:
    assert check_valid_for("day", "valid_for") == "day"
    assert check_valid_for("month", "valid_for") == "month"
    assert check_valid_for(timedelta(hours=1), "valid_for") == 3600.0
    with pytest.raises(InvalidEventError, match=r"valid_for must be 'day', 'month', a timedelta or .*, got 'week'"):
        check_valid_for("week", "valid_for")
    with pytest.raises(InvalidEventError, match="valid_for must be longer than nothing"):
        check_valid_for(0, "valid_for")


@pytest.mark.parametrize(
    "text", ["@daily", "0 12 * * *", "* * * * * */5", "0 12 * * mon-fri", "0 0 L * *", "1 2 3 4 5 6 7"]
)
def test_what_looks_like_cron(text: str) -> None:
    assert looks_like_cron(text)


@pytest.mark.parametrize("text", ["", "3600", "2026-11-22 12:00", "{{ a + b + c + d }}", "PT5M", "12:00", "* * *"])
def test_what_does_not_look_like_cron(text: str) -> None:
    assert not looks_like_cron(text)


@pytest.mark.parametrize(
    "expression", [*cron_presets, "@MIDNIGHT", "@annually", " 0 12 * * 1-5 ", "*/5 * * * * 30", "0 0 29 2 *"]
)
def test_cron_expressions(expression: str) -> None:
    check_cron(expression, "timeout")


@pytest.mark.parametrize("preset", cron_presets)
def test_presets_mean_what_they_mean_in_airflow(preset: str) -> None:
    after = at("2026-05-17T09:31:12")
    assert next_cron(preset, after, BERLIN) == next_cron(cron_presets[preset], after, BERLIN)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "timeout: '' is no cron expression: it has 0 fields, not five; write minute, hour, day"),
        ("* * * *", "it has 4 fields"),
        ("0 0 1 1 * 0 2026", "it has 7 fields"),
        ("60 * * * *", "out of range"),
        ("0 25 * * *", "out of range"),
        ("0 0 * * frog", "is no cron expression"),
        ("*/0 * * * *", "is no cron expression"),
        ("R * * * *", "a moment left to chance (H, R) would change with every restart"),
        ("0 H(2-4) * * *", "left to chance"),
        ("0 0 30 2 *", "the cron expression '0 0 30 2 *' never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("@often", "'@often' is no preset of cron; there are @hourly, @daily"),
        (5, "timeout must be a cron expression such as '0 12 * * *', got 5"),
        ("0 0 " + "1," * 600 + "1 * *", "is no cron expression"),
    ],
)
def test_what_is_no_cron_expression(expression: str, says: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        check_cron(expression, "timeout")
    assert says in str(caught.value)
    assert str(caught.value).startswith("timeout")
    assert len(str(caught.value)) < 400


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="0159*/,-#?LWlwhrmona", min_size=1, max_size=4), min_size=5, max_size=6).map(" ".join))
def test_whatever_is_given_is_a_cron_expression_or_refused(expression: str) -> None:
    try:
        check_cron(expression, "timeout")
    except InvalidEventError:
        return
    after = at("2026-01-01T00:00")
    found = next_cron(expression, after, "UTC")
    assert timedelta(0) < found - after <= longest_cron_gap(expression, "UTC")


@pytest.mark.parametrize(
    ("expression", "after", "zone", "expected"),
    [
        ("0 12 * * *", at("2026-11-22T11:59:59.999999"), "UTC", at("2026-11-22T12:00")),
        ("0 12 * * *", at("2026-11-22T12:00"), "UTC", at("2026-11-23T12:00")),
        ("0 12 * * *", at("2026-11-22T12:00:00.000001"), "UTC", at("2026-11-23T12:00")),
        ("0 12 * * *", at("2026-07-01T10:30"), BERLIN, at("2026-07-02T10:00")),
        ("0 12 * * *", at("2026-12-01T10:30"), BERLIN, at("2026-12-01T11:00")),
        ("0 12 * * *", at("2026-12-01T09:59"), "+02:00", at("2026-12-01T10:00")),
        ("0 0 31 * *", at("2026-01-31T12:00"), "UTC", at("2026-03-31T00:00")),
        ("* * * * * */20", at("2026-01-31T12:00:20"), "UTC", at("2026-01-31T12:00:40")),
        # 02:30 does not exist on this day: it comes an hour later, and is not put off to the next day.
        ("30 2 * * *", at("2026-03-29T00:00", BERLIN), BERLIN, at("2026-03-29T03:30", BERLIN)),
        ("30 2 * * *", at("2026-03-29T03:10", BERLIN), BERLIN, at("2026-03-29T03:30", BERLIN)),
        ("30 2 * * *", at("2026-03-29T03:30", BERLIN), BERLIN, at("2026-03-30T02:30", BERLIN)),
        # ... and never later than a time that the expression names besides.
        ("15,45 2,3 * * *", at("2026-03-29T03:20", BERLIN), BERLIN, at("2026-03-29T03:45", BERLIN)),
        # 02:30 comes twice on this day: the second one counts, also between the two.
        ("30 2 * * *", at("2026-10-25T00:00", BERLIN), BERLIN, at("2026-10-25T02:30b", BERLIN)),
        ("30 2 * * *", at("2026-10-25T02:40", BERLIN), BERLIN, at("2026-10-25T02:30b", BERLIN)),
        ("30 2 * * *", at("2026-10-25T02:30b", BERLIN), BERLIN, at("2026-10-26T02:30", BERLIN)),
        # Every hour means every hour that passes.
        ("30 * * * *", at("2026-10-25T02:00", BERLIN), BERLIN, at("2026-10-25T02:30", BERLIN)),
        ("30 * * * *", at("2026-10-25T02:30", BERLIN), BERLIN, at("2026-10-25T02:30b", BERLIN)),
        ("30 * * * *", at("2026-03-29T01:30", BERLIN), BERLIN, at("2026-03-29T03:30", BERLIN)),
        # Days that begin at one o'clock, and a day that is no day at all.
        (
            "0 0 * * *",
            at("2026-09-05T23:00", "America/Santiago"),
            "America/Santiago",
            at("2026-09-06T01:00", "America/Santiago"),
        ),
        (
            "@daily",
            at("2026-11-01T00:30", "America/Havana"),
            "America/Havana",
            at("2026-11-01T00:00b", "America/Havana"),
        ),
        (
            "0 12 30 12 *",
            at("2011-12-29T12:00", "Pacific/Apia"),
            "Pacific/Apia",
            at("2011-12-31T12:00", "Pacific/Apia"),
        ),
    ],
)
def test_the_next_moment_of_a_cron_expression(expression: str, after: datetime, zone: str, expected: datetime) -> None:
    found = next_cron(expression, after, zone)
    assert found == expected
    assert found.tzinfo is UTC


def test_no_moment_within_50_years() -> None:
    with pytest.raises(InvalidEventError, match="has no moment within 50 years after 9999"):
        next_cron("0 0 1 1 *", at("9999-06-01T00:00"), "UTC")


def test_nothing_is_computed_from_what_is_no_cron_expression() -> None:
    with pytest.raises(InvalidEventError, match="cron: 'x' is no cron expression"):
        next_cron("x", at("2026-01-01T00:00"), "UTC")
    with pytest.raises(InvalidEventError, match="'0 0 30 2 \\*' never comes"):
        longest_cron_gap("0 0 30 2 *", "UTC")


def zone_of(name: str) -> timezone | ZoneInfo:
    return timezone(timedelta(hours=5, minutes=30)) if name == "+05:30" else ZoneInfo(name)


@lru_cache
def minutes_of(name: str, day: date) -> list[tuple[datetime, datetime, str]]:
    """Each minute of three days with the wall clock's time at it, and what is special: once, first, second, missing."""
    zone, seen = zone_of(name), set()
    found: list[tuple[datetime, datetime, str]] = []
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)
    for number in range(3 * 1440):
        moment = begin + timedelta(minutes=number)
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        if found and wall - found[-1][1] > timedelta(minutes=1):
            gap, before = wall - found[-1][1] - timedelta(minutes=1), found[-1][1]
            missing = range(1, gap // timedelta(minutes=1) + 1)
            # Later by as much as the clock jumps: as if it had not been changed.
            skipped = [
                (begin + timedelta(minutes=number - 1 + n), before + timedelta(minutes=n), "missing") for n in missing
            ]
            found += [*skipped, (moment, wall, "once")]
        else:
            found.append((moment, wall, "second" if wall in seen else "once"))
        seen.add(wall)
    walls = {wall for _, wall, kind in found if kind == "second"}
    return [(m, w, "first" if kind == "once" and w in walls else kind) for m, w, kind in found]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(CHANGES),
    st.sets(st.sampled_from([0, 1, 14, 15, 30, 45, 59]), min_size=1),
    st.none() | st.sets(st.integers(0, 23) | st.integers(0, 3), min_size=1, max_size=5),
    st.integers(0, 2 * 1440),
    st.integers(0, 59),
)
def test_next_moments_are_those_of_the_calendar(
    change: tuple[str, date], minutes: set[int], hours: set[int] | None, start: int, seconds: int
) -> None:
    zone, day = change
    after = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(minutes=start - 1440, seconds=seconds)
    moments = [
        moment
        for moment, wall, kind in minutes_of(zone, day)
        if wall.minute in minutes
        and (hours is None or wall.hour in hours)
        and (kind != "first" or hours is None)
        and moment > after
    ]
    written = ["*" if values is None else ",".join(map(str, sorted(values))) for values in (minutes, hours)]
    found = next_cron(" ".join([*written, "* * *"]), after, zone)
    assert found > after
    if moments:
        assert found == min(moments)
    else:
        assert found >= minutes_of(zone, day)[-1][0]


@pytest.mark.parametrize(
    ("expression", "gap"),
    [
        ("0 12 * * *", timedelta(days=1)),
        ("0 8,12 * * *", timedelta(hours=20)),
        ("*/5 * * * *", timedelta(minutes=5)),
        ("* * * * * 10", timedelta(minutes=1)),
        ("0 12 * * 1-5", timedelta(days=3)),
        ("0 12 * * mon", timedelta(days=7)),
        ("@monthly", timedelta(days=31)),
        ("0 0 31 * *", timedelta(days=61)),
        ("0 0 1 1 *", timedelta(days=366)),
        ("0 0 29 2 *", timedelta(days=8 * 365 + 1)),
        ("0 0 31 * 1", timedelta(days=7)),
        ("0 0 * * 1#5", timedelta(days=17 * 7)),
        ("0 0 * * L5", timedelta(days=35)),
    ],
)
def test_the_longest_gap(expression: str, gap: timedelta) -> None:
    assert longest_cron_gap(expression, "UTC") == gap
    assert longest_cron_gap(expression, BERLIN) == gap + timedelta(hours=1)


EXPRESSIONS = ["0 12 * * *", "30 2 * * *", "30 * * * *", "*/7 1-3 * * *", "0 0 1,15 * *", "0 0 L * *", "15 2 * 3,10 0"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2000, 1, 2), datetime(2050, 1, 1), timezones=st.just(UTC)),
)
@example("0 12 * * *", BERLIN, at("2026-10-24T12:00", BERLIN))
@example("0 12 * * *", "Pacific/Apia", at("2011-12-29T12:00", "Pacific/Apia"))
def test_no_gap_is_longer(expression: str, zone: str, after: datetime) -> None:
    first = next_cron(expression, after, zone)
    second = next_cron(expression, first, zone)
    assert after < first < second
    assert max(first - after, second - first) <= longest_cron_gap(expression, zone)


@pytest.mark.parametrize(
    ("valid_for", "moment", "zone", "start"),
    [
        ("day", at("2026-11-22T23:30"), "UTC", at("2026-11-22T00:00")),
        ("day", at("2026-11-22T23:30"), BERLIN, at("2026-11-22T23:00")),
        ("day", at("2026-11-22T23:30"), "-02:00", at("2026-11-22T02:00")),
        ("day", at("2026-11-22T00:00"), "UTC", at("2026-11-22T00:00")),
        ("month", at("2026-11-22T23:30"), "UTC", at("2026-11-01T00:00")),
        ("month", at("2026-10-31T23:30"), BERLIN, at("2026-10-31T23:00")),
        ("month", at("2026-03-31T12:00", BERLIN), BERLIN, at("2026-03-01T00:00", BERLIN)),
        (
            "day",
            at("2026-09-06T12:00", "America/Santiago"),
            "America/Santiago",
            at("2026-09-06T01:00", "America/Santiago"),
        ),
        ("day", at("2026-11-01T00:30b", "America/Havana"), "America/Havana", at("2026-11-01T00:00", "America/Havana")),
        ("day", at("2011-12-31T05:00", "Pacific/Apia"), "Pacific/Apia", at("2011-12-31T00:00", "Pacific/Apia")),
        # Toronto's clock jumped from 23:30 to 00:30.
        (
            "day",
            at("1919-03-31T12:00", "America/Toronto"),
            "America/Toronto",
            at("1919-03-31T00:30", "America/Toronto"),
        ),
        (90.5, at("2026-11-22T00:01:30"), "UTC", at("2026-11-21T23:59:59.500000")),
    ],
)
def test_from_when_a_message_counts(valid_for: str | float, moment: datetime, zone: str, start: datetime) -> None:
    found = start_of(valid_for, moment, zone)
    assert found == start
    assert found.tzinfo is UTC


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ZONES) | st.timezone_keys(allow_prefix=False),
    st.datetimes(datetime(1990, 1, 2), datetime(2050, 1, 1), timezones=st.just(UTC))
    | st.builds(
        lambda change, minutes: datetime.combine(change[1], time(), UTC) + timedelta(minutes=minutes),
        st.sampled_from(CHANGES),
        st.integers(-1440, 2880),
    ),
    st.sampled_from(["day", "month"]),
)
def test_a_day_begins_with_its_first_moment(zone: str, moment: datetime, valid_for: str) -> None:
    def shown(at: datetime) -> tuple[int, ...]:
        there = at.astimezone(ZoneInfo(zone) if zone[0] not in "+-" else zone_of_offset(zone))
        return (there.year, there.month, there.day)[: 3 if valid_for == "day" else 2]

    start = start_of(valid_for, moment, zone)
    assert start <= moment
    assert shown(start) == shown(moment)
    assert shown(start - timedelta(seconds=1)) < shown(moment)


def zone_of_offset(name: str) -> timezone:
    size = timedelta(hours=int(name[1:3]), minutes=int(name[4:]))
    return timezone(-size if name[0] == "-" else size)


@pytest.mark.parametrize("name", ["UTC", "utc", "Z", "Europe/Berlin", "+02:00", "-0930", "+00:00", "Etc/GMT-3", "EST"])
def test_time_zones(name: str) -> None:
    check_timezone(name, "timezone")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Europe/Berlim", "timezone: 'Europe/Berlim' is no time zone; did you mean 'Europe/Berlin'?"),
        ("", "timezone: '' is no time zone, such as 'Europe/Berlin', 'UTC' or '+02:00'"),
        ("+25:00", "is no time zone"),
        ("../../etc/passwd", "is no time zone"),
        ("America", "is no time zone"),
        ("a\0b", "is no time zone"),
        ("x" * 5000, "is no time zone"),
        (None, "a time zone is a name such as 'Europe/Berlin', 'UTC' or '+02:00', got None"),
    ],
)
def test_what_is_no_time_zone(name: str, says: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        check_timezone(name, "timezone")
    assert says in str(caught.value)
    with pytest.raises(InvalidEventError, match="time zone"):
        next_cron("0 12 * * *", at("2026-01-01T00:00"), name)
