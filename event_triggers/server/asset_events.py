"""``POST /asset-events/read`` and ``/asset-events/locate``: how triggerers read asset events.

Airflow's own route gives asset events by their time stamps, with their secrets masked, and answers at once. This one
gives them by their ids, as they are, and waits for the next one. Whoever may read asset events there may do so here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api import security
from fastapi import APIRouter, Depends, Request
from pydantic import AwareDatetime, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from event_triggers.server.asset_log import Bell, Page, Place, first_since, head, read_page
from event_triggers.sources._asset_gaps import MOST_GAPS

__all__ = ["make_router"]

_LONGEST_WAIT: Final = 20.0
_BIGINT: Final = 2**31 - 1


class AssetRef(BaseModel):
    """An asset."""

    name: str = Field(max_length=1500)
    uri: str | None = Field(None, max_length=1500, description="Any, where it is not said.")


class PlaceModel(BaseModel):
    """Where a reader is."""

    next: int = Field(ge=0, le=_BIGINT, description="All events before it were read,")
    gaps: list[Annotated[int, Field(ge=0, le=_BIGINT)]] = Field(
        default_factory=list, max_length=2 * MOST_GAPS, description="but these, which may still be committed."
    )


class ReadBody(BaseModel):
    """What to read."""

    assets: list[AssetRef] = Field(max_length=10_000)
    place: PlaceModel | None = Field(None, description="Where to begin; without one, the answer says where the end is.")
    limit: int = Field(500, ge=1, le=5_000)
    wait: float = Field(0, ge=0, le=_LONGEST_WAIT, description="For how many seconds to wait for an event.")


class LocateBody(BaseModel):
    """What to look for."""

    assets: list[AssetRef] = Field(max_length=10_000)
    since: AwareDatetime


Narrow = Callable[[Any], Any]


def _readable(user: security.GetUserDep) -> Narrow:
    """Narrows a query to what this user may read.

    Airflow has a dependency for it, which looks for the auth manager at its own application; this is another one.
    """
    kind = getattr(security, "PermittedAssetEventFilter", None)
    if kind is None:
        # Airflow before 3.3 shows every asset event to whoever may read assets.
        return lambda query: query
    narrow: Narrow = kind(get_auth_manager().get_authorized_dag_ids(user=user, method="GET")).to_orm
    return narrow


def make_router(bell: Bell) -> APIRouter:
    """The routes of asset events.

    :param bell: rings when there may be a new one.
    """
    router = APIRouter(tags=["asset events"], dependencies=[Depends(security.requires_access_asset(method="GET"))])

    @router.post("/asset-events/read")
    async def read(body: ReadBody, request: Request, narrow: Annotated[Narrow, Depends(_readable)]) -> dict[str, Any]:
        """Read asset events in the order of their ids, and wait for the next one."""
        page = await _read(body, request, narrow, bell) if body.place else await run_in_threadpool(head)
        return {
            "events": page.events,
            "place": {"next": page.place.next, "gaps": page.place.gaps},
            "more": page.more,
        }

    @router.post("/asset-events/locate")
    def locate(body: LocateBody) -> dict[str, int | None]:
        """Find the first event stamped at a moment or later."""
        return {"first": first_since([(one.name, one.uri) for one in body.assets], body.since)}

    return router


async def _read(body: ReadBody, request: Request, narrow: Narrow, bell: Bell) -> Page:
    assert body.place is not None  # noqa: S101 - the route has looked
    assets = [(one.name, one.uri) for one in body.assets]
    at = Place(body.place.next, tuple(body.place.gaps))
    clock = asyncio.get_running_loop().time
    deadline = clock() + body.wait
    while True:
        page = Page(place=at)
        if at.gaps or await run_in_threadpool(bell.newest) >= at.next:
            page = await run_in_threadpool(read_page, assets, at, body.limit, narrow)
        at = page.place
        left = deadline - clock()
        if page.events or left <= 0 or await request.is_disconnected():
            return page
        if not page.more:
            await bell.wait(left)
