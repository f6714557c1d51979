"""Event patterns: what a message must hold, said in data.

A pattern is a mapping in the form of `EventBridge event patterns`_: its leaves are lists of allowed values and
operators, its inner nodes mirror the document. ``docs/patterns.md`` is the guide, and says where this differs from
EventBridge.

* :func:`check_pattern` refuses what is no pattern, with the path to the offending key.
* :func:`matches` is the plain reading of the rules (:mod:`.reference`).
* :class:`PatternIndex` finds the patterns that a document matches, however many there are (:mod:`.index`).
* :func:`explain` says which field kept a document from matching.

Everything here is free of Airflow, of brokers and of threads.

.. _EventBridge event patterns: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-event-patterns.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from event_triggers.matching.decoding import decoded
from event_triggers.matching.envelope import documents_for
from event_triggers.matching.explain import Mismatch, explain
from event_triggers.matching.packed import PackedPattern
from event_triggers.matching.patterns import PatternIndex
from event_triggers.matching.reference import fits_one
from event_triggers.matching.syntax import check_pattern, parse_pattern
from event_triggers.message import Message

__all__ = ["Mismatch", "PackedPattern", "PatternIndex", "check_pattern", "explain", "matches", "parse_pattern"]


def matches(pattern: Mapping[str, Any], document: Mapping[str, Any] | bytes | str | Message) -> bool:
    """Whether a document, decoded or as JSON text, or a message holds what the pattern asks for.

    A document alone has no key, headers and so on; what a pattern asks for there is missing. Text that is not JSON
    has no fields at all, and no pattern that asks for any matches it.

    :raises InvalidEventError: when ``pattern`` is no pattern.
    """
    parsed = parse_pattern(pattern)
    return any(
        fits_one(alternative, one)
        for one in documents_for(parsed, decoded(document))
        for alternative in parsed.alternatives
    )
