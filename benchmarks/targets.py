"""One line of a benchmark's report: a figure, and what it should be."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Target"]


class Target(NamedTuple):
    """A figure against its limit."""

    what: str
    value: float
    limit: float
    unit: str = "times"
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        return (
            f"{'ok    ' if self.met else 'MISSED'} {self.value:9.2f} {self.unit:6} ({sign} {self.limit:g})  {self.what}"
        )
