"""Links from the documents to tests are for readers of the repository; the built site names the test instead."""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(\.\./(tests/[^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return _LINK.sub(lambda link: f"{link[1]} in `{link[2]}`", markdown)
