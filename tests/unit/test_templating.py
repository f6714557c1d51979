"""Rendering is Airflow's; what is left out of it makes no difference."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.nativetypes import NativeEnvironment

from event_triggers.templating import is_plain, quick
from event_triggers.trigger import EventGroupTrigger


def trigger(**events: Any) -> EventGroupTrigger:
    return EventGroupTrigger(events=events, markers={}, timeout=60)


@given(st.text(alphabet=st.sampled_from("ab{}%#\n\r <")))
def test_what_is_plain_is_rendered_to_itself(text: str) -> None:
    env = jinja2.Environment()  # noqa: S701 - nothing is shown
    if is_plain(text, env):
        assert env.from_string(text).render() == text


@pytest.mark.parametrize("text", ["{{ x }}", "{% if x %}", "{# x #}", "line\n", "a\r\nb", "a {{ x }} b"])
def test_what_is_a_template_or_changed_by_rendering_is_not_plain(text: str) -> None:
    assert not is_plain(text, jinja2.Environment())  # noqa: S701 - nothing is shown


def test_nothing_is_plain_where_text_becomes_numbers() -> None:
    assert not is_plain("12", NativeEnvironment())


def test_delimiters_of_a_dag_are_its_own() -> None:
    env = jinja2.Environment(variable_start_string="<<", variable_end_string=">>")  # noqa: S701 - nothing is shown
    assert is_plain("{{ x }}", env)
    assert not is_plain("<< x >>", env)


def test_a_template_is_compiled_once_for_all_environments_that_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    def env(**options: Any) -> jinja2.Environment:
        return quick(jinja2.Environment(**options))  # noqa: S701 - nothing is shown

    compiled = 0
    generate = jinja2.Environment._generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return generate(*args, **kwargs)

    monkeypatch.setattr(jinja2.Environment, "_generate", counted)
    for _ in range(3):
        assert env().from_string("{{ once }}").render(once=1) == "1"
    assert compiled == 1
    env(trim_blocks=True).from_string("{{ once }}")
    assert compiled == 2
    changed = jinja2.Environment()  # noqa: S701 - nothing is shown
    changed.filters["upper"] = len
    quick(changed).from_string("{{ once }}")
    assert compiled == 3


def test_environments_that_are_never_equal_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: dict[Any, int] = {}
    monkeypatch.setattr("event_triggers.templating._sorts", sorts)
    for number in range(150):
        env = jinja2.Environment()  # noqa: S701 - nothing is shown
        env.filters["own"] = lambda _, number=number: str(number)
        assert quick(env).from_string("{{ 'x' | own }}").render() == str(number)
    assert len(sorts) <= 100


def test_environments_do_not_share_what_is_undefined_or_global() -> None:
    strict, lax = (jinja2.Environment(undefined=kind) for kind in (jinja2.StrictUndefined, jinja2.Undefined))  # noqa: S701
    for env in (strict, lax):
        quick(env)
    assert lax.from_string("a{{ missing }}").render() == "a"
    with pytest.raises(jinja2.UndefinedError):
        strict.from_string("a{{ missing }}").render()
    strict.globals["here"] = 1
    assert strict.from_string("{{ here }}").render() == "1"
    assert lax.from_string("{{ here }}").render() == ""


def test_events_are_rendered_wherever_a_template_stands() -> None:
    event = {"match": {"date": ["{{ ds }}", "plain"], "n": [1, {"prefix": "a-{{ ds }}"}]}, "source": {"topic": "t"}}
    one = trigger(orders=event)
    rendered = one.render_template(one.events, {"ds": "2026-11-22"}, jinja2.Environment())  # noqa: S701
    assert rendered == {
        "orders": {
            "match": {"date": ["2026-11-22", "plain"], "n": [1, {"prefix": "a-2026-11-22"}]},
            "source": {"topic": "t"},
        }
    }
