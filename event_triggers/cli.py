"""``python -m event_triggers COMMAND``: what can be tried without brokers and without Airflow's database.

Exit codes of every command: 0 for yes (it matches, the group is complete), 1 for no, 2 for an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from event_triggers.errors import EventTriggersError

__all__ = ["COMMANDS", "Command", "main"]


class Command(Protocol):
    """What a module of :data:`COMMANDS` has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; gives the exit code.

        :raises EventTriggersError: for what the user can mend; its text is shown, and the exit code is 2.
        """


COMMANDS = {
    "sources": "event_triggers.sources.command",
    "test-group": "event_triggers.offline.command",
    "test-pattern": "event_triggers.offline.pattern",
}
"""The module of each command. It is imported for every call, so what is slow to import it imports when it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m event_triggers", description="Try patterns and groups offline.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = cast(Command, import_module(module))
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except EventTriggersError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
