"""``python -m event_triggers test-group DAG_FILE GROUP MESSAGES``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_triggers.clock import parse_datetime
from event_triggers.offline.lines import Line, OfflineError, read_lines

if TYPE_CHECKING:
    from event_triggers.offline.replaying import Replayed

__all__ = ["HELP", "add_arguments", "replayed_by", "run"]

HELP = "Replay messages against a group of a DAG file, and say which event each of them satisfies."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dag_file", type=Path, metavar="DAG_FILE", help="a Python file with the DAG")
    parser.add_argument("group", metavar="GROUP", help="the group's id, or the task id of its sensor")
    parser.add_argument("messages", type=Path, metavar="MESSAGES", help="a file with one JSON document a line")
    parser.add_argument("--dag", metavar="ID", help="the DAG, where several of the file have such a group")
    parser.add_argument(
        "--run-after", metavar="MOMENT", help="when the wait begins (default: at the first message's timestamp, or now)"
    )
    parser.add_argument("--logical-date", metavar="MOMENT", help="for templates (default: the same)")
    parser.add_argument("--run-id", default="offline", metavar="ID", help="for templates (default: %(default)s)")
    parser.add_argument("--conf", default="{}", metavar="JSON", help="the run's configuration, for templates")
    parser.add_argument(
        "--var", action="append", default=[], metavar="NAME=VALUE", help="an Airflow variable, for templates"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, and print what happened; 0 when the group is complete, else 1.

    :raises EventTriggersError: when something given is not as it must be.
    """
    # Airflow would tell what it does.
    os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "CRITICAL")
    replayed = replayed_by(arguments)
    from event_triggers.offline.report import report

    for text in report(replayed):
        print(text)
    return 0 if replayed.complete else 1


def replayed_by(arguments: argparse.Namespace) -> Replayed:
    """What became of the group.

    :raises EventTriggersError: when something given is not as it must be.
    """
    lines = read_lines(arguments.messages)
    run_after = _moment("--run-after", arguments.run_after) or _first_stamp(lines)
    logical_date = _moment("--logical-date", arguments.logical_date) or run_after
    conf = _conf(arguments.conf)
    variables = _variables(arguments.var)

    # What follows imports Airflow, which takes seconds.
    from event_triggers.offline.dagfile import Run, find_sensor, render
    from event_triggers.offline.replaying import replay

    sensor = find_sensor(arguments.dag_file, arguments.group, arguments.dag)
    group = render(sensor, Run(run_after, logical_date, arguments.run_id, conf, variables))
    return asyncio.run(replay(group, lines))


def _first_stamp(lines: Sequence[Line]) -> datetime:
    stamps = [line.timestamp for line in lines if line.timestamp is not None]
    return min(stamps, default=datetime.now(timezone.utc))


def _moment(option: str, text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_datetime(text)
    except ValueError as error:
        raise OfflineError(f"{option} {text!r} is no ISO 8601 moment: {error}") from error


def _conf(text: str) -> dict[str, Any]:
    try:
        conf = json.loads(text)
    except ValueError as error:
        raise OfflineError(f"--conf is no JSON: {error}") from error
    if not isinstance(conf, dict):
        raise OfflineError(f"--conf must be a JSON object, not {text}")
    return conf


def _variables(given: Sequence[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise OfflineError(f"--var {name!r} must be NAME=VALUE")
    return {name: value for name, _, value in pairs}
