"""What a condition is made of: *so many of these parts hold*. See :mod:`event_triggers.condition`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["WORDS", "Part", "Parts", "holds", "make_parts", "names_of", "rest_of", "written"]

WORDS = frozenset({"all", "any", "at_least", "and", "or", "not"})
"""The words of a condition; an event of such a name is written in quotes."""


@dataclass(frozen=True, slots=True)
class Parts:
    """So many (``n``) of these parts hold. A part is an event's name, or parts again."""

    n: int
    parts: tuple[Part, ...]


Part: TypeAlias = str | Parts


def names_of(part: Part) -> Iterator[str]:
    """The names in it, in the order written."""
    if isinstance(part, str):
        yield part
    else:
        for inner in part.parts:
            yield from names_of(inner)


def holds(part: Part, come: Set[str]) -> bool:
    """Whether it holds when these events have come."""
    if isinstance(part, str):
        return part in come
    return sum(holds(inner, come) for inner in part.parts) >= part.n


def rest_of(part: Part, come: Set[str], lost: Set[str]) -> Part | bool:
    """What is left of it: true, false, or what it still depends on."""
    if isinstance(part, str):
        return True if part in come else False if part in lost else part
    n, left = part.n, []
    for inner in part.parts:
        rest = rest_of(inner, come, lost)
        if rest is True:
            n -= 1
        elif rest is not False:
            left.append(rest)
    if n <= 0:
        return True
    return False if n > len(left) else make_parts(n, left)


def make_parts(n: int, parts: Sequence[Part]) -> Part:
    """So many of these, without what says nothing: ``a and (b and a)`` is the list of ``a`` and ``b``."""
    if len(parts) == 1:
        return parts[0]
    every = n == len(parts)
    flat: list[Part] = []
    for part in parts:
        if isinstance(part, Parts) and ((_all_of(part) and every) or (part.n == 1 and n == 1)):
            flat += part.parts
        else:
            flat.append(part)
    if every or n == 1:
        flat = list(dict.fromkeys(flat))
    return flat[0] if len(flat) == 1 else Parts(len(flat) if every else n, tuple(flat))


def _all_of(part: Parts) -> bool:
    return part.n == len(part.parts)


def written(part: Part, brackets: bool = False) -> str:
    """As it would be written in a condition, with brackets wherever ``and`` and ``or`` meet."""
    if isinstance(part, str):
        return f"'{part}'" if part.lower() in WORDS else part
    word = "and" if _all_of(part) else "or"
    if word == "or" and part.n > 1:
        return f"at_least({part.n}, {', '.join(written(inner) for inner in part.parts)})"
    text = f" {word} ".join(written(inner, brackets=True) for inner in part.parts)
    return f"({text})" if brackets else text
