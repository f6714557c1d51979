"""What processes of Airflow have loaded is not looked through for garbage again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from event_triggers.garbage import calm_collector
from event_triggers.runtime import current_runtime


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often something was frozen. Thresholds are as before in the end."""
    calls: list[int] = []
    monkeypatch.setattr("event_triggers.garbage._calmed", False)
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(1))
    before = gc.get_threshold()
    yield calls
    gc.set_threshold(*before)


async def test_the_first_trigger_of_a_triggerer_freezes_what_is_loaded(frozen: list[int]) -> None:
    gc.set_threshold(700, 10, 10)
    runtime = current_runtime()
    assert current_runtime() is runtime
    assert frozen == [1]
    assert gc.get_threshold() == (10_000, 10, 10)


@pytest.mark.parametrize("youngest", [0, 50_000], ids=["switched off", "calmer still"])
def test_a_collector_that_somebody_has_set_stays_as_it_is(frozen: list[int], youngest: int) -> None:
    gc.set_threshold(youngest, 10, 10)
    calm_collector()
    calm_collector()
    assert frozen == [1]
    assert gc.get_threshold() == (youngest, 10, 10)
