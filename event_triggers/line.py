"""A line: what is asked one by one is sent together, as much of it as is due.

Flow: ``ask`` puts a question into the line and waits; one or a few workers take from the line what may go together,
send it, and answer everybody who waits. A lone question is sent at once by itself, so an idle line adds no delay, and a
busy one fills its requests by itself.

Invariants:

* Whoever asks gets one answer or one error, whatever happens to the request that it travels with.
* A line serves all groups, so its worker does not end with an answer that nobody has foreseen. One that is cancelled
  puts back what is not answered yet.
* Whoever is cancelled while it waits is passed over.

Nothing is kept over a restart: what was in the line is asked again by whoever needs it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from event_triggers.text import plain_logger, text_of

__all__ = ["Line", "Waiting"]

log = plain_logger(__name__)

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class Waiting(Generic[_Question, _Answer]):
    """A question in a line."""

    __slots__ = ("_answer", "question")

    def __init__(self, question: _Question, answer: asyncio.Future[_Answer]) -> None:
        self.question = question
        self._answer = answer

    @property
    def over(self) -> bool:
        """Whether it is answered, or whoever asked has gone."""
        return self._answer.done()

    def give(self, answer: _Answer) -> None:
        """Answer it, unless that is over."""
        if not self._answer.done():
            self._answer.set_result(answer)

    def refuse(self, error: Exception) -> None:
        """Let whoever asked get this error, unless that is over."""
        if not self._answer.done():
            self._answer.set_exception(error)


class Line(Generic[_Question, _Answer]):
    """What is due.

    :param what: what stands in the line, for messages: ``"marks"``.
    :param take: of those that wait, removes the ones that go together, and gives them; called when there are any.
    :param send: sends them and answers each.
    :param failed: makes an error of what is said of a request that failed unforeseen.
    """

    def __init__(
        self,
        what: str,
        *,
        take: Callable[[deque[Waiting[_Question, _Answer]]], Sequence[Waiting[_Question, _Answer]]],
        send: Callable[[Sequence[Waiting[_Question, _Answer]]], Awaitable[None]],
        failed: Callable[[str], Exception],
    ) -> None:
        self._what = what
        self._take = take
        self._send = send
        self._failed = failed
        self._waiting: deque[Waiting[_Question, _Answer]] = deque()
        self._something = asyncio.Event()

    def __bool__(self) -> bool:
        """Whether something waits for its turn."""
        return bool(self._waiting)

    async def ask(self, question: _Question) -> _Answer:
        """The answer to this question."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(question, answer))
        self._something.set()
        return await answer

    async def work(self) -> None:
        """Take from the line and send, for ever."""
        while True:
            while not self._waiting:
                self._something.clear()
                await self._something.wait()
            taken = self._take(self._waiting)
            if not taken:
                continue
            try:
                await self._send(taken)
            except Exception as error:
                log.exception("%s could not be sent", self._what)
                failure = f"{self._what} could not be sent ({text_of(error)})"
                for waiting in taken:
                    waiting.refuse(self._failed(failure))
            except BaseException:
                self._waiting.extendleft(reversed([waiting for waiting in taken if not waiting.over]))
                raise
