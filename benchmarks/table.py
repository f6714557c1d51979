"""The report as text, and as the JSON that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.goals import judged
from benchmarks.report import Figure, Report

__all__ = ["as_json", "as_text", "figure_rows", "met", "target_rows"]


def as_json(report: Report, about: dict[str, Any]) -> dict[str, Any]:
    """All of one run, as it stands in ``results.json``.

    :param about: where and how it was measured.
    """
    return {
        "about": about,
        "targets": judged(report),
        "figures": [figure.as_json() for figure in _ordered(report)],
        "failures": report.failures,
        "seconds": {name: round(seconds, 1) for name, seconds in report.seconds.items()},
    }


def as_text(report: Report) -> str:
    """Two tables: what was measured, and which targets are met; then what failed."""
    parts = [
        _columns(figure_rows(report), right={1, 2, 3, 4, 5}),
        "",
        _columns(target_rows(report), right={2}),
    ]
    if report.failures:
        parts += ["", "not measured:", *_failures(report)]
    return "\n".join(parts)


def _failures(report: Report) -> list[str]:
    """One line for each reason, with all that it stopped."""
    stopped: dict[str, list[str]] = {}
    for name, text in report.failures.items():
        stopped.setdefault(text.splitlines()[0][:300], []).append(name)
    return [f"  {', '.join(names)}: {reason}" for reason, names in stopped.items()]


def _ordered(report: Report) -> list[Figure]:
    return sorted(report.figures.values(), key=lambda figure: (figure.name, figure.at or 0))


def figure_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of all that was measured, its head first."""
    rows: list[tuple[str, ...]] = [("what", "waiting", "n", "median", "p10", "p90", "unit")]
    for figure in _ordered(report):
        at = "" if figure.at is None else f"{figure.at:,}"
        scale, unit = _scaled(figure)
        numbers = (figure.median, figure.quantile(0.1), figure.quantile(0.9))
        shown = [_number(number / scale) for number in numbers]
        rows.append((figure.name, at, str(len(figure.values)), *shown, unit))
    return rows


def target_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of targets, its head first; a target of several checks takes several rows."""
    rows: list[tuple[str, ...]] = [("", "target", "value", "goal")]
    for target in judged(report).values():
        verdict = "met" if target["met"] else "MISSED"
        values, goals = target["value"], target["goal"]
        if not isinstance(values, dict):
            values, goals = {"": values}, {"": goals}
        if not target["met"] and any(value is None for value in values.values()):
            verdict = "NOT MEASURED"
        what = target["what"]
        for name, value in values.items():
            text = "not measured" if value is None else _number(value)
            label = f"  {name}" if name else ""
            if name and what:
                rows.append((verdict, what, "", ""))
                verdict = what = ""
            rows.append((verdict, what or label, text, goals[name]))
            verdict = what = ""
    return rows


def _columns(rows: Sequence[tuple[str, ...]], *, right: set[int]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _scaled(figure: Figure) -> tuple[float, str]:
    """Milliseconds where seconds would be read with zeros in front, and so on."""
    if figure.unit == "s" and figure.median < 1:
        return 0.001, "ms"
    if figure.unit == "bytes":
        return 1000.0, "KB"
    if figure.unit == "of a core":
        return 0.01, "% of a core"
    return 1.0, figure.unit


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def met(targets: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How many of these are met, and how many there are."""
    found = [bool(target["met"]) for target in targets]
    return sum(found), len(found)
