"""MQTT topic filters: what is one, and which topics it takes.

A filter is a path whose levels may be ``+`` (any one level) and whose last may be ``#`` (whatever follows, or nothing).
A filter that begins with a wildcard takes no topic that begins with ``$``. ``$share/<name>/<filter>`` is a shared
subscription to the filter behind the name.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["filter_error", "matches"]

_MOST_BYTES = 65_535
_SHARED = "$share"


def filter_error(topic_filter: str) -> str | None:
    """What is wrong with this topic filter, as the end of a sentence; ``None`` when nothing is."""
    if not topic_filter:
        return "is empty"
    if "\0" in topic_filter:
        return "holds a NUL character"
    if len(topic_filter.encode("utf-8", "replace")) > _MOST_BYTES:
        return f"is longer than {_MOST_BYTES} bytes"
    levels = topic_filter.split("/")
    if levels[0] == _SHARED:
        if len(levels) < 3 or not levels[1] or not "/".join(levels[2:]) or "+" in levels[1] or "#" in levels[1]:
            return "is no shared subscription: it must be $share/<name>/<filter>, with no wildcard in the name"
        levels = levels[2:]
    for number, level in enumerate(levels):
        if "#" in level and (level != "#" or number < len(levels) - 1):
            return "has a '#' that is not the whole last level"
        if "+" in level and level != "+":
            return "has a '+' that is not a whole level"
    return None


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a (valid) filter takes this topic."""
    wanted = _levels(topic_filter)
    if wanted[0] in ("+", "#") and topic.startswith("$"):
        return False
    levels = topic.split("/")
    for number, want in enumerate(wanted):
        if want == "#":
            return True
        if number >= len(levels) or want not in ("+", levels[number]):
            return False
    return len(levels) == len(wanted)


@lru_cache(maxsize=4096)
def _levels(topic_filter: str) -> tuple[str, ...]:
    levels = tuple(topic_filter.split("/"))
    return levels[2:] if levels[0] == _SHARED and len(levels) > 2 else levels
