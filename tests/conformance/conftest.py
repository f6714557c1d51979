"""Failures inside the suite shall show their values, as in any test module."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("event_triggers.testing.conformance")
