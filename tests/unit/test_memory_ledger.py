"""The ledger in memory, as tests of DAG authors use it too."""

from __future__ import annotations

import asyncio

from event_triggers.ledger import Arrival, Book, GroupRef, Received
from event_triggers.testing import LedgerEntry, MemoryLedger
from tests.unit.hub_kit import idle, soon

GROUP = GroupRef("dag", "run", "wait")
MARKERS = {"one": "one", "two": "two"}


def received(identity: str) -> Received:
    return Received("sqs", "q", identity, identity, None, "t", payload={"id": identity}, note=f"note {identity}")


async def record(book: Book, event: str, *identities: str, wanted: int = 1) -> list[str]:
    arrival = Arrival(event, tuple(received(one) for one in identities), wanted)
    return [one.id for one in (await soon(book.record([arrival])))[event]]


async def test_it_keeps_what_is_recorded_in_order() -> None:
    ledger = MemoryLedger()
    async with ledger.open(GROUP, MARKERS, print) as book:
        assert await record(book, "two", "a", wanted=2) == ["a"]
        assert await record(book, "two", "a", "b", "c", wanted=2) == ["a", "b"]
        assert await record(book, "one", "d") == ["d"]
        assert await soon(book.load()) == {"one": "success", "two": "success"}
        assert [one.id for one in await soon(book.received("two"))] == ["a", "b"]
    assert ledger.history == [
        LedgerEntry("recorded", GROUP, "two", ("a",)),
        LedgerEntry("recorded", GROUP, "two", ("a", "b")),
        LedgerEntry("marked", GROUP, "two", "success"),
        LedgerEntry("recorded", GROUP, "one", ("d",)),
        LedgerEntry("marked", GROUP, "one", "success"),
    ]
    assert ledger.payload(GROUP, "two") == [{"id": "a"}, {"id": "b"}]
    assert ledger.payload(GROUP, "one") == {"id": "d"}
    assert ledger.note(GROUP, "two") == "note c"
    assert ledger.ids(GROUP, "two") == ["a", "b"]


async def test_every_book_of_a_group_hears_of_every_mark() -> None:
    ledger = MemoryLedger()
    async with ledger.open(GROUP, MARKERS, print) as one, ledger.open(GROUP, MARKERS, print) as other:
        await record(one, "one", "a")
        ledger.mark_by_hand(GROUP, "two", "skipped")
        ledger.mark_by_hand(GroupRef("dag", "another run", "wait"), "two", "failed")
        for book in (one, other):
            assert await soon(book.marked()) == {"one": "success", "two": "skipped"}


async def test_a_cleared_marker_begins_a_new_round() -> None:
    ledger = MemoryLedger()
    async with ledger.open(GROUP, MARKERS, print) as book:
        await record(book, "one", "a")
        ledger.clear(GROUP, "one")
        assert await soon(book.received("one")) == ()
        assert ledger.payload(GROUP, "one") == {"id": "a"}
        assert await record(book, "one", "b") == ["b"]


async def test_paused_it_hangs_like_an_airflow_that_is_away() -> None:
    ledger = MemoryLedger()
    async with ledger.open(GROUP, MARKERS, print) as book:
        ledger.pause("Airflow answered 503")
        recording = asyncio.ensure_future(record(book, "one", "a"))
        await soon(ledger.wait_for_waiting())
        await idle()
        assert not recording.done()
        assert book.trouble == ledger.trouble == "Airflow answered 503"
        ledger.resume()
        await soon(ledger.wait_for_recorded())
        assert await soon(recording) == ["a"]
        assert book.trouble is None
        assert await soon(book.sensor_state()) == "deferred"
        ledger.sensor_states[GROUP] = "failed"
        assert await soon(book.sensor_state()) == "failed"
        await soon(ledger.wait_for_books())
