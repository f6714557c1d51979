"""Which hooks there are, as a process of the API server remembers it."""

from __future__ import annotations

import asyncio

import pytest

from event_triggers.errors import ConfigurationError
from event_triggers.hooks.webhook import WebhookHook
from event_triggers.server.hook_book import BusyError, HookBook, Looked


class Connections:
    """Airflow's connections, and how often somebody looked."""

    def __init__(self) -> None:
        self.looked: list[str] = []
        self.error: Exception | None = None

    def __call__(self, conn_id: str) -> Looked | None:
        self.looked.append(conn_id)
        if self.error is not None:
            raise self.error
        if conn_id == "webhook_wrong":
            return Looked(None, "[1]")
        return Looked("s", '{"scheme": "bearer"}') if conn_id == "webhook_known" else None


async def test_a_hook_is_looked_up_once_for_all_who_ask() -> None:
    connections = Connections()
    book = HookBook(connections)
    found = await asyncio.gather(*(book.find("known") for _ in range(200)))
    assert {hook and hook.scheme for hook in found} == {"bearer"}
    assert connections.looked == ["webhook_known"]


async def test_names_that_no_hook_has_are_not_looked_up() -> None:
    connections = Connections()
    assert [await HookBook(connections).find(name) for name in ("", "a/b", "-", "x" * 101)] == [None] * 4
    assert connections.looked == []


async def test_who_guesses_names_is_slowed_down_and_hinders_nobody_else() -> None:
    connections = Connections()
    book = HookBook(connections)
    await book.find("known")

    async def guess() -> None:
        for number in range(10_000):
            await book.find(f"guess-{number}")

    with pytest.raises(BusyError):
        await guess()
    assert len(connections.looked) < 10_000
    assert await book.find("known") is not None


async def test_a_wrong_connection_is_told_each_time_and_an_outage_is_not_remembered() -> None:
    connections = Connections()
    book = HookBook(connections)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="not a JSON object"):
            await book.find("wrong")
    connections.error = OSError("away")
    with pytest.raises(OSError, match="away"):
        await book.find("known")
    connections.error = None
    assert await book.find("known") is not None


@pytest.mark.parametrize(
    ("uri", "works", "said"),
    [
        ('{"conn_type": "webhook", "password": "s", "extra": {"previous_secret": "t"}}', True, "2 secrets"),
        ('{"conn_type": "webhook", "extra": {"scheme": "open"}}', True, "anybody"),
        ('{"conn_type": "webhook"}', False, "no secret"),
    ],
)
def test_the_button_that_tests_a_connection(uri: str, works: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEBHOOK_X", uri)
    result, text = WebhookHook("webhook_x").test_connection()
    assert (result, said in text) == (works, True)
