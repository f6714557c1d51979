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
        self._stuck: dict[MatchCallable, _Call] = {}

    async def ask(self, accepts: MatchCallable, message: Message) -> bool:
        """What the callable says of this message.

        :raises CallableError: when it raises, does not return in time, or is still busy since an earlier message.
        """
        async with self._limiter:
            stuck = self._stuck.pop(accepts, None)
            if stuck is not None and not stuck.ended:
                self._stuck[accepts] = stuck
                raise CallableError("has not returned since an earlier message")
            call = _Call(accepts, message)
            try:
                with anyio.fail_after(CALLABLE_TIMEOUT):
                    return await call.run()
            except TimeoutError:
                raise CallableError(f"took longer than {CALLABLE_TIMEOUT:g} s") from None
            finally:
                if not call.ended:
                    self._stuck[accepts] = call


class _Call:
    """One call in a thread of its own."""

    def __init__(self, accepts: MatchCallable, message: Message) -> None:
        self._accepts = accepts
        self._message = message
        self.ended = False

    async def run(self) -> bool:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool | CallableError] = loop.create_future()

        def tell(outcome: bool | CallableError) -> None:
            if not answer.done():
                answer.set_result(outcome)

        def work() -> None:
            outcome = self._judge()
            self.ended = True
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, outcome)

        # Not a pool's thread: those are waited for when the interpreter ends, and this one may never come back.
        threading.Thread(target=work, daemon=True, name="event_triggers: match callable").start()
        outcome = await answer
        if isinstance(outcome, CallableError):
            raise outcome
        return outcome

    def _judge(self) -> bool | CallableError:
        try:
            verdict: object = self._accepts(self._message)
            if inspect.iscoroutine(verdict):
                verdict.close()
                return CallableError("is an async function; make it a plain one")
            return bool(verdict)
        except BaseException as error:
            return CallableError(f"raised {type(error).__name__}: {error}")
