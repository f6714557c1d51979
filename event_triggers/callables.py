"""Asking users' match callables, in bounded time.

A callable is a user's code: it may raise, block, or never return. It runs in a thread, and what it does wrong costs
its own event that message and nothing else.

Invariants:

* The event loop never waits longer than :data:`CALLABLE_TIMEOUT` for one call, not counting the time until it is its
  turn.
* A callable that did not return in time is not called again before it has, so one that hangs costs one thread. The
  threads are daemons: they do not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress

import anyio

from event_triggers.errors import EventTriggersError
from event_triggers.message import Message
from event_triggers.text import shown, text_of

__all__ = ["CALLABLE_TIMEOUT", "CallableError", "Callables", "MatchCallable"]

MatchCallable = Callable[[Message], bool]

CALLABLE_TIMEOUT = 10.0
"""Seconds that a match callable may take for one message."""


class CallableError(EventTriggersError):
    """A match callable gave no answer. The text says why, as the rest of a sentence about it."""


class Callables:
    """Runs match callables.

    :param most: how many of them may run at the same time.
    """

    def __init__(self, most: int = 8) -> None:
        self._limiter = anyio.CapacityLimiter(most)
        self._running: dict[MatchCallable, _Call] = {}

    def apart(self) -> Callables:
        """Within the same limit, but a call that hangs here does not hinder those there."""
        apart = Callables()
        apart._limiter = self._limiter
        return apart

    async def ask(self, accepts: MatchCallable, message: Message) -> bool:
        """What the callable says of this message.

        :raises CallableError: when it raises, does not return in time, or is still busy since an earlier message.
        """
        async with self._limiter:
            earlier = self._running.get(accepts)
            # One whose asker was cancelled, when a connection broke, may still return in time.
            if earlier is not None and not await earlier.returned():
                raise CallableError("has not returned since an earlier message")
            call = self._running[accepts] = _Call(accepts, message)
            call.when_returned(lambda: self._returned(accepts, call))
            if not await call.returned():
                raise CallableError(f"took longer than {CALLABLE_TIMEOUT:g} s")
            return call.verdict()

    def _returned(self, accepts: MatchCallable, call: _Call) -> None:
        if self._running.get(accepts) is call:
            del self._running[accepts]


class _Call:
    """One call in a thread of its own, begun when this is made."""

    def __init__(self, accepts: MatchCallable, message: Message) -> None:
        self._accepts = accepts
        self._message = message
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + CALLABLE_TIMEOUT
        self._answer: asyncio.Future[bool | CallableError] = self._loop.create_future()
        # Not a pool's thread: those are waited for when the interpreter ends, and this one may never come back.
        threading.Thread(target=self._work, daemon=True, name="event_triggers: match callable").start()

    async def returned(self) -> bool:
        """Wait for the answer until the call's time is up; whether it is there."""
        if not self._answer.done():
            await asyncio.wait({self._answer}, timeout=max(self._deadline - self._loop.time(), 0))
        return self._answer.done()

    def when_returned(self, then: Callable[[], None]) -> None:
        """Call this when it has returned, however late."""
        self._answer.add_done_callback(lambda _: then())

    def verdict(self) -> bool:
        """What it said.

        :raises CallableError: when it raised.
        """
        answer = self._answer.result()
        if isinstance(answer, CallableError):
            raise answer
        return answer

    def _work(self) -> None:
        answer = self._judge()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._answer.set_result, answer)

    def _judge(self) -> bool | CallableError:
        try:
            verdict: object = self._accepts(self._message)
            if inspect.iscoroutine(verdict):
                verdict.close()
                return CallableError("is an async function; make it a plain one")
            return bool(verdict)
        except BaseException as error:
            return CallableError(f"raised {type(error).__name__}: {shown(text_of(error))}")
