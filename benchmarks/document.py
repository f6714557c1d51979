"""The results in ``docs/performance.md``: the part between two marks is written anew by every whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Report
from benchmarks.table import figure_rows, target_rows

__all__ = ["BEGIN", "END", "write_into"]

BEGIN = "<!-- results: written by make bench -->"
END = "<!-- end of the results -->"


def write_into(document: Path, report: Report, about: dict[str, Any]) -> None:
    """Replace what stands between the marks.

    :raises ValueError: when the marks are not there.
    """
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no {BEGIN} ... {END}")
    document.write_text(f"{before}{BEGIN}\n\n{_results(report, about)}\n{END}{after}")


def _results(report: Report, about: dict[str, Any]) -> str:
    where = (
        f"Measured on {about['at'][:10]} with {about['cores']} cores, Python {about['python']} and Airflow "
        f"{about['airflow']}, in {about['seconds']:.0f} s."
    )
    parts = [where, "", "### Targets", "", _table(target_rows(report), right={2}), ""]
    parts += ["### Figures", "", _table(figure_rows(report), right={1, 2, 3, 4, 5})]
    if report.failures:
        parts += ["", "Not measured in this run: " + ", ".join(sorted(report.failures)) + "."]
    return "\n".join(parts) + "\n"


def _table(rows: list[tuple[str, ...]], *, right: set[int]) -> str:
    head, *body = rows
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.strip() or " " for cell in row) + " |" for row in (head, tuple(rule), *body)
    )
