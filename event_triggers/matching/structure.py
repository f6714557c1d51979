"""The fields that an alternative looks at, as a tree. Patterns that look at the same fields share it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

__all__ = ["Node", "Path", "Structure", "structure_of"]

Path = tuple[str, ...]


class Node(NamedTuple):
    """The fields below one place of a document: name, numbers of the leaves at it, and what is below it."""

    fields: tuple[tuple[str, tuple[int, ...], Node | None], ...]


class Structure(NamedTuple):
    """Where the leaves of an alternative stand, in the order of the pattern, and the same as a tree."""

    paths: tuple[Path, ...]
    root: Node


@lru_cache(maxsize=4096)
def structure_of(paths: tuple[Path, ...]) -> Structure:
    """The structure of leaves at these paths; a path may come twice."""
    return Structure(paths, _node([(number, path) for number, path in enumerate(paths)]))


def _node(leaves: list[tuple[int, Path]]) -> Node:
    below: dict[str, tuple[list[int], list[tuple[int, Path]]]] = {}
    for number, (name, *rest) in leaves:
        here, deeper = below.setdefault(name, ([], []))
        if rest:
            deeper.append((number, tuple(rest)))
        else:
            here.append(number)
    return Node(tuple((name, tuple(here), _node(deeper) if deeper else None) for name, (here, deeper) in below.items()))
