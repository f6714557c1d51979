"""``python -m event_triggers test-pattern PATTERN FILE...``: documents from files against one pattern."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from event_triggers.matching import Mismatch, explain, parse_pattern
from event_triggers.message import Message
from event_triggers.offline.lines import Line, OfflineError, read_line

__all__ = ["HELP", "add_arguments", "run"]

_NONE = object()
HELP = "Compare documents with an event pattern, and say why those that do not match do not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pattern", metavar="PATTERN", help="the pattern as JSON, or @FILE with it")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a JSON document, or one a line; '-' for the standard input. An object that has 'body' or 'text', and "
        "beside it nothing but 'key', 'headers', 'topic' (or 'queue') and 'timestamp', is a whole message",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print a line for each document; 0 when at least one matches, else 1.

    :raises EventTriggersError: when pattern or files are not as they must be.
    """
    pattern = parse_pattern(_pattern(arguments.pattern), "PATTERN")
    matched = False
    for name in arguments.files:
        for where, line in _lines(name, pattern.about_message):
            mismatch = explain(pattern, _message(line))
            matched = matched or mismatch is None
            print(f"{where}: {_verdict(mismatch)}")
    return 0 if matched else 1


def _verdict(mismatch: Mismatch | None) -> str:
    if mismatch is None:
        return "matches"
    return f"does not match, {mismatch.holding} of {mismatch.leaves} hold: {mismatch}"


def _pattern(given: str) -> Any:
    text: str | bytes = _read(given[1:]) if given.startswith("@") else given
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise OfflineError(f"PATTERN is no JSON: {error}") from error


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise OfflineError(f"{name} cannot be read: {error}") from error


def _lines(name: str, about_message: bool) -> Iterator[tuple[str, Line]]:
    text = _read(name)
    if _decoded(text) is not _NONE:
        yield name, _line(name, 1, text, about_message)
        return
    for number, raw in enumerate(text.splitlines(), start=1):
        if raw.strip():
            yield f"{name}:{number}", _line(f"{name}, line {number}", number, raw, about_message)


def _line(where: str, number: int, raw: bytes, about_message: bool) -> Line:
    document = _decoded(raw)
    if isinstance(document, dict) and len(document) == 1 and not about_message:
        # {"text": "done"} is more likely a body than a message without anything around it.
        return Line(number, raw.strip())
    return read_line(where, number, raw)


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _NONE


def _message(line: Line) -> Message:
    return Message(
        line.source or "",
        line.stream or "",
        str(line.number),
        id=str(line.number),
        body=line.body,
        key=line.key,
        headers=line.headers,
        timestamp=line.timestamp,
    )
