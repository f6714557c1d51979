"""The ids of a Redis stream's entries, ``milliseconds-number``, as one number, which is what the hub compares."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

__all__ = ["id_before", "milliseconds_from", "moment_of", "offset_of"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SHIFT: Final = 64
_LATEST: Final = datetime.max.replace(tzinfo=timezone.utc)


def offset_of(identity: bytes) -> int:
    """The offset of the entry with this id."""
    milliseconds, _, number = identity.partition(b"-")
    return (int(milliseconds) << _SHIFT) + int(number)


def id_before(offset: int) -> str:
    """The id behind which the entry of this offset is the next."""
    milliseconds, number = divmod(max(0, offset - 1), 1 << _SHIFT)
    return f"{milliseconds}-{number}"


def moment_of(offset: int) -> datetime:
    """The time in an id; whoever makes ids by hand writes any number, and what is no date becomes the last date."""
    try:
        return _EPOCH + timedelta(milliseconds=offset >> _SHIFT)
    except OverflowError:
        return _LATEST


def milliseconds_from(moment: datetime) -> int:
    """The milliseconds of the first id that is not before this moment: rounded up, since ids have no microseconds."""
    return max(0, -((_EPOCH - moment) // timedelta(milliseconds=1)))
