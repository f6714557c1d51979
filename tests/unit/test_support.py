"""A part that is missing is skipped at home and fails where every part must be there."""

from __future__ import annotations

import pytest

from tests.support import missing


@pytest.mark.parametrize("value", [None, "", "false"])
def test_skips_at_home(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.skip.Exception, match="no broker here"):
        missing("no broker here")


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_fails_in_ci(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.fail.Exception, match="no broker here"):
        missing("no broker here")
