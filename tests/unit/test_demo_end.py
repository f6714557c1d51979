"""How the demo ends, with stand-ins for what it shows and owns; :mod:`tests.integration.test_demo` runs the whole."""

from __future__ import annotations

from functools import partial
from io import StringIO
from typing import Any

import pytest

from demo import __main__ as program
from demo.view import View


class Shown:
    """As much of the demo as its end needs."""

    story = ()
    verdict: Any = True

    def __init__(self, *_: object) -> None:
        self.watch = self

    def start(self) -> None:
        pass

    def send(self, story: object) -> None:
        pass

    def finish(self) -> bool:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return bool(self.verdict)


class Owned:
    """What is given back at the end."""

    closed = 0

    def close(self) -> None:
        Owned.closed += 1


@pytest.mark.parametrize(
    ("verdict", "status", "said"),
    [
        (True, 0, "everything was as promised"),
        (False, 1, "NOT everything was as promised"),
        (RuntimeError("no broker"), 1, "FAILED: RuntimeError: no broker"),
    ],
)
def test_it_ends_by_itself_and_says_how(monkeypatch: pytest.MonkeyPatch, verdict: Any, status: int, said: str) -> None:
    monkeypatch.delenv("KEEP", raising=False)
    monkeypatch.setattr(program, "Demo", Shown)
    monkeypatch.setattr(program, "Belongings", Owned)
    printed = StringIO()
    monkeypatch.setattr(program, "View", partial(View, printed))
    monkeypatch.setattr(Owned, "closed", 0)
    monkeypatch.setattr(Shown, "verdict", verdict)
    assert program.main() == status
    assert Owned.closed
    assert said in printed.getvalue()
