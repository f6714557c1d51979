"""The hub and what goes wrong: connections, settling, closing, and who is told."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from event_triggers import channel, connecting, settling
from event_triggers.backoff import Backoff
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import Opening, Outcome
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.hub_kit import LOG, QUEUE, Kit, ScriptLog, ScriptQueue, idle, numbers, scripted, soon, want

ACCEPTED, RELEASED, ABANDONED = Outcome.ACCEPTED, Outcome.RELEASED, Outcome.ABANDONED


async def test_a_connection_is_tried_again_with_growing_pauses(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    kit.broker.fail_next_open(StreamError("not now"), times=7)
    async with kit.group(want(QUEUE), live=False) as group:
        pauses = []
        for _ in range(7):
            await soon(kit.clock.wait_for_sleepers())
            pauses += kit.clock.sleepers
            kit.clock.advance(pauses[-1])
            await idle()
        await soon(group.live())
    for pause, most in zip(pauses, [0.5, 1, 2, 4, 8, 16, 30], strict=True):
        assert most * 2 / 3 <= pause <= most
    assert "memory-queue queue: the connection failed (StreamError: not now); attempt 7" in caplog.text
    assert caplog.text.count("memory-queue queue: connected again") == 1


async def test_pauses_begin_anew_after_messages_have_come(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=9)):
        for _ in range(4):
            source.stream.feed.put_nowait([scripted(1)])
            source.stream.feed.put_nowait(StreamError("gone"))
            await idle()
            assert kit.clock.sleepers[0] <= 0.5
            await kit.later(1)


async def test_pauses_begin_anew_after_a_long_connection(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source)):
        for _ in range(4):
            kit.clock.advance(61)
            source.stream.feed.put_nowait(StreamError("gone"))
            await idle()
            assert kit.clock.sleepers[0] <= 0.5
            await kit.later(1)


async def test_a_stream_that_ends_by_itself_is_a_broken_connection(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptQueue()
    async with kit.group(want(source)) as group:
        source.stream.feed.put_nowait(None)
        await kit.later()
        assert "script script: the connection failed (StreamError: script script: the stream ended" in caplog.text
        assert len(source.streams) == 2
        source.stream.feed.put_nowait([scripted(1)])
        assert numbers(await kit.received(group, 1)) == [1]


def test_pauses_are_shortened_by_chance_so_that_clients_do_not_come_in_step() -> None:
    assert len({Backoff().next() for _ in range(10)}) > 1
    backoff = Backoff(first=1, most=4)
    pauses = [backoff.next() for _ in range(5)]
    for pause, most in zip(pauses, [1, 2, 4, 4, 4], strict=True):
        assert most * 2 / 3 <= pause <= most
    assert backoff.attempts == 5
    backoff.reset()
    assert backoff.next() <= 1
    assert backoff.attempts == 1


# ------------------------------------------------------------------ what waiting cannot mend


async def test_a_wrong_configuration_is_told_at_once_to_all_who_listen(kit: Kit) -> None:
    kit.broker.fail_next_open(ConfigurationError("no such option"), name="log")
    async with (
        kit.group(want(LOG), want(QUEUE, "q"), name="a", live=False) as one,
        kit.group(want(LOG), name="b", live=False) as two,
        kit.group(want(QUEUE), name="c", live=False) as other,
    ):
        for waiting in (one.receive(), one.live(), two.receive(), two.live()):
            with pytest.raises(ConfigurationError, match="no such option"):
                await soon(waiting)
        await soon(other.live())
        async with kit.group(want(LOG), name="d") as later:
            kit.publish(1)
            assert numbers(await kit.received(later, 1)) == [1]


async def test_a_client_library_that_does_not_fit_is_a_wrong_configuration(kit: Kit) -> None:
    """Waiting does not install another version."""
    kit.broker.fail_next_open(ImportError("cannot import name 'NewThing'"), name="log")
    async with kit.group(want(LOG), live=False) as group:
        with pytest.raises(ConfigurationError, match=r"NewThing.*install one"):
            await soon(group.live())


async def test_messages_that_came_before_the_configuration_went_wrong_are_handed_over(kit: Kit) -> None:
    async with kit.group(want(QUEUE, count=2)) as group:
        kit.publish(1, to=QUEUE)
        await idle()
        kit.broker.fail_next_open(ConfigurationError("the password was changed"))
        kit.broker.cut()
        await kit.later()
        (delivery,) = await soon(group.receive())
        delivery.accept()
        await soon(group.settled())
        with pytest.raises(ConfigurationError, match="the password was changed"):
            await soon(group.receive())


async def test_a_failed_connection_is_closed_before_its_key_is_opened_again(kit: Kit) -> None:
    source = ScriptLog()
    may_close = asyncio.Event()

    async def linger() -> None:
        await may_close.wait()

    source.on_close = linger
    async with kit.group(want(source, count=9), name="a") as one:
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, since=kit.start), name="b", live=False) as two:
            await idle()
            source.stream.feed.put_nowait(ConfigurationError("no longer allowed"))
            # The stream of the past must close before anybody is told: it fails while it closes.
            may_close.set()
            with pytest.raises(ConfigurationError):
                await soon(two.live())
            await soon(one.receive())
            with pytest.raises(ConfigurationError):
                await soon(one.receive())
            async with kit.group(want(source), name="c"):
                assert [stream.closed for stream in source.streams] == [True, True, False]


async def test_a_log_source_must_open_log_streams(kit: Kit) -> None:
    class Wrong(MemoryQueue):
        replayable = True

    async with kit.group(want(Wrong("queue")), live=False) as group:
        with pytest.raises(ConfigurationError, match="Wrong says that it is replayable"):
            await soon(group.live())


# ------------------------------------------------------------------ settling


async def test_an_acknowledgement_is_tried_again_after_a_pause(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    kit.broker.fail_next_settle(StreamError("no answer"), times=2)
    async with kit.group(want(QUEUE, count=2)) as group:
        kit.publish(1, 2, to=QUEUE)
        for delivery in await kit.received(group, 2):
            delivery.accept()
        for _ in range(2):
            await idle()
            assert kit.outcomes() == []
            assert len(kit.clock.sleepers) == 1
            await kit.later(2)
        await soon(group.settled())
        assert kit.outcomes() == [(1, ACCEPTED), (2, ACCEPTED)]
    assert caplog.text.count("could not be told how 2 messages ended (StreamError: no answer)") == 2
    assert "2 will be told again, 0 will be delivered again" in caplog.text


async def test_an_acknowledgement_is_given_up_and_made_good_when_the_message_comes_again(kit: Kit) -> None:
    kit.broker.fail_next_settle(StreamError("no answer"), times=settling.MOST_TRIES)
    async with kit.group(want(QUEUE, count=2)) as group:
        kit.publish(1, to=QUEUE)
        (await kit.received(group, 1))[0].accept()
        for _ in range(settling.MOST_TRIES - 1):
            await kit.later(5)
        await soon(group.settled())
        assert kit.outcomes() == []
        await kit.later(5)
        assert kit.outcomes() == []
        kit.broker.redeliver("queue", in_flight=True)
        assert await kit.nothing(group)
        assert kit.outcomes() == [(1, ACCEPTED)]


async def test_what_is_only_given_back_is_not_told_twice(kit: Kit) -> None:
    kit.broker.fail_next_settle(StreamError("no answer"))
    async with kit.group(want(QUEUE, pattern={"n": [2]})) as group:
        kit.publish(1, to=QUEUE)
        await kit.later(5)
        assert kit.outcomes() == []
        kit.publish(2, to=QUEUE)
        (await kit.received(group, 1))[0].accept()
        await soon(group.settled())
        assert kit.outcomes() == [(2, ACCEPTED)]


async def test_a_broker_that_does_not_answer_is_not_waited_for_forever(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLE_WITHIN", 0.01)
    source = ScriptQueue()
    async with kit.group(want(source)) as group:
        source.stream.on_settle = anyio.sleep_forever
        source.stream.feed.put_nowait([scripted(1)])
        (await kit.received(group, 1))[0].accept()
        await soon(kit.clock.wait_for_sleepers())
        source.stream.on_settle = None
        await kit.later(1)
        await soon(group.settled())
        assert source.stream.told == [("0@1", ACCEPTED)]


async def test_what_was_answered_while_disconnected_is_told_on_the_next_connection(kit: Kit) -> None:
    source = ScriptQueue()
    async with kit.group(want(source, count=2)) as group:
        source.stream.feed.put_nowait([scripted(1)])
        (delivery,) = await kit.received(group, 1)
        source.stream.feed.put_nowait(StreamError("gone"))
        await idle()
        delivery.accept()
        await kit.later()
        await soon(group.settled())
        assert [stream.told for stream in source.streams] == [[], [("0@1", ACCEPTED)]]


async def test_closing_tells_the_broker_what_is_due(kit: Kit) -> None:
    source = ScriptQueue()

    async def take_time() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async with kit.group(want(source, count=3)) as group:
        source.stream.on_settle = take_time
        source.stream.feed.put_nowait([scripted(1), scripted(2)])
        (await kit.received(group, 2))[0].accept()
    assert source.stream.told == [("0@1", ACCEPTED), ("0@2", ABANDONED)]


async def test_closing_repeats_what_its_cancellation_has_interrupted(kit: Kit) -> None:
    source = ScriptQueue()
    asked = 0

    async def hang_once() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await anyio.sleep_forever()

    async with kit.group(want(source, count=3)) as group:
        source.stream.on_settle = hang_once
        source.stream.feed.put_nowait([scripted(1), scripted(2)])
        one, _ = await kit.received(group, 2)
        one.accept()
        await idle()
        assert asked == 1
    assert source.stream.told == [("0@1", ACCEPTED), ("0@2", ABANDONED)]


async def test_closing_does_not_wait_forever_for_the_broker(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_LAST_FLUSH", 0.01)
    source = ScriptQueue()
    async with kit.group(want(source), name="a") as group:
        source.stream.on_settle = anyio.sleep_forever
        source.stream.feed.put_nowait([scripted(1)])
        (await kit.received(group, 1))[0].accept()
    await soon(group.settled())
    assert source.stream.told == []


# ------------------------------------------------------------------ client libraries


@pytest.mark.parametrize("where", ["pulling", "settling", "watching"])
async def test_a_client_that_cancels_itself_is_a_broken_connection(kit: Kit, where: str) -> None:
    source = ScriptQueue()

    async def cancel(*_: object) -> None:
        raise asyncio.CancelledError

    async with kit.group(want(source, count=9)) as group:
        if where == "pulling":
            source.stream.feed.put_nowait(asyncio.CancelledError())
        elif where == "settling":
            source.stream.on_settle = cancel
            source.stream.feed.put_nowait([scripted(1)])
            (await kit.received(group, 1))[0].accept()
        else:
            source.stream.on_watch = cancel
            async with kit.group(want(ScriptQueue(source.shared)), name="b", live=False):
                await kit.later()
        await kit.later()
        assert len(source.streams) == 2
        source.stream.feed.put_nowait([scripted(2)])
        assert numbers(await kit.received(group, 1)) == [2]


async def test_a_client_that_cancels_itself_while_the_past_is_read(kit: Kit) -> None:
    source = ScriptLog()
    async with kit.group(want(source, count=9), name="a"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, since=kit.start), name="b", live=False) as late:
            await idle()
            source.stream.feed.put_nowait(asyncio.CancelledError())
            await kit.later()
            source.stream.feed.put_nowait([scripted(0)])
            assert numbers(await kit.received(late, 1)) == [0]


@pytest.mark.parametrize("kind", [ScriptQueue, ScriptLog])
async def test_closing_a_connection_is_not_disturbed_by_what_ended_it(kit: Kit, kind: type[ScriptQueue]) -> None:
    source = kind()
    steps = 0

    async def say_goodbye() -> None:
        nonlocal steps
        for _ in range(5):
            await asyncio.sleep(0)
            steps += 1

    source.on_close = say_goodbye
    async with kit.group(want(source, count=9), name="a"):
        source.stream.feed.put_nowait([scripted(0)])
        await idle()
        async with kit.group(want(source, since=kit.start), name="b", live=False):
            await idle()
    await idle()
    assert steps == 5 * len(source.streams)


async def test_closing_a_connection_is_not_waited_for_forever(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "CLOSE_WITHIN", 0.01)
    source = ScriptQueue()
    source.on_close = anyio.sleep_forever
    async with kit.group(want(source)) as group:
        source.stream.feed.put_nowait(StreamError("gone"))
        await soon(kit.clock.wait_for_sleepers())
        await kit.later()
        source.stream.feed.put_nowait([scripted(1)])
        assert numbers(await kit.received(group, 1)) == [1]


async def test_opening_can_be_given_up(kit: Kit) -> None:
    source = ScriptQueue()

    async def hang(opening: Opening) -> None:
        await anyio.sleep_forever()

    source.on_open = hang
    async with kit.group(want(source), want(MemoryLog("log"), "l"), live=False):
        await idle()
    assert source.streams == []


async def test_a_mistake_of_ours_ends_the_wait_instead_of_hanging_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def oops(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with kit.group(want(QUEUE), live=False) as group:
        monkeypatch.setattr(channel, "pause", oops)
        await idle()
        kit.broker.cut()
        with pytest.raises(ZeroDivisionError):
            await soon(group.receive())
    assert "memory-queue queue: a mistake in event_triggers ended this stream" in caplog.text
