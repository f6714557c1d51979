"""One broker a file; what all of them keep to is in :mod:`event_triggers.sources.base`.

:func:`find` gives the class of a kind of source, whoever has made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from event_triggers.sources.registry import find, registered

__all__ = ["find", "registered"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the package of the sources imports none of them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from event_triggers.sources import registry

    return getattr(registry, name)
