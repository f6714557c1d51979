"""Opening a source's stream so that it also closes well, and reading the errors that come out of it."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from event_triggers.backoff import Backoff
from event_triggers.clock import Clock
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Source, Stream

__all__ = ["batches_of", "next_batch", "opened", "pause", "root_cause"]

CLOSE_WITHIN = 10.0
"""Seconds that a source may take to close its connection; then the closing is cancelled too."""


@asynccontextmanager
async def opened(source: Source, opening: Opening) -> AsyncIterator[Stream]:
    """``source.open(opening)``, closed in peace: the cancellation that ends it does not disturb its closing, a limit
    does.

    :raises ConfigurationError: when the source says it is a log and its stream is none.
    :raises StreamError: when it does not close in time, or its client library cancelled itself.
    """
    with anyio.CancelScope() as scope:
        try:
            async with source.open(opening) as stream:
                try:
                    if source.replayable and not isinstance(stream, LogStream):
                        raise ConfigurationError(
                            f"{source.label}: {type(source).__qualname__} says that it is replayable, so its stream "
                            f"must be a LogStream, not a {type(stream).__qualname__}"
                        )
                    yield stream
                finally:
                    # The scope was entered before the source's own ones, so it may not end before them: it changes
                    # here.
                    scope.shield = True
                    scope.deadline = anyio.current_time() + CLOSE_WITHIN
        except ConfigurationError:
            raise
        except ImportError as error:
            raise ConfigurationError(
                f"{source.label}: its client library cannot be used as it is installed here: {error}; install one "
                f"that this package supports, and restart the triggerer"
            ) from error
        except asyncio.CancelledError as error:
            scope.shield = False
            if scope.cancel_called or _cancelled_by_others():
                raise
            # Client libraries let CancelledError out when they cancel tasks of their own. Nobody cancelled us, so it is
            # a broken connection like any other; passed on, it would end the channel in silence.
            raise StreamError(f"{source.label}: its client cancelled the connection from inside") from error
    if scope.cancelled_caught:
        raise StreamError(f"{source.label}: its connection did not close within {CLOSE_WITHIN:g} s")


def _cancelled_by_others() -> bool:
    task = asyncio.current_task()
    if task is not None and sys.version_info >= (3, 11):
        return task.cancelling() > 0
    # Python 3.10 does not tell. But a channel's connections live in a task group, which passes cancellations on.
    return anyio.current_effective_deadline() == -math.inf


@asynccontextmanager
async def batches_of(stream: Stream) -> AsyncIterator[AsyncIterator[Sequence[Message]]]:
    """Iterate a stream, and end the iteration for certain: a generator left to the garbage collector ends any time."""
    batches = stream.__aiter__()
    try:
        yield batches
    finally:
        if isinstance(batches, AsyncGenerator):
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                await batches.aclose()


async def next_batch(batches: AsyncIterator[Sequence[Message]], source: Source) -> Sequence[Message]:
    """The next batch of a stream.

    :raises StreamError: when the stream ends by itself, which it must not.
    """
    try:
        return await batches.__anext__()
    except StopAsyncIteration:
        raise StreamError(f"{source.label}: the stream ended by itself") from None


async def pause(
    source: Source,
    clock: Clock,
    backoff: Backoff,
    cause: BaseException,
    tell: Callable[..., None],
    what: str = "the connection",
) -> None:
    """Wait after a failure, and say so.

    :param what: has failed.
    """
    seconds = backoff.next()
    tell(
        logging.WARNING,
        "%s: %s failed (%s: %s); attempt %d, trying again in %.1f s",
        source.label,
        what,
        type(cause).__name__,
        cause,
        backoff.attempts,
        seconds,
    )
    await clock.sleep(seconds)


def root_cause(error: BaseException) -> BaseException:
    """The error inside nested groups that says most: a configuration error if there is one, else the first."""
    nested: Sequence[BaseException] = getattr(error, "exceptions", ())
    if not nested:
        return error
    causes = [root_cause(one) for one in nested]
    return next((cause for cause in causes if isinstance(cause, ConfigurationError)), causes[0])
