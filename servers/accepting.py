"""Ending a server's accepting without losing a connection on the way."""

from __future__ import annotations

import asyncio
import socket

__all__ = ["stop_accepting"]

_ROUNDS = 4
"""Rounds of the loop from a connection that is accepted to the first step of the task that serves it."""


async def stop_accepting(listener: socket.socket) -> None:
    """Accept nothing more, and let what was accepted come to those who serve it.

    To be called before :meth:`asyncio.Server.close`: that forgets a connection which was accepted in the same round of
    the loop, and its socket stays open until the garbage collector comes by (``Server._attach`` of a closed server is
    an ``AssertionError``, which nobody hears of).
    """
    asyncio.get_running_loop().remove_reader(listener)
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
