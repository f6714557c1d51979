"""Any trigger of Airflow as a member of a group.

Flow::

    watch -> an instance of the trigger -> run() -> events -> yielded -> settled
               ^                             |
               '---- again, when it ends ----'

Invariants:

* The trigger runs only while somebody wants an event of it (between ``watch`` and ``unwatch``), in a task of its own
  that is cancelled once, as Airflow's triggerer cancels it, and whose end is waited for, though not for ever. Then its
  ``cleanup()`` is called.
* A trigger that ended after an event is run again for the next one. One that ends at once again and again is run with
  growing pauses; a group that comes later gets its run without one.
* No more than :data:`_MOST_WAITING` events wait to be taken; until then the trigger is not asked for more.
* An event is handed out again until it is settled, as long as this process lives: see
  :mod:`event_triggers.sources._fired`.

A trigger has no acknowledgement, so a restart can lose an event: one that was fired and not yet recorded is only there
again if the trigger finds again what it has found. That a file exists it does; a message that it took from a queue it
does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Hashable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import anyio.to_thread

from event_triggers.backoff import Backoff
from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.message import Message
from event_triggers.sources import _airflow_trigger as airflow_trigger
from event_triggers.sources._fired import Fired, fired_by
from event_triggers.sources.base import Opening, Outcome, Settlement, Source, Stream
from event_triggers.text import plain_logger, text_of

__all__ = ["FromTrigger"]

log = plain_logger(__name__)

_MOST_WAITING = 100
"""How many events may wait to be taken before the trigger is not asked for more."""
_CLOSE_WITHIN = 2.0
"""Seconds that a trigger may take to end when it is cancelled, and as many for its ``cleanup()``."""
_KILL_WITHIN = 15.0
"""Seconds that ``on_kill()`` may take."""
_BRIEF = 1.0
"""A run of a trigger that took fewer seconds has found what it waits for at once."""
_BRIEF_AT_ONCE = 5
"""How many of those may follow each other without a pause."""


@dataclass(frozen=True, init=False)
class FromTrigger(Source):
    """The events of one of Airflow's triggers, of any provider.

    Equal ones share one running trigger per triggerer. It belongs to no task there, as the trigger of an asset watcher.

    :param trigger: the trigger; or the dotted path of its class, which then need not be installed where DAG files are
        parsed, and whose arguments may hold templates that its constructor would refuse.
    :param kwargs: with a path: the arguments of the class. They may hold templates. Secrets must be templates.
    :param body: the dotted path of what in an event's payload is the body of the message (``"data"``); text there is
        taken as it is, so that JSON in it can be matched. By default the body is the whole payload, as JSON.
    :param name: what logs call it; by default the name of the class.
    :raises InvalidEventError: when it is no trigger, or one that cannot be stored.
    """

    path: str
    kwargs: Mapping[str, Any] = field(repr=False, compare=False)
    coded: Mapping[str, str] = field(repr=False, compare=False)
    body: str
    title: str
    identity: str = field(repr=False)
    """Of the trigger that runs: equal for equal classes and arguments."""

    kind: ClassVar[str] = "trigger"

    def __init__(
        self,
        trigger: Any,
        kwargs: Mapping[str, Any] | None = None,
        *,
        body: str = "",
        name: str = "",
        coded: Mapping[str, str] | None = None,
    ) -> None:
        path = trigger
        if not isinstance(trigger, str):
            if kwargs is not None:
                raise InvalidEventError("FromTrigger takes kwargs with the path of a class only, not with a trigger")
            path, kwargs = airflow_trigger.described(trigger)
        if coded is None:
            # As a declaration; else it comes from serialize(), and its templates may be rendered to secrets.
            plain, coded = airflow_trigger.encoded(kwargs or {})
            airflow_trigger.refuse_secrets(path, plain)
        else:
            plain = dict(kwargs or {})
        content = json.dumps([path, plain, dict(coded), body], sort_keys=True, default=repr)
        fields = (path, plain, dict(coded), body, name, hashlib.sha256(content.encode()).hexdigest())
        for one, value in zip(("path", "kwargs", "coded", "body", "title", "identity"), fields, strict=True):
            object.__setattr__(self, one, value)

    def key(self, group: str) -> Hashable:
        return (self.kind, self.identity)

    @property
    def name(self) -> str:
        return self.title or self.path.rpartition(".")[2]

    def validate(self) -> None:
        if not ("." in self.path and all(part.isidentifier() for part in self.path.split("."))):
            raise InvalidEventError(
                f"FromTrigger: {self.path!r} is no dotted path of a trigger class; it cannot be a template, or whoever "
                f"fills it in would choose what runs in the triggerer"
            )
        for option, value in (("body", self.body), ("name", self.title)):
            if not isinstance(value, str):
                raise InvalidEventError(f"FromTrigger {self.name!r}: {option} must be text, not {value!r}")

    def serialize(self) -> dict[str, Any]:
        own = {"trigger": self.path, "kwargs": dict(self.kwargs), "coded": dict(self.coded)}
        return {
            "type": f"{type(self).__module__}.{type(self).__qualname__}",
            **own,
            "body": self.body,
            "name": self.title,
        }

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        """Make the trigger, and give its stream. It begins to run when it is watched.

        :raises ConfigurationError: when its class cannot be imported, or does not take these arguments.
        """
        # In a thread, since a provider may take its time to be imported.
        await anyio.to_thread.run_sync(airflow_trigger.class_named, self.path)
        stream = _TriggerStream(self, opening)
        try:
            yield stream
        finally:
            await stream.close()

    async def forget(self, opening: Opening) -> None:
        """Call the trigger's ``on_kill()``, on a new instance, when a person has ended the last wait for it."""
        if not opening.killed:
            return
        trigger = self._made()
        on_kill = getattr(trigger, "on_kill", None)  # there since Airflow 3.3
        if on_kill is None:
            return
        try:
            await airflow_trigger.let_it_block()
            with anyio.fail_after(_KILL_WITHIN):
                await on_kill()
        finally:
            await _clean_up(trigger, self.label)

    def _made(self) -> Any:
        return airflow_trigger.made(self.path, self.kwargs, self.coded)


async def _clean_up(trigger: Any, label: str) -> None:
    try:
        with anyio.move_on_after(_CLOSE_WITHIN, shield=True) as limit:
            await trigger.cleanup()
    except Exception as error:
        log.warning("%s: its cleanup() raised %s: %s", label, type(error).__name__, text_of(error))
    else:
        if limit.cancelled_caught:
            log.warning("%s: its cleanup() took longer than %g s and was cancelled", label, _CLOSE_WITHIN)


class _TriggerStream(Stream):
    """One trigger, run again and again. Also its own iterator: a pull that is cancelled can be made again."""

    def __init__(self, source: FromTrigger, opening: Opening) -> None:
        self._source = source
        self._label = source.label
        self._clock = opening.clock
        self._tell = opening.tell
        self._first: Any = source._made()  # what cannot be made is known before anybody waits
        self._fired: Fired = fired_by(source.identity)
        self._waiting: deque[Message] = deque()
        self._unsettled: dict[str, Message] = {}
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._asked = asyncio.Event()
        self._sources: set[Source] = set()
        self._running: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._failure: Exception | None = None
        self._closed = False
        self._fired.open(self._receive, self._clock.monotonic())

    # -- handing out -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self

    async def __anext__(self) -> Sequence[Message]:
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        batch = list(self._waiting)
        self._waiting.clear()
        self._unsettled.update((message.id, message) for message in batch)
        self._room.set()
        return batch

    def _receive(self, messages: Sequence[Message]) -> None:
        """What a closed stream of this trigger was left with."""
        self._waiting.extend(messages)
        self._changed.set()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """There is nobody to be told; what a group has left is handed out again."""
        again = []
        for message, outcome in settlements:
            known = self._unsettled.pop(message.id, None)
            if known is not None and outcome is Outcome.ABANDONED:
                known.attempt += 1
                again.append(known)
        if self._closed:
            self._keep(again)
        else:
            self._waiting.extendleft(reversed(again))
            self._changed.set()

    # -- running -----------------------------------------------------------------------------------------------------

    async def watch(self, source: Source) -> None:
        self._sources.add(source)
        self._asked.set()
        if self._running is None:
            # Not in a task group of anyio: that would cancel whatever the trigger awaits to put things in order.
            self._begun.clear()
            self._running = asyncio.get_running_loop().create_task(self._run(), name=f"event_triggers: {self._label}")

    async def unwatch(self, source: Source) -> None:
        self._sources.discard(source)
        if not self._sources:
            await self._stop()

    async def close(self) -> None:
        """End the trigger, in bounded time, and keep what nobody has taken in."""
        self._closed = True
        self._fired.close(self._receive)
        with anyio.CancelScope(shield=True):
            await self._stop()
            if self._first is not None:
                await _clean_up(self._first, self._label)
        self._keep([*self._unsettled.values(), *self._waiting])

    def _keep(self, messages: Sequence[Message]) -> None:
        for message in messages:
            message.attempt += 1
        lost = self._fired.keep(messages, self._clock.monotonic())
        if lost:
            self._tell(logging.ERROR, "%s: %d events that nobody has recorded are lost", self._label, lost)

    async def _stop(self) -> None:
        task, self._running = self._running, None
        if task is None:
            return
        # Greenback swallows a cancellation that comes while it makes its portal.
        await self._begun.wait()
        for _ in range(2):
            # A second time, since a client may have lost the first: asyncio.wait_for of Python 3.11 can. Not sooner,
            # or it would disturb a trigger that is putting things in order.
            task.cancel()
            _, pending = await asyncio.wait({task}, timeout=_CLOSE_WITHIN)
            if not pending:
                break
        if pending:
            self._tell(logging.WARNING, "%s: the trigger does not end though it was cancelled", self._label)
        elif not task.cancelled() and task.exception() is not None:
            log.warning("%s: the trigger raised %r when it was cancelled", self._label, task.exception())

    async def _run(self) -> None:
        try:
            await airflow_trigger.let_it_block()
            self._begun.set()
            await self._run_again_and_again()
        except Exception as error:
            self._begun.set()
            self._failure = error
            self._changed.set()

    async def _run_again_and_again(self) -> None:
        backoff, brief = Backoff(first=_BRIEF, most=60.0), 0
        while True:
            began = self._clock.monotonic()
            self._asked.clear()
            if not await self._run_once():
                raise StreamError(f"{self._label}: the trigger ended without an event")
            brief = brief + 1 if self._clock.monotonic() - began < _BRIEF else 0
            if brief < _BRIEF_AT_ONCE:
                backoff.reset()
            else:
                await self._pause(backoff.next())

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until somebody new asks."""
        asking = asyncio.get_running_loop().create_task(self._asked.wait(), name=f"{self._label}, asked")
        pausing = asyncio.get_running_loop().create_task(self._clock.sleep(seconds), name=f"{self._label}, pause")
        try:
            await asyncio.wait({asking, pausing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            pausing.cancel()
            await asyncio.wait({asking, pausing})

    async def _run_once(self) -> bool:
        """Run the trigger to its end, and tidy up; whether it has fired."""
        trigger, self._first = self._first or self._source._made(), None
        fired = False
        try:
            async with aclosing(self._events_of(trigger)) as events:
                async for event in events:
                    await self._take(event)
                    fired = True
        except (ConfigurationError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise StreamError(f"{self._label}: the trigger raised {type(error).__name__}: {text_of(error)}") from error
        finally:
            await _clean_up(trigger, self._label)
        return fired

    def _events_of(self, trigger: Any) -> AsyncGenerator[Any, None]:
        events = trigger.run()
        if isinstance(events, AsyncGenerator):
            return events
        if isinstance(events, Coroutine):
            events.close()
        raise ConfigurationError(f"{self._label}: run() of {self._source.path} is no generator of events")

    async def _take(self, event: Any) -> None:
        if airflow_trigger.tells_of_failure(event):
            raise ConfigurationError(f"{self._label}: the trigger says that what it waits for has failed")
        body = airflow_trigger.body_of(event, self._source.body)
        identity = self._fired.next_id(body)
        now = self._clock.now()
        message = Message(
            source=FromTrigger.kind,
            stream=self._source.name,
            position=f"event {self._fired.count} at {now.isoformat(timespec='milliseconds')}",
            id=identity,
            body=body,
            timestamp=now,
        )
        if self._closed:
            # The trigger has lost its cancellation, and this is the first moment at which it can be ended.
            self._keep([message])
            raise asyncio.CancelledError
        self._waiting.append(message)
        self._changed.set()
        while len(self._waiting) >= _MOST_WAITING:
            self._room.clear()
            await self._room.wait()
