"""The plain reading of the rules: one pattern, one document, no care for speed beyond the ordinary.

A document is an object; an array at the top is as many documents, one of which must match. Below, a pattern's node is
compared with a value in one of two ways, and both are worked out together:

* *present*: at least one leaf below the node finds a value that satisfies it. Where the document has an array, that
  picks one element, and everything else below the node must hold for the same element.
* *absent*: every leaf below the node holds because its field is missing. That picks no element; in an array it must
  be so for all of them.

Without ``{"exists": false}`` only the first is possible, and it is what one expects: one element must fit as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from event_triggers.matching.leaves import Leaf
from event_triggers.matching.structure import Node
from event_triggers.matching.syntax import Alternative, Pattern

__all__ = ["MISSING", "elements", "fits", "fits_one", "is_object", "objects", "scalars"]

MISSING: Any = type("_Missing", (), {"__repr__": lambda self: "MISSING"})()
"""Stands for the value of a field that is not there."""


def fits(pattern: Pattern, document: Any) -> bool:
    """Whether a decoded document matches."""
    return any(fits_one(alternative, one) for one in objects(document) for alternative in pattern.alternatives)


def fits_one(alternative: Alternative, document: Mapping[str, Any]) -> bool:
    """Whether all leaves of an alternative hold for one object."""
    present, absent = _node(alternative.structure.root, alternative.leaves, document)
    return present or absent


def is_object(value: Any) -> bool:
    """Whether this is a JSON object."""
    return value.__class__ is dict or isinstance(value, Mapping)


def elements(value: list[Any]) -> Iterator[Any]:
    """What is in an array, through arrays in it, however deep."""
    waiting: list[Any] = [iter(value)]
    while waiting:
        for element in waiting[-1]:
            if isinstance(element, list):
                waiting.append(iter(element))
                break
            yield element
        else:
            waiting.pop()


def objects(document: Any) -> Iterator[dict[str, Any]]:
    """The documents in a decoded body: itself, or those in an array."""
    return (one for one in (elements(document) if isinstance(document, list) else (document,)) if is_object(one))


def scalars(value: Any) -> Iterator[Any]:
    """The value itself, or those in an array, if they are no objects."""
    if isinstance(value, list):
        return (one for one in elements(value) if not is_object(one))
    return iter(() if value is MISSING or is_object(value) else (value,))


def _node(node: Node, leaves: Sequence[Leaf], value: Any) -> tuple[bool, bool]:
    if not isinstance(value, list):
        return _fields(node, leaves, value if is_object(value) else {})
    present, absent = False, _fields(node, leaves, {})[1]
    for element in elements(value):
        here, nothing = _fields(node, leaves, element) if is_object(element) else (False, True)
        present = present or here
        absent = absent and nothing
        if present and not absent:
            break
    return present, absent


def _fields(node: Node, leaves: Sequence[Leaf], value: Mapping[str, Any]) -> tuple[bool, bool]:
    any_present, all_absent = False, True
    for name, numbers, below in node.fields:
        inner = value.get(name, MISSING)
        for number in numbers:
            present, absent = _leaf(leaves[number], inner)
            if not present and not absent:
                return False, False
            any_present, all_absent = any_present or present, all_absent and absent
        if below is not None:
            present, absent = _node(below, leaves, inner)
            if not present and not absent:
                return False, False
            any_present, all_absent = any_present or present, all_absent and absent
    return any_present, all_absent


def _leaf(leaf: Leaf, value: Any) -> tuple[bool, bool]:
    found = False
    for scalar in scalars(value):
        if leaf.holds(scalar):
            return True, False
        found = True
    return False, leaf.absent and not found
