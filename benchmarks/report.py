"""What has been measured: figures with all their values, and which parts failed.

A figure is named, and may be one of a curve: the same name for several numbers of waiting groups (or events). A part
that fails loses its own figures only; what it had not measured is *not measured*, and reaches no target.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Figure", "NotMeasured", "Report"]


class NotMeasured(Exception):
    """A part cannot be measured, because of what it says."""


@dataclass(frozen=True)
class Figure:
    """Values of one kind, measured under the same conditions.

    :param name: what was measured.
    :param at: the number of groups (or events) that waited meanwhile; ``None`` where that is not what it is about.
    :param unit: of the values.
    """

    name: str
    at: int | None
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def quantile(self, part: float) -> float:
        """The value below which this part (0 to 1) of the values lies, linearly between two of them."""
        ordered = sorted(self.values)
        place = part * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    def as_json(self) -> dict[str, Any]:
        """How it stands in ``results.json``."""
        return {
            "name": self.name,
            "at": self.at,
            "unit": self.unit,
            "count": len(self.values),
            "median": self.median,
            "p10": self.quantile(0.1),
            "p90": self.quantile(0.9),
            "least": min(self.values),
            "most": max(self.values),
        }


@dataclass
class Report:
    """All that one run of the benchmark knows."""

    figures: dict[tuple[str, int | None], Figure] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: float | Iterable[float], unit: str, *, at: int | None = None) -> Figure:
        """Keep what was measured; more of the same is put to what is there.

        :raises ValueError: when there are no values.
        """
        given = (float(values),) if isinstance(values, int | float) else tuple(map(float, values))
        known = self.figures.get((name, at))
        figure = Figure(name, at, unit, (known.values if known else ()) + given)
        if not figure.values:
            raise ValueError(f"{name} has no values")
        self.figures[name, at] = figure
        return figure

    def get(self, name: str, at: int | None = None) -> Figure:
        """A figure.

        :raises NotMeasured: when there is none.
        """
        try:
            return self.figures[name, at]
        except KeyError:
            raise NotMeasured(name if at is None else f"{name} at {at}") from None

    def median(self, name: str, at: int | None = None) -> float:
        """The median of a figure.

        :raises NotMeasured: when there is none.
        """
        return self.get(name, at).median

    def curve(self, name: str) -> list[Figure]:
        """The figures of this name that are parts of a curve, by how many waited."""
        found = [figure for figure in self.figures.values() if figure.name == name and figure.at is not None]
        return sorted(found, key=lambda figure: figure.at or 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure something; whatever goes wrong is kept, and the rest goes on."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            self.failures[name] = f"{type(error).__name__}: {error} ({where})"
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
