"""Events: what authors may write, and the way to the triggerer."""

from __future__ import annotations

import functools
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.event import Event, load_callable
from event_triggers.message import Message
from event_triggers.testing import MemoryLog

LOG = MemoryLog("log")


def is_good(message: Message) -> bool:
    return True


async def is_async(message: Message) -> bool:
    return True


class Judge:
    def is_good(self, message: Message) -> bool:
        return True

    def __call__(self, message: Message) -> bool:
        return True


not_callable = 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"source": "topic"}, "an Event's source must be a Source such as KafkaTopic(...), got 'topic'"),
        ({"source": MemoryLog}, "an Event's source must be a Source"),
        ({"source": MemoryLog("")}, "MemoryLog needs the name of a channel"),
        ({"count": 0}, "an Event's count must be a whole number from 1, got 0"),
        ({"count": -1}, "an Event's count must be a whole number from 1, got -1"),
        ({"count": True}, "an Event's count must be a whole number from 1, got True"),
        ({"count": "2"}, "an Event's count must be a whole number from 1, got '2'"),
        ({"count": 1.5}, "an Event's count must be a whole number from 1, got 1.5"),
        ({"match": {}}, "match: an empty mapping says nothing"),
        ({"match": {"a": []}}, "match['a']: an empty list allows nothing"),
        ({"match": 5}, "match must be a mapping, the dotted path of a callable, or None; got int"),
        ({"match": ["a"]}, "match must be a mapping, the dotted path of a callable, or None; got list"),
        ({"match": "function"}, "match='function' is no dotted path of a callable"),
        ({"match": "a..b"}, "match='a..b' is no dotted path of a callable"),
        ({"match": "a.b()"}, "match='a.b()' is no dotted path of a callable"),
        ({"match": lambda message: True}, "cannot be imported by the triggerer; put the function at the top level"),
        ({"match": Judge().is_good}, "cannot be imported by the triggerer"),
        ({"match": Judge()}, "cannot be imported by the triggerer"),
        ({"match": functools.partial(is_good)}, "cannot be imported by the triggerer"),
        ({"match": is_async}, "is an async function; make it a plain one"),
        ({"since": 5}, "since must be a datetime or an ISO 8601 string, got 5"),
        ({"since": "yesterday"}, "since='yesterday' is no ISO 8601 moment"),
        ({"since": "{yesterday}"}, "since='{yesterday}' is no ISO 8601 moment"),
    ],
    ids=str,
)
def test_mistakes_are_refused_in_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        Event(**{"source": LOG, **options})
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_function_of_a_dag_file_is_refused() -> None:
    def from_dag(message: Message) -> bool:
        return True

    from_dag.__qualname__ = "from_dag"
    for module in ("unusual_prefix_4d2f_my_dag", "__main__"):
        from_dag.__module__ = module
        with pytest.raises(InvalidEventError, match="not in the DAG file"):
            Event(LOG, match=from_dag)


@pytest.mark.parametrize(
    "event",
    [
        Event(LOG),
        Event(MemoryLog("log", keys=("a", "b")), match={"a": ["x", 1, None], "b": {"c": True}}, count=3),
        Event(LOG, match=f"{__name__}.is_good", since="2030-01-01T00:00:00+00:00"),
        Event(LOG, match={"date": ["{{ ds }}"]}, since="{{ ds }}"),
        Event(LOG, since="{% raw %}x{% endraw %}"),
    ],
    ids=str,
)
def test_events_travel_to_the_triggerer(event: Event) -> None:
    event.check_serialisable("name")
    assert Event.deserialize(json.loads(json.dumps(event.serialize()))) == event


def test_moments_travel_as_text() -> None:
    local = datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert Event(LOG, since=local).serialize()["since"] == "2030-01-01T00:00:00+00:00"
    assert Event(LOG, since=datetime(2030, 1, 1)).serialize()["since"] == "2030-01-01T00:00:00+00:00"


def test_what_is_rendered_is_checked_again() -> None:
    data = Event(LOG, match={"x": "{{ x }}"}, since="{{ y }}").serialize()
    assert Event.deserialize({**data, "match": None, "since": ""}) == Event(LOG)
    with pytest.raises(InvalidEventError, match="no dotted path"):
        Event.deserialize({**data, "match": "rendered badly", "since": None})
    with pytest.raises(InvalidEventError, match="no ISO 8601 moment"):
        Event.deserialize({**data, "match": None, "since": "soon"})


@pytest.mark.parametrize(
    "path", ["{{ params['check'] }}", "os.{{ x }}", "{% if True %}os.system{% endif %}", "{{x}}.y"]
)
def test_what_runs_in_the_triggerer_is_never_chosen_by_a_template(path: str) -> None:
    with pytest.raises(InvalidEventError, match="path of a callable cannot be a template"):
        Event(LOG, match=path)
    source = TypeFromTemplate(path)
    with pytest.raises(InvalidEventError, match="event 'one': its source's type must be the path of a class"):
        Event(source).check_serialisable("one")


class TypeFromTemplate(MemoryLog):
    """A source whose class is to be known later only."""

    def serialize(self) -> dict[str, Any]:
        return {**super().serialize(), "type": self.name}


def test_an_older_release_may_have_written_less() -> None:
    assert Event.deserialize({"source": LOG.serialize()}) == Event(LOG)


class Reference:
    """Stands for an XComArg."""

    def resolve(self, context: Any) -> str:
        raise NotImplementedError


def test_references_are_left_to_airflow() -> None:
    reference: Any = Reference()
    event = Event(LOG, match={"a": [reference]}, since=reference)
    event.check_serialisable("name")
    assert event.serialize()["since"] is reference


@pytest.mark.parametrize("key", [object(), b"x", float("nan")], ids=str)
def test_what_cannot_travel_is_refused_with_the_events_name(key: Any) -> None:
    event = Event(MemoryLog("log", keys=(key,)))
    with pytest.raises(InvalidEventError, match="event 'orders' cannot be sent to the triggerer"):
        event.check_serialisable("orders")


# ------------------------------------------------------------------ callables


def test_a_function_is_taken_by_its_path() -> None:
    event = Event(LOG, match=is_good)
    assert event.match == f"{__name__}.is_good"
    assert load_callable(event.match) is is_good


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.to_be.found", "match='nowhere.to_be.found' cannot be imported here: No module named 'nowhere'"),
        (f"{__name__}.nothing", "has no attribute 'nothing'"),
        (f"{__name__}.not_callable", "is a int, not a callable"),
        (f"{__name__}.is_async", "is an async function; make it a plain one"),
        ("nodots", "cannot be imported here"),
    ],
)
def test_a_callable_that_cannot_be_had_is_a_clear_error(path: str, text: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        load_callable(path)
    assert text in str(refused.value)


def test_a_module_that_fails_to_import_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_at_once.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidEventError, match="cannot be imported here: no licence"):
        load_callable("fails_at_once.check")
