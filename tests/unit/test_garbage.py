"""What processes of Airflow have loaded is not looked through for garbage again and again."""

from __future__ import annotations

import gc

import pytest

from event_triggers.runtime import current_runtime


async def test_the_first_trigger_of_a_triggerer_freezes_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    monkeypatch.setattr("event_triggers.garbage._frozen", False)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    runtime = current_runtime()
    assert current_runtime() is runtime
    assert frozen == [1]


def test_once_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from event_triggers.garbage import freeze_once

    frozen = []
    monkeypatch.setattr("event_triggers.garbage._frozen", False)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    freeze_once()
    freeze_once()
    assert frozen == [1]
