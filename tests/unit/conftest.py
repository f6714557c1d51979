"""Fixtures of the unit tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.unit.hub_kit import Kit
from tests.unit.wait_kit import WaitKit


@pytest.fixture(autouse=True)
def logging_level() -> Iterator[None]:
    """A command that is run in this process keeps Airflow quiet; processes that later tests start must not be."""
    name = "AIRFLOW__LOGGING__LOGGING_LEVEL"
    before = os.environ.get(name)
    yield
    if before is None:
        os.environ.pop(name, None)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    """A hub on a broker in memory; when the test ends, nothing of it may be left."""
    kit = Kit()
    yield kit
    await kit.check_nothing_left()


@pytest.fixture
async def waits() -> AsyncIterator[WaitKit]:
    """A hub and a ledger in memory; when the test ends, nothing of them may be left."""
    kit = WaitKit()
    yield kit
    await kit.check_nothing_left()
