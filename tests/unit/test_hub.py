"""The hub: who shares what, when it opens and closes, and in whose name it speaks. Messages are tested beside."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Hashable
from contextlib import AsyncExitStack

import anyio
import pytest

from event_triggers.errors import InvalidEventError, StreamError
from event_triggers.sources.base import Opening
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.hub_kit import LOG, QUEUE, Kit, ScriptLog, ScriptQueue, idle, numbers, scripted, soon, want


async def test_all_groups_of_a_key_share_one_connection(kit: Kit) -> None:
    async with AsyncExitStack() as stack:
        for number in range(20):
            interests = [want(LOG, "a"), want(LOG, "b", pattern={"n": [number]}), want(QUEUE, "c")]
            await stack.enter_async_context(kit.group(*interests, name=f"group-{number}"))
        assert kit.broker.statistics().opened == 2
        assert kit.broker.statistics().open_streams == 2
        assert [channel.entries for channel in kit.hub.statistics().channels] == [40, 20]


async def test_a_session_per_group_is_a_connection_per_group(kit: Kit) -> None:
    queue = MemoryQueue("queue", per_group=True)
    async with kit.group(want(queue), name="a"), kit.group(want(queue), name="b"):
        assert kit.broker.statistics().open_streams == 2
        assert kit.broker.sessions("queue") == {"a", "b"}


async def test_a_channel_closes_with_its_last_group(kit: Kit) -> None:
    async with kit.group(want(QUEUE), name="a"):
        async with kit.group(want(QUEUE), name="b"):
            pass
        assert kit.broker.statistics().open_streams == 1
    assert kit.broker.statistics().open_streams == 0
    assert kit.broker.statistics().opened == 1


async def test_sources_of_a_shared_connection_are_watched_as_long_as_somebody_listens(kit: Kit) -> None:
    one, two = ScriptQueue("shared"), ScriptQueue("shared")
    async with kit.group(want(one), name="a"):
        async with kit.group(want(two), name="b"):
            assert one.stream.watched == [one, two]
        await idle()
        assert one.stream.watched == [one]
    # A durable session must keep what it has subscribed to, so nothing is unwatched at the end.
    assert one.stream.watched == [one]
    assert len(one.streams) == 1
    assert two.streams == []


class PerGroup(ScriptQueue):
    """Each group has a connection of its own."""

    def key(self, group: str) -> Hashable:
        return (self.shared, group)


@pytest.mark.parametrize("satisfied_by", ["a message", "a person"])
@pytest.mark.parametrize(("kind", "given_up"), [(ScriptQueue, True), (PerGroup, False)])
async def test_what_nobody_wants_more_from_is_given_up(
    kit: Kit, kind: type[ScriptQueue], given_up: bool, satisfied_by: str
) -> None:
    """Or it would pile up in a connection that is not read. A group's own session must have its copies."""
    one, two = kind("shared"), kind("shared")
    async with kit.group(want(one, "one"), want(two, "two", count=2), name="a") as group:
        if satisfied_by == "a person":
            group.drop("one")
        else:
            one.stream.feed.put_nowait([scripted(1)])
            (await kit.received(group, 1))[0].accept()
        await idle()
        assert one.stream.watched == ([two] if given_up else [one, two])
        async with kit.group(want(one), name="b"):
            assert one in one.stream.watched
            if given_up:
                assert one.stream.watched == [two, one]
        await idle()


@pytest.mark.parametrize(("source", "times"), [(ScriptQueue(), 2), (ScriptLog(), 1)], ids=["queue", "log"])
async def test_who_comes_later_to_a_queue_has_it_asked_again(kit: Kit, source: ScriptQueue, times: int) -> None:
    async with kit.group(want(source, "a"), want(source, "b"), name="a"):
        assert len(source.stream.watched) == 1
        async with kit.group(want(source, "a"), want(source, "b"), want(source, "c", count=0), name="b"):
            assert len(source.stream.watched) == times
            source.stream.feed.put_nowait(StreamError("gone"))
            await kit.later()
            assert len(source.stream.watched) == 1


async def test_nobody_is_live_before_his_source_is_watched(kit: Kit) -> None:
    one, two, three = (ScriptQueue("shared") for _ in range(3))
    watching: dict[object, asyncio.Event] = {two: asyncio.Event(), three: asyncio.Event()}
    may_watch: dict[object, asyncio.Event] = {two: asyncio.Event(), three: asyncio.Event()}

    async def hesitate(source: object) -> None:
        watching[source].set()
        await may_watch[source].wait()

    async with kit.group(want(one), name="a"), AsyncExitStack() as stack:
        one.stream.on_watch = hesitate
        await stack.enter_async_context(kit.group(want(two), name="b", live=False))
        await soon(watching[two].wait())
        # This one comes while the other's source is being watched.
        late = await stack.enter_async_context(kit.group(want(three), name="c", live=False))
        live = asyncio.create_task(late.live())
        may_watch[two].set()
        await soon(watching[three].wait())
        await idle()
        assert not live.done()
        may_watch[three].set()
        await soon(live)


@pytest.mark.parametrize("generations", [2, 3])
async def test_a_key_is_opened_again_only_when_its_old_connection_has_closed(kit: Kit, generations: int) -> None:
    source = ScriptQueue()
    closing, may_close = asyncio.Event(), asyncio.Event()

    async def linger() -> None:
        closing.set()
        await may_close.wait()

    source.on_close = linger

    async def listen_once() -> None:
        async with kit.group(want(source), live=False):
            await idle()

    first = asyncio.create_task(listen_once())
    await soon(closing.wait())
    # The next ones come and go while the first connection is closing; the one after them must still wait for it.
    others = [asyncio.create_task(listen_once()) for _ in range(generations - 2)]
    await idle()
    await idle()
    assert kit.hub.statistics().channels == ()
    async with kit.group(want(source), live=False) as last:
        live = asyncio.create_task(last.live())
        await idle()
        assert len(source.streams) == 1
        assert not live.done()
        may_close.set()
        await soon(live)
        assert [stream.closed for stream in source.streams] == [True, False]
    await soon(asyncio.gather(first, *others))


async def test_a_log_from_which_nothing_more_is_wanted_is_closed(kit: Kit) -> None:
    async with kit.group(want(LOG, count=2), want(QUEUE, "other")) as group:
        kit.publish(1, 2, 3)
        one, two = await kit.received(group, 2)
        one.accept()
        await idle()
        assert kit.broker.statistics().open_streams == 2, "one message is not answered yet"
        two.accept()
        await idle()
        assert [channel.label for channel in kit.hub.statistics().channels] == ["memory-queue queue"]
        assert kit.broker.statistics().open_streams == 1
        await soon(group.live())
        await soon(group.settled())


async def test_a_log_stays_open_for_the_groups_that_still_need_it(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    context = contextvars.ContextVar("context", default="nobody")
    handler = _ContextHandler(context)
    context.set("satisfied")
    async with kit.group(want(LOG), name="a") as satisfied:
        context.set("waiting")
        async with kit.group(want(LOG, count=2), name="b") as waiting:
            kit.publish(1)
            (await kit.received(satisfied, 1))[0].accept()
            (await kit.received(waiting, 1))[0].accept()
            with handler:
                kit.broker.cut()
                await idle()
            assert handler.lines == {"waiting": 1}, "who has what he wants need not hear of the connection"
            await kit.later()
            kit.publish(2)
            assert numbers(await kit.received(waiting, 1)) == [2]


async def test_a_log_closes_when_the_last_event_is_dropped(kit: Kit) -> None:
    async with kit.group(want(LOG, "a"), want(LOG, "b")) as group:
        group.drop("a")
        await idle()
        assert kit.channel.entries == 1
        group.drop("b")
        await idle()
        assert kit.broker.statistics().open_streams == 0
        kit.publish(1)
        assert await kit.nothing(group)
        await soon(group.live())


async def test_a_closed_log_is_opened_anew_for_the_next_group(kit: Kit) -> None:
    async with kit.group(want(LOG)) as first:
        kit.publish(1)
        (await kit.received(first, 1))[0].accept()
        await idle()
        kit.publish(2, 3)
        async with kit.group(want(LOG, count=3, since=kit.start), name="second") as second:
            assert numbers(await kit.received(second, 3)) == [1, 2, 3]


async def test_a_queue_stays_open_while_its_group_lives(kit: Kit) -> None:
    async with kit.group(want(QUEUE)) as group:
        kit.publish(1, to=QUEUE)
        (await kit.received(group, 1))[0].accept()
        await soon(group.settled())
        await idle()
        assert kit.broker.statistics().open_streams == 1


async def test_a_dropped_event_is_not_waited_for(kit: Kit) -> None:
    kit.broker.fail_next_open(StreamError("not now"), name="log")
    async with kit.group(want(LOG, "a"), want(QUEUE, "b"), live=False) as group:
        live = asyncio.create_task(group.live())
        await idle()
        assert not live.done()
        group.drop("a")
        await soon(live)


async def test_a_log_from_which_nothing_is_wanted_is_not_opened(kit: Kit) -> None:
    async with kit.group(want(LOG, count=0)) as group:
        await soon(group.live())
        await idle()
        assert kit.broker.statistics().opened == 0


async def test_a_wrong_pattern_leaves_nothing_behind(kit: Kit) -> None:
    with pytest.raises(InvalidEventError, match="empty list"):
        async with kit.hub.subscribe("group", [want(QUEUE), want(LOG, pattern={"a": []})]):
            pass


async def test_cancelling_one_group_leaves_the_others_alone(kit: Kit) -> None:
    receiving = asyncio.Event()

    async def listen() -> None:
        async with kit.group(want(QUEUE), name="a") as group:
            receiving.set()
            await group.receive()

    async with kit.group(want(QUEUE), name="b") as other:
        task = asyncio.create_task(listen())
        await soon(receiving.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        kit.publish(1, to=QUEUE)
        assert numbers(await kit.received(other, 1)) == [1]


async def test_forgetting_waits_for_the_connection_and_the_next_one_for_it(kit: Kit) -> None:
    source = ScriptQueue()
    steps: list[str] = []
    may_close, may_forget = asyncio.Event(), asyncio.Event()

    async def linger() -> None:
        await may_close.wait()
        steps.append("closed")

    async def note_open(opening: Opening) -> None:
        steps.append("opened")

    async def forget(opening: Opening) -> None:
        await may_forget.wait()
        steps.append("forgotten")

    source.on_close, source.on_open, source.on_forget = linger, note_open, forget

    async def listen_once() -> None:
        async with kit.group(want(source)):
            pass

    listening = asyncio.create_task(listen_once())
    await idle()
    forgetting = asyncio.create_task(kit.hub.forget("group", [source, source]))
    await idle()
    async with kit.group(want(source), live=False) as group:
        may_forget.set()
        await idle()
        assert steps == ["opened"]
        may_forget.clear()
        may_close.set()
        await idle()
        assert steps == ["opened", "closed"]
        may_forget.set()
        await soon(group.live())
        assert steps == ["opened", "closed", "forgotten", "opened"]
    await soon(asyncio.gather(listening, forgetting))


async def test_a_session_that_somebody_uses_is_not_forgotten(kit: Kit) -> None:
    queue = MemoryQueue("queue", per_group=True)
    async with kit.group(want(queue), name="a"):
        pass
    async with kit.group(want(queue), name="b"):
        await soon(kit.hub.forget("a", [queue]))
        await soon(kit.hub.forget("b", [queue, MemoryLog("never opened")]))
        assert kit.broker.sessions("queue") == {"b"}


async def test_a_session_that_cannot_be_removed_is_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    await soon(kit.hub.forget("group", [MemoryQueue("queue", per_group=True, broker="nowhere")]))
    assert "memory-queue queue: what group group left at the broker could not be removed" in caplog.text


class _ContextHandler(logging.Handler):
    """Counts log lines by the value that a context variable has when they are written."""

    def __init__(self, variable: contextvars.ContextVar[str]) -> None:
        super().__init__()
        self.variable = variable
        self.lines: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[self.variable.get()] = self.lines.get(self.variable.get(), 0) + 1

    def __enter__(self) -> None:
        logging.getLogger("event_triggers").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("event_triggers").removeHandler(self)


async def test_each_group_is_told_in_its_own_context(kit: Kit) -> None:
    context = contextvars.ContextVar("context", default="nobody")
    handler = _ContextHandler(context)
    context.set("a")
    async with kit.group(want(QUEUE), name="a"):
        context.set("b")
        async with kit.group(want(QUEUE), want(QUEUE, "more"), name="b"):
            context.set("test")
            with handler:
                kit.broker.cut()
                await idle()
    assert handler.lines == {"a": 1, "b": 1}


async def test_the_channel_runs_in_nobodys_context(kit: Kit) -> None:
    context = contextvars.ContextVar("context", default="nobody")
    seen: dict[str, str] = {}
    live, past = ScriptQueue(), ScriptLog()

    async def note(step: str) -> None:
        seen[step] = context.get()

    async def note_open(opening: Opening) -> None:
        await note("open" if opening.start is None else "read the past")

    async def note_forget(opening: Opening) -> None:
        await note("forget")

    live.on_open = past.on_open = note_open
    live.on_forget = note_forget
    live.on_close = lambda: note("close")
    context.set("group")
    async with kit.group(want(live), want(past, "p", since=kit.start), live=False) as group:
        await idle()
        live.stream.on_settle = lambda: note("settle")
        live.stream.feed.put_nowait([scripted(1)])
        (await soon(group.receive()))[0].accept()
        await soon(group.settled())
        past.stream.on_locate = lambda: note("locate")
        past.stream.feed.put_nowait([scripted(1)])
        await idle()
        async with kit.group(want(past, since=kit.start), name="late", live=False):
            await idle()
    await soon(kit.hub.forget("group", [live]))
    assert seen == dict.fromkeys(["open", "settle", "locate", "read the past", "close", "forget"], "nobody")


async def test_waiting_for_messages_can_be_given_up(kit: Kit) -> None:
    async with kit.group(want(QUEUE)) as group:
        with anyio.move_on_after(0.01) as scope:
            await group.receive()
        assert scope.cancelled_caught
        kit.publish(1, to=QUEUE)
        assert numbers(await kit.received(group, 1)) == [1]
