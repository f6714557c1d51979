"""Text from outside (topics, ids, bodies, what brokers answer), made fit for a log, a note or an error.

Whoever can send a message chooses some of what this package writes down, and must not be able to forge a line of a log,
colours, or the order in which text is read. So everything that is logged goes through :func:`plain_logger`, every error
of ours through :func:`one_line`, and every note through :func:`shown`.
"""

from __future__ import annotations

import logging
import re
import traceback

__all__ = ["LINE_LIMIT", "one_line", "plain_logger", "shown", "storable", "text_of", "without_credentials"]

LINE_LIMIT = 8000
"""The most characters of one line in a log, and of an error's text."""
_VIEW = 400
_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"<>]+@")
_MOST_CAUSES = 20


def shown(text: str, limit: int = _VIEW) -> str:
    """``text`` on one line, without control or bidirectional characters, no longer than ``limit``."""
    if len(text) <= limit and text.isprintable():
        return text
    safe = "".join(char if char.isprintable() else _escape(char) for char in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _escape(char: str) -> str:
    return " " if char in "\n\r\t" else f"\\u{ord(char):04x}"


def one_line(text: str) -> str:
    """``text`` as one line for a log or an error, and without the login of any address that it names."""
    return shown(without_credentials(text[: LINE_LIMIT + 1]), LINE_LIMIT)


def without_credentials(text: str) -> str:
    """``text``, with ``***`` in place of what stands before the host in an address: ``https://***@example.com``."""
    return _CREDENTIALS.sub("***@", text) if "://" in text else text


def storable(text: str) -> str:
    """``text`` as every database can keep it: NUL characters and halves of surrogate pairs are spelled out.

    Any other text stays as it is, so that ids remain the same.
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in text)


def plain_logger(name: str) -> logging.Logger:
    """The logger of this name, whose records are single lines that show what deceives; a traceback follows below.

    As ever, text is only put together when somebody wants to see that level.
    """
    log = logging.getLogger(name)
    log.addFilter(_make_plain)  # a named function, so adding it again changes nothing
    return log


def _make_plain(record: logging.LogRecord) -> bool:
    try:
        text = record.getMessage()
    except Exception as error:  # an argument whose text cannot be had: a foreign exception's, perhaps
        text = f"{record.msg} (its details cannot be shown: {type(error).__name__})"
    record.msg, record.args = one_line(text), ()
    error_info = record.exc_info
    if isinstance(error_info, tuple) and error_info[1] is not None:
        record.msg += "\n" + "\n".join(_trace(error_info[1]))
        record.exc_info = None
    return True


def _trace(error: BaseException) -> list[str]:
    """The error with its causes and where they were raised; their texts on one line each, cut short."""
    lines: list[str] = []
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MOST_CAUSES:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        lines += "".join(traceback.format_tb(one.__traceback__)).splitlines()
        lines.append(f"{type(one).__name__}: {shown(without_credentials(text_of(one)))}")
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        waiting += [*getattr(one, "exceptions", ()), *([cause] if cause is not None else [])]
    return lines


def text_of(error: BaseException) -> str:
    """What an error says of itself; it may be of a class that raises when it is asked."""
    try:
        return str(error)
    except Exception as problem:
        return f"(its text cannot be had: {type(problem).__name__})"
