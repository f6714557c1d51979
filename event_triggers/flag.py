"""Flag: an ``asyncio.Event`` that takes memory for those who wait only while somebody does.

A triggerer holds thousands of waits with several of these each, and few are waited for at any time.
"""

from __future__ import annotations

import asyncio

__all__ = ["Flag"]


class Flag:
    """Something that has happened, or not yet. Belongs to the event loop of those who wait for it."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """It has happened: wake all who wait, even if it is cleared before they run."""
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """From now on it has not happened yet."""
        self._is_set = False

    async def wait(self) -> None:
        """Return at once if it has happened, else when it does."""
        if self._is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(one for one in self._waiters if one is not waiter)
