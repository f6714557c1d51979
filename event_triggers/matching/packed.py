"""A pattern that is kept for later, as text: as objects it takes five times as much memory."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, Mapping
from typing import Any

__all__ = ["PackedPattern"]


class PackedPattern(Mapping[str, Any]):
    """A rendered pattern, read anew each time somebody looks at it.

    An index has what it needs of a pattern; the rest of a wait looks at it seldom, for what came nearest.

    :raises TypeError: when it is not JSON.
    """

    __slots__ = ("_text",)

    def __init__(self, pattern: Mapping[str, Any]) -> None:
        self._text = json.dumps(pattern, separators=(",", ":")).encode("ascii")

    def _read(self) -> dict[str, Any]:
        return json.loads(self._text)  # type: ignore[no-any-return]

    def __getitem__(self, field: str) -> Any:
        return self._read()[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def items(self) -> ItemsView[str, Any]:
        """Fields and what is asked of them."""
        return self._read().items()

    def __repr__(self) -> str:
        return repr(self._read())
