"""Numbers in patterns and documents: what counts as one, the bounds of a ``numeric`` operator, and cells of the line.

JSON knows one kind of number. ``1``, ``1.0`` and ``1e0`` are equal, ``-0.0`` is ``0``, and ``true`` is none. Integers
of any size are compared exactly, also with fractions; Python does that, so nothing is rounded here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

__all__ = ["Bounds", "cell", "cells", "is_number"]

_MOST_CELLS = 4


def is_number(value: Any) -> bool:
    """Whether this is a JSON number that can be compared; booleans are none, nor are ``nan`` and infinities."""
    kind = value.__class__
    return kind is int or (kind is float and math.isfinite(value))


class Bounds(NamedTuple):
    """The numbers between two bounds; a bound that is ``None`` does not hold them back."""

    low: int | float | None
    low_open: bool
    high: int | float | None
    high_open: bool

    def holds(self, number: float) -> bool:
        """Whether a number lies between."""
        low, low_open, high, high_open = self
        if low is not None and (number <= low if low_open else number < low):
            return False
        return high is None or (number < high if high_open else number <= high)

    def __str__(self) -> str:
        if self.low is not None and self.low == self.high and not self.low_open and not self.high_open:
            return f"= {self.low}"
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.low_open else '>='} {self.low}")
        if self.high is not None:
            parts.append(f"{'<' if self.high_open else '<='} {self.high}")
        return " and ".join(parts)


def cells(low: float, high: float) -> tuple[int, range] | None:
    """The cells that cover a range when the line is cut into pieces about as wide as the range itself.

    :returns: the width as a power of two, and the numbers of the cells; ``None`` where floats cannot tell.
    """
    try:
        width = math.frexp(high - low)[1]
    except OverflowError:
        return None
    first, last = cell(low, width), cell(high, width)
    if first is None or last is None or last - first >= _MOST_CELLS:
        return None
    return width, range(first, last + 1)


def cell(number: float, width: int) -> int | None:
    """The cell of this width (a power of two) that holds a number; ``None`` beyond what floats can tell.

    It never falls while the number grows, so what lies within a range lies within the range's cells, rounded or not.
    """
    try:
        return math.floor(math.ldexp(number, -width))
    except (OverflowError, ValueError):
        return None
