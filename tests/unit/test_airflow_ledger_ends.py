"""How a real Airflow is told of what has not come: markers that are skipped or fail, and the group's join."""

from __future__ import annotations

import logging

import pytest

from tests.unit.fake_airflow import GROUP, World
from tests.unit.hub_kit import soon

JOIN = "inputs.join"


@pytest.fixture(params=[False, True], ids=["public", "route"])
def world(request: pytest.FixtureRequest) -> World:
    world = World(route=request.param)
    world.airflow.add(GROUP.dag_id, GROUP.run_id, JOIN)
    return world


@pytest.mark.parametrize("state", ["skipped", "failed"])
async def test_a_marker_is_ended_with_a_note_and_again_after_a_restart(world: World, state: str) -> None:
    for _ in range(2):
        async with world.book() as book:
            await soon(book.end("orders", state, "why"))
    assert (world.marker("orders").state, world.marker("orders").note) == (state, "why")
    assert world.said(logging.WARNING) == world.said(logging.ERROR) == []


async def test_the_join_is_marked_whatever_its_state(world: World) -> None:
    join = world.airflow.find(GROUP.dag_id, GROUP.run_id, JOIN)
    async with world.book() as book:
        for state in (None, "upstream_failed", "success"):
            world.airflow.mark(join, state)
            await soon(book.join(JOIN))
            assert join.state == "success"
    assert world.said(logging.WARNING) == world.said(logging.ERROR) == []


async def test_what_is_no_longer_in_the_dag_holds_up_nobody(world: World) -> None:
    """The author has taken the condition, and the join with it, out of the DAG while a run waits."""
    join = world.airflow.find(GROUP.dag_id, GROUP.run_id, JOIN)
    async with world.book() as book:
        for one in (join, world.marker("orders")):
            world.airflow.mark(one, "removed")
        await soon(book.join(JOIN))
        await soon(book.end("orders", "skipped", "why"))
    assert (join.state, world.marker("orders").state) == ("removed", "removed")
