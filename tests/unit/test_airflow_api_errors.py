"""Calls to Airflow's API: a request that is always answered 500, and when it is to blame for that; when it is back."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from event_triggers.airflow_api import AirflowApi
from event_triggers.errors import AirflowApiError
from tests.unit.api_kit import Edge, answer
from tests.unit.hub_kit import idle, soon


async def refused(api: AirflowApi) -> AirflowApiError:
    with pytest.raises(AirflowApiError) as caught:
        await soon(api.call("POST", "/api/v2/poison"))
    return caught.value


def poisonous(request: httpx.Request) -> httpx.Response:
    return answer(500, {"detail": "a bug"}) if request.url.path.endswith("poison") else answer()


async def test_a_request_that_airflow_cannot_stand_is_given_up() -> None:
    edge = Edge(poisonous)
    told: list[str] = []
    async with edge.api() as api:
        api.listen(lambda level, text: told.append(text))
        poison = asyncio.ensure_future(api.call("POST", "/api/v2/poison"))
        for _ in range(20):
            await idle()
            if poison.done():
                break
            await soon(api.call("GET", "/api/v2/fine"))
            edge.clock.advance(20)
        with pytest.raises(
            AirflowApiError, match="Airflow answered 500 to POST /api/v2/poison: a bug; it did so 5 t"
        ) as e:
            await soon(poison)
        assert e.value.status == 500
        assert api.trouble is None
        assert told[-1] == "Airflow's API at http://airflow is back"
        sent = len(edge.requests)

        # Asked again later, it is given up at once, so that it holds nothing up; unless it has become a good one.
        await soon(api.call("GET", "/api/v2/fine"))
        assert (await refused(api)).status == 500
        assert len(edge.requests) == sent + 2
        edge.handler = lambda request: answer()
        await soon(api.call("POST", "/api/v2/poison"))
        edge.handler = poisonous
        await soon(api.call("GET", "/api/v2/fine"))
        again = asyncio.ensure_future(api.call("POST", "/api/v2/poison"))
        await idle()
        assert not again.done()
        again.cancel()
        await asyncio.wait({again})


@pytest.mark.parametrize(
    ("status", "other", "other_path"),
    [
        (500, 500, "other"),
        (503, 200, "other"),
        (500, 200, "version"),
    ],
)
async def test_while_airflow_fails_over_everything_no_request_is_blamed(
    status: int, other: int, other_path: str
) -> None:
    """Its version it tells even when it has no database."""
    edge = Edge(lambda request: answer(status if request.url.path.endswith("x") else other))
    async with edge.api() as api:
        calls = [asyncio.ensure_future(api.call("POST", "/api/v2/x"))]
        for _ in range(20):
            calls.append(asyncio.ensure_future(api.call("GET", f"/api/v2/{other_path}")))
            await idle()
            edge.clock.advance(20)
        await idle()
        assert not calls[0].done()
        edge.handler = lambda request: answer(document={"n": 1})
        await edge.pass_time(lambda: all(call.done() for call in calls))
        assert await calls[0] == {"n": 1}
        await asyncio.gather(*calls)


async def test_one_answer_before_the_trouble_blames_nobody() -> None:
    """A request that was under way when Airflow went away may still be answered."""
    edge = Edge(lambda request: answer(500) if len(edge.requests) != 2 else answer())
    async with edge.api() as api:
        call = asyncio.ensure_future(api.call("POST", "/api/v2/x"))
        await idle()
        await soon(api.call("GET", "/api/v2/fine"))
        await edge.pass_time(lambda: len(edge.requests) > 15)
        assert not call.done()
        call.cancel()
        await asyncio.wait({call})


async def test_it_is_back_for_all_when_one_call_is_answered() -> None:
    """The others sleep for up to 15 s before they find out."""
    edge = Edge(lambda request: answer(503))
    told: list[str] = []
    async with edge.api() as api:
        api.listen(lambda level, text: told.append(text))
        early = asyncio.ensure_future(api.call("GET", "/api/v2/early"))
        await edge.pass_time(lambda: len(edge.requests) > 10)
        late = asyncio.ensure_future(api.call("GET", "/api/v2/late"))
        await edge.pass_time(lambda: sum(one.url.path.endswith("late") for one in edge.requests) == 4, step=0.1)
        edge.handler = lambda request: answer()
        await edge.pass_time(late.done, step=0.5)
        assert not early.done()
        assert told[-1] == "Airflow's API at http://airflow is back"
        assert api.trouble is None
        early.cancel()
        await asyncio.wait({early})
    assert len(told) == 2
