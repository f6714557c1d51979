"""What sources have in common: reading declarations, work beside a stream, pauses of what nobody wants, offsets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from event_triggers.errors import ConfigurationError, InvalidEventError
from event_triggers.sources.base import Source

__all__ = ["NotedOffset", "beside", "check_fields", "check_rendered", "is_text", "is_whole", "release_delay"]

_LONGEST_RELEASE: Final = 60


def is_text(value: object) -> bool:
    """Whether this is a text, and not an empty one."""
    return isinstance(value, str) and value != ""


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether this is a whole number within these bounds, and no ``True`` or ``False``."""
    return type(value) is int and least <= value <= most


def check_fields(source: Source, *checks: tuple[str, bool, str]) -> None:
    """Check the fields of a declaration.

    :param checks: of each a field's name, whether its value fits, and what it must be.
    :raises InvalidEventError: naming the first one that does not fit.
    """
    for name, fits, what in checks:
        if not fits:
            raise InvalidEventError(
                f"{type(source).__name__}({source.name!r}): {name} must be {what}, not {getattr(source, name)!r}"
            )


def check_rendered(source: Source) -> None:
    """Check a declaration once more: its templates are rendered now.

    :raises ConfigurationError: in one clear sentence.
    """
    try:
        source.validate()
    except InvalidEventError as error:
        raise ConfigurationError(str(error)) from error


@asynccontextmanager
async def beside(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> AsyncIterator[None]:
    """Run ``work``, a loop without end, for as long as the body runs. What the body raises comes out as it is."""
    broken: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, name=name)
        try:
            yield
        except Exception as error:
            # Kept from the task group, which would wrap it in a group of its own.
            broken = error
        finally:
            tasks.cancel_scope.cancel()
    if broken is not None:
        raise broken


def release_delay(attempt: int) -> int:
    """Seconds until a message that nobody wants may come again after its n-th delivery: 0, 1, 2, 4 ... 60."""
    return 0 if attempt <= 1 else min(2 ** min(attempt - 2, 6), _LONGEST_RELEASE)


class NotedOffset(int):
    """An offset that carries along what else a log needs to know where it goes on from there.

    :param note: whatever that is.
    """

    note: Any

    def __new__(cls, offset: int, note: Any) -> NotedOffset:
        self = super().__new__(cls, offset)
        self.note = note
        return self
