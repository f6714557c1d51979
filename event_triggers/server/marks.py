"""The marking route: many arrivals of many runs in one request, straight into Airflow's database, and states out of it.

Flow: Airflow's own check of the token says who asks; the body is read up to a limit; the marks are made in a thread
(:mod:`event_triggers.server.batches`), one request at a time and those that come meanwhile after it. What is asked and
answered is in :mod:`event_triggers.marks`.

Invariants: however many triggerers ask, the route uses :data:`_THREADS` threads and connections of this API server,
and leaves the others to everybody else. Nothing is kept over a restart; a request that is cut off is sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from airflow.api_fastapi.core_api.security import get_user
from fastapi import APIRouter, Depends, HTTPException, Request, Response

from event_triggers import __version__
from event_triggers.garbage import calm_collector
from event_triggers.marks import (
    MOST_BYTES,
    MOST_GROUPS,
    MOST_MARKS,
    PROTOCOL,
    About,
    Answers,
    MarkersAnswer,
    MarkersRequest,
    MarkRequest,
)
from event_triggers.server.batches import DatabaseAway, write_batch
from event_triggers.server.reading import read_markers
from event_triggers.text import plain_logger, shown

__all__ = ["router"]

log = plain_logger(__name__)

router = APIRouter(tags=["marks"])
_marks = msgspec.json.Decoder(MarkRequest)
_markers = msgspec.json.Decoder(MarkersRequest)
_encoder = msgspec.json.Encoder()
_THREADS = 1
_Asked = TypeVar("_Asked")
_Done = TypeVar("_Done")


@cache
def _limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(_THREADS)


@router.get("/marks")
def about() -> Response:
    """Which protocol the route speaks."""
    return _json(About(PROTOCOL, __version__, reads=True))


@router.post("/marks")
async def mark(request: Request, user: Annotated[Any, Depends(get_user)]) -> Response:
    """Make marks; answers each of them."""
    asked: MarkRequest = _read(await _body(request), _marks)
    if sum(len(run.marks) for run in asked.runs) > MOST_MARKS:
        raise HTTPException(413, f"a request may have {MOST_MARKS} marks at most")
    runs = await _in_turn("marks could not be made", write_batch, asked.runs, user)
    calm_collector()
    return _json(Answers(PROTOCOL, runs))


@router.post("/markers")
async def markers(request: Request, user: Annotated[Any, Depends(get_user)]) -> Response:
    """Which states the markers of many groups are in."""
    asked: MarkersRequest = _read(await _body(request), _markers)
    if len(asked.groups) > MOST_GROUPS:
        raise HTTPException(413, f"a request may name {MOST_GROUPS} groups at most")
    groups = await _in_turn("markers could not be read", read_markers, asked.groups, user)
    return _json(MarkersAnswer(PROTOCOL, groups))


async def _in_turn(failed: str, work: Callable[[_Asked, Any], _Done], asked: _Asked, user: Any) -> _Done:
    try:
        return await anyio.to_thread.run_sync(work, asked, user, limiter=_limiter())
    except DatabaseAway as error:
        log.warning("%s, Airflow's database does not answer: %s", failed, error)
        raise HTTPException(503, "Airflow's database does not answer") from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a request may have {MOST_BYTES} bytes at most")
    return bytes(body)


def _read(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        asked = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HTTPException(422, f"this is no request of that kind: {shown(str(error), 200)}") from error
    if asked.protocol != PROTOCOL:
        raise HTTPException(409, f"this API server speaks protocol {PROTOCOL}, not {asked.protocol}")
    return asked


def _json(document: Any) -> Response:
    return Response(_encoder.encode(document), media_type="application/json")
