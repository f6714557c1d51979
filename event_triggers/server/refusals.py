"""Payloads that Airflow reserves for itself: refused here as its own route for XComs refuses them."""

from __future__ import annotations

import json
from typing import Any

try:
    from airflow._shared.serialization import FORBIDDEN_XCOM_KEYS as RESERVED_KEYS
except ImportError:  # before Airflow 3.2, which reads the same keys but refuses none
    RESERVED_KEYS = frozenset(
        {"__classname__", "__version__", "__data__", "__id__", "__cache__", "__type", "__source", "__var"}
    )

__all__ = ["reserved_key_in"]


def reserved_key_in(payload: Any) -> str | None:
    """A key that Airflow would take for an object of its own when a task reads the payload, or ``None``."""
    waiting = [payload]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found = RESERVED_KEYS & value.keys()
            if found:
                return str(min(found))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            waiting += _read_as_json(value)
    return None


def _read_as_json(text: str) -> list[Any]:
    """What Airflow makes of a text when it reads it."""
    if text.lstrip()[:1] not in ("{", "["):
        return []
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return []
