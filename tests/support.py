"""Small helpers that every tier of tests uses."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["missing"]


def missing(reason: str) -> NoReturn:
    """A part that these tests need cannot be had on this machine: skip, but fail where everything must be there (CI).

    :param reason: what is missing and how to get it.
    """
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (skipped elsewhere, but CI must have every part)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
