"""What the demo prints: a log of what it does, and below it a live table of the run's tasks.

On a terminal the table is drawn again in its place; elsewhere (a pipe, a CI log) each change is a line.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

__all__ = ["Row", "View", "short"]

_CLEAR_BELOW = "\x1b[J"
_COLOURS = {"success": "32", "deferred": "35", "running": "36", "failed": "31", "upstream_failed": "33"}
_WIDEST = 140


class Row(NamedTuple):
    """One task as it is now.

    :param since: when it came into this state, in seconds since the epoch.
    :param came: what it shows of its message.
    """

    task_id: str
    state: str | None
    since: float | None
    came: str


class View:
    """Prints.

    :param out: where to; a terminal gets the live table.
    """

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._began = time.monotonic()
        self._rows: Sequence[Row] = ()
        self._drawn = 0

    def say(self, text: str) -> None:
        """Print a line of the log, with the seconds since the beginning."""
        lines = text.splitlines() or [""]
        head = f"{time.monotonic() - self._began:6.1f} s  "
        block = "\n".join((head if not place else " " * len(head)) + line for place, line in enumerate(lines))
        self._erase()
        self._write(block + "\n")
        self._draw()

    def plain(self, text: str) -> None:
        """Print text as it is."""
        self._erase()
        self._write(text + "\n")
        self._draw()

    def show(self, rows: Sequence[Row]) -> None:
        """The tasks are like this now."""
        before, self._rows = {row.task_id: row for row in self._rows}, rows
        if self._live:
            self._erase()
            self._draw()
            return
        for row in rows:
            old = before.get(row.task_id)
            if row.state != (old.state if old else None) or row.came != (old.came if old else ""):
                self.say(f"{row.task_id:<14} {_state(row):<9} {row.came}".rstrip())

    def leave(self) -> None:
        """The table stays as it is; what is said next goes below it."""
        self._drawn = 0
        self._rows = ()

    # The table in its place

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\r{_CLEAR_BELOW}")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._live or not self._rows:
            return
        width = min(shutil.get_terminal_size().columns, _WIDEST) - 1
        now = time.time()
        lines = ["", f"  {'task':<14} {'state':<16} {'for':>7}  message"]
        for row in self._rows:
            age = f"{now - row.since:5.1f} s" if row.since else ""
            line = f"  {row.task_id:<14} {_state(row):<16} {age:>7}  {row.came}"[:width]
            colour = _COLOURS.get(row.state or "", "")
            lines.append(f"\x1b[{colour}m{line}\x1b[0m" if colour else line)
        lines.append("")
        self._write("\n".join(lines) + "\n")
        self._drawn = len(lines)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def short(value: Any, most: int = 90) -> str:
    """A payload on one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."


def _state(row: Row) -> str:
    return row.state or "no status"
