"""The curves of ``docs/performance.md``: how each cost grows with the number of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]


class Picture(NamedTuple):
    """One diagram.

    :param curves: label by the name of the figure.
    :param scale: what the values are divided by.
    """

    title: str
    unit: str
    curves: Mapping[str, str]
    scale: float = 1.0
    waiting: str = "groups of 20 events that wait"


PICTURES: Mapping[str, Sequence[Picture]] = {
    "performance-groups.svg": (
        Picture(
            "From a message to its green marker",
            "ms",
            {"marker kafka": "Kafka", "patch": "one bare PATCH"},
            0.001,
        ),
        Picture(
            "From new triggers to all of them waiting",
            "s",
            {"start": "groups", "start of idle triggers": "idle triggers of Airflow"},
        ),
        Picture(
            "Memory of the triggerer, beyond one wait",
            "MB",
            {"memory per wait, in all": "groups", "memory per idle trigger, in all": "idle triggers of Airflow"},
            1e6,
        ),
        Picture(
            "Processor time of the triggerer at rest",
            "% of a core",
            {"cpu": "groups", "cpu of idle triggers": "idle triggers of Airflow"},
            0.01,
        ),
        Picture(
            "From kill -9 to all groups waiting again",
            "s",
            {"recovery": "in all", "recovery, from the first taken over": "from when Airflow hands them over"},
        ),
        Picture("Connections to Kafka, 5 topics", "connections", {"connections": "one triggerer"}),
    ),
    "performance-throughput.svg": (
        Picture(
            "Messages through hub and index",
            "messages/s",
            {"hub": "hub and index", "bare": "bare aiokafka with JSON decoding"},
            waiting="events that wait",
        ),
    ),
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what was measured; a picture without any curve is left as it is."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "event_triggers"
    import matplotlib.pyplot as plt

    drawn = []
    for name, pictures in PICTURES.items():
        able = [one for one in pictures if any(len(report.curve(curve)) > 1 for curve in one.curves)]
        if not able:
            continue
        rows = -(-len(able) // 2)
        columns = min(2, len(able))
        figure, axes = plt.subplots(rows, columns, figsize=(5.5 * columns, 3.6 * rows), squeeze=False)
        flat = list(axes.flat)
        for picture, axis in zip(able, flat, strict=False):
            _draw(report, picture, axis)
        for axis in flat[len(able) :]:
            axis.remove()
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)
        drawn.append(folder / name)
    return drawn


def _draw(report: Report, picture: Picture, axis: Axes) -> None:
    for name, label in picture.curves.items():
        figures = report.curve(name)
        if not figures:
            continue
        waiting = [figure.at or 0 for figure in figures]
        medians = [figure.median / picture.scale for figure in figures]
        (line,) = axis.plot(waiting, medians, marker="o", label=label)
        lows = [figure.quantile(0.1) / picture.scale for figure in figures]
        highs = [figure.quantile(0.9) / picture.scale for figure in figures]
        axis.fill_between(waiting, lows, highs, alpha=0.15, color=line.get_color())
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_title(picture.title, fontsize=10)
    axis.set_xlabel(picture.waiting, fontsize=8)
    axis.set_ylabel(picture.unit, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
