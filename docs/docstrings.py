"""How mkdocstrings reads this package's docstrings.

They name classes as ``:class:`~package.Class```. Markdown does not know that, so it is made code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|attr|func|meth|mod|data|exc):`~?(?:[^`<]*<)?([^`>]+)>?`")


class Roles(griffe.Extension):
    """Turns Sphinx's roles into code, by the last part of the name when a ``~`` asks for that."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_code, obj.docstring.value)
            # The constructor of a NamedTuple is not in its source, its fields are.
            if obj.is_class and any(str(base) == "NamedTuple" for base in obj.bases):  # type: ignore[attr-defined]
                obj.docstring.value = obj.docstring.value.replace(":param ", ":var ")


def _code(match: re.Match[str]) -> str:
    name = match[1]
    return f"`{name.rpartition('.')[2] if '`~' in match[0] else name}`"
