"""Asking the triggerer's supervisor: a question is seen through, whoever has gone meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from event_triggers.compat import ask_supervisor
from tests.unit.hub_kit import idle, soon


async def test_the_answer_comes_back() -> None:
    async def question() -> str:
        await asyncio.sleep(0)
        return "answer"

    assert await soon(ask_supervisor(question())) == "answer"


async def test_an_error_comes_back() -> None:
    async def question() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await soon(ask_supervisor(question()))


@pytest.mark.parametrize("fails", [True, False])
async def test_whoever_asked_may_go_but_the_answer_is_read(fails: bool) -> None:
    """Airflow 3.1 would take an answer that nobody reads for the answer to the next question."""
    answered, read = asyncio.Event(), []

    async def question() -> None:
        await answered.wait()
        read.append("answer")
        if fails:
            raise ValueError("nobody hears this, and nothing warns of it")

    asking = asyncio.ensure_future(ask_supervisor(question()))
    await idle()
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    answered.set()
    await idle()
    assert read == ["answer"]
