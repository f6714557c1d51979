"""Log lines that never block the triggerer's event loop.

What runs in Airflow's triggerer writes its log into a socket, which its other process, the supervisor, reads while it
does nothing else. It does not while it hands over new triggers, each with its DAG: a megabyte, for which our event loop
has to come by several times. If the loop is in the middle of a line then, and the socket is full, both wait for each
other for ever (seen on Airflow 3.3.2 when a thousand groups began). Some 200 lines fill it.

Flow: a filter in front of the handler that writes into the socket lets a line pass while there is plenty of room. What
is logged in the event loop when there is not, waits in a line, which is written when the socket can take it. A thread
that logs waits by itself.

Invariants: lines of the event loop keep their order and their context, by which Airflow knows the task. No line passes
that finds less than the room that the system calls writable: three quarters of the socket's buffer, on Linux. At most
:data:`MOST_WAITING` lines wait; how many more were left out, is logged.

What waits when the loop ends is written with the next line, or by the next loop. A restart forgets it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import select
import stat
import threading
from collections import deque

from event_triggers.text import plain_logger

__all__ = ["MOST_WAITING", "spare_the_loop"]

log = plain_logger(__name__)

MOST_WAITING = 10_000
"""Lines that wait at most, each of about a kilobyte."""
_AT_ONCE = 32
"""Lines written in one turn of the event loop."""


def spare_the_loop(logger: logging.Logger | None = None) -> None:
    """Let no line of the running event loop wait for whoever reads the log. Safe to repeat.

    :param logger: whose handlers are looked through for those that write into a socket; by default the root's.
    """
    for handler in (logger or logging.getLogger()).handlers:
        descriptor = _socket_of(handler)
        if descriptor is not None:
            gate = next((one for one in handler.filters if isinstance(one, _Gate)), None) or _Gate(handler, descriptor)
            handler.addFilter(gate)  # once, however often
            gate.spare(asyncio.get_running_loop())


def _socket_of(handler: logging.Handler) -> int | None:
    """The socket that this handler writes into, if it is one."""
    stream = getattr(handler, "stream", None)
    try:
        descriptor = int(stream.fileno()) if stream is not None else -1
        return descriptor if stat.S_ISSOCK(os.fstat(descriptor).st_mode) else None
    except (AttributeError, OSError, ValueError):
        return None  # not a file of the system


class _Gate(logging.Filter):
    """Lets pass what can be written at once."""

    def __init__(self, handler: logging.Handler, descriptor: int) -> None:
        super().__init__()
        self._handler = handler
        self._descriptor = descriptor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._line: deque[tuple[contextvars.Context, logging.LogRecord]] = deque()
        self._left_out = 0
        self._writing = False

    def spare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let nothing wait in this event loop, which is the one that runs in this thread."""
        if self._loop is not loop:
            self._loop, self._thread = loop, threading.get_ident()
            if self._line:
                loop.add_writer(self._descriptor, self._write_some)

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() != self._thread:
            # Before the handler's lock is taken, which the event loop would wait for.
            self._has_room(None)
            return True
        if self._writing:
            return True
        if self._loop is None or self._loop.is_closed():
            self._write(len(self._line))
            self._say_what_was_left_out()
            return True
        if not self._line and self._has_room(0):
            return True
        self._put_off(record, self._loop)
        return False

    def _has_room(self, milliseconds: int | None) -> bool:
        poll = select.poll()  # of this call: threads must not share one
        poll.register(self._descriptor, select.POLLOUT)
        # That nobody reads any more is found out by writing.
        return bool(poll.poll(milliseconds))

    def _put_off(self, record: logging.LogRecord, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._line) >= MOST_WAITING:
            self._left_out += 1
            return
        if not self._line:
            loop.add_writer(self._descriptor, self._write_some)
        self._line.append((contextvars.copy_context(), record))

    def _write_some(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._line:
                asyncio.get_running_loop().remove_writer(self._descriptor)
                self._say_what_was_left_out()
                return
            if not self._has_room(0):
                return
            self._write(1)

    def _write(self, lines: int) -> None:
        self._writing = True
        try:
            for _ in range(min(lines, len(self._line))):
                context, record = self._line.popleft()
                context.run(self._handler.handle, record)
        finally:
            self._writing = False

    def _say_what_was_left_out(self) -> None:
        left_out, self._left_out = self._left_out, 0
        if left_out:
            log.warning("%d lines of the log were left out here, which Airflow's supervisor did not read", left_out)
