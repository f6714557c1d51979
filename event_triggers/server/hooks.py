"""``POST /hooks/{name}``: external systems call in.

Flow: known hook -> body, up to its limit -> verified -> rate -> delivery's id -> stored -> 202.

A caller that has not proved who it is learns whether a hook exists, which its address says anyway, and nothing else:
what is wrong with its request, or with the hook's connection, is in the log of the API server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from event_triggers.errors import ConfigurationError
from event_triggers.garbage import calm_collector
from event_triggers.hook_settings import HookSettings
from event_triggers.server.asset_log import Bell
from event_triggers.server.deliveries import Deliveries, Delivery, Ending, QueueFullError
from event_triggers.server.hook_book import BusyError, HookBook, look_up
from event_triggers.server.problems import Problem, responses
from event_triggers.server.rate import Rates
from event_triggers.server.verification import NotVerified, Verified, verify
from event_triggers.sources._webhook_wire import NAME, Received
from event_triggers.text import plain_logger

__all__ = ["MOST_BYTES", "make_router"]

log = plain_logger(__name__)

MOST_BYTES: Final = 1_000_000
"""The largest body that is taken."""
_MOST_IN_MEMORY: Final = 64 * MOST_BYTES
_LONGEST_ID: Final = 200
_RETRY_AFTER: Final = 2


class Accepted(BaseModel):
    """The delivery is stored."""

    delivery: str = Field(description="The id by which a copy of it is known again.")


class Challenge(BaseModel):
    """What Slack asks for when a hook's address is entered."""

    challenge: str


class Hooks:
    """What takes requests to hooks, in one process of the API server.

    :param bell: rung when something is stored.
    """

    def __init__(self, bell: Bell) -> None:
        self.book = HookBook(look_up)
        self.deliveries = Deliveries(_session, bell.ring)
        self._rates = Rates()
        self._in_memory = 0

    async def take(self, name: str, request: Request) -> Response:
        """Answer one request.

        :raises Problem: when it is refused.
        """
        settings = await self._find(name)
        async with self._body(request) as body:
            headers = {key.lower(): value for key, value in request.headers.items()}
            verified = self._verified(name, settings, headers, body)
            wait = self._rates.take(name, settings.rate_limit, time.monotonic())
            if wait is not None:
                raise Problem(429, f"this hook takes {settings.rate_limit:g} requests per second", retry_after=wait)
            challenge = _challenge(settings, body)
            if challenge is not None:
                return JSONResponse({"challenge": challenge})
            _check_content(settings, verified, body)
            await self._store(name, settings, verified, request, body)
        return JSONResponse({"delivery": verified.delivery}, 202)

    async def _find(self, name: str) -> HookSettings:
        try:
            settings = await self.book.find(name)
        except BusyError as error:
            raise Problem(429, "too many different hooks are asked for", retry_after=error.retry_after) from error
        except ConfigurationError as error:
            raise _refused() from error  # it is in the log already
        except Exception as error:
            log.error("hook %s could not be looked up: %s: %s", name, type(error).__name__, error)
            raise _unavailable() from error
        if settings is None:
            raise Problem(404, "there is no such hook; its name is the id of an Airflow connection behind 'webhook_'")
        return settings

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as long as the context is open. What is too large is not read."""
        said = request.headers.get("content-length", "")
        if said.isascii() and said.isdecimal() and int(said) > MOST_BYTES:
            raise _too_large()
        held = 0
        parts: list[bytes] = []
        try:
            async for part in request.stream():
                held += len(part)
                self._in_memory += len(part)
                if held > MOST_BYTES:
                    raise _too_large()
                if self._in_memory > _MOST_IN_MEMORY:
                    raise _unavailable()
                parts.append(part)
            yield b"".join(parts)
        except ClientDisconnect as error:
            raise Problem(422, "the body did not come whole") from error
        finally:
            self._in_memory -= held

    @staticmethod
    def _verified(name: str, settings: HookSettings, headers: Mapping[str, str], body: bytes) -> Verified:
        try:
            return verify(settings, headers, body, now=time.time())
        except NotVerified as error:
            log.warning("hook %s: a request is refused: %s", name, error)
            raise _refused(error.told) from error

    async def _store(
        self, name: str, settings: HookSettings, verified: Verified, request: Request, body: bytes
    ) -> None:
        headers = tuple((key.decode("latin-1"), value) for key, value in request.headers.raw)
        if settings.scheme == "proxy":
            headers = tuple(pair for pair in headers if pair[0].lower() != settings.proxy_header.lower())
        remember = settings.remember if verified.own_id else settings.tolerance
        delivery = Delivery(name, Received(verified.delivery, headers, body), remember)
        try:
            ending = await self.deliveries.store(delivery)
        except QueueFullError as error:
            raise _unavailable() from error
        except Exception as error:
            log.error("hook %s: a delivery could not be stored: %s: %s", name, type(error).__name__, error)
            raise _unavailable() from error
        calm_collector()
        if ending is Ending.REPLAYED:
            raise Problem(
                409,
                f"delivery {verified.delivery!r} is stored already; there is nothing to do, or send it under a new id",
            )


def make_router(bell: Bell) -> APIRouter:
    """The routes of hooks.

    :param bell: rung for whoever waits for asset events.
    """
    hooks = Hooks(bell)
    router = APIRouter(tags=["hooks"])

    @router.post(
        "/hooks/{name}",
        status_code=202,
        response_model=Accepted,
        responses={
            200: {"model": Challenge, "description": "Slack asked whether somebody is here."},
            **responses(_REFUSALS),
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def deliver(name: Annotated[str, _NAME], request: Request) -> Response:
        """Deliver one event to a hook. It is stored when this answers 202.

        How a request is signed depends on the hook's connection; see the documentation of `Webhook`.
        """
        try:
            return await hooks.take(name, request)
        except Problem as problem:
            return problem.response()

    return router


# Described, and not checked by FastAPI: what no hook can be called is answered as what none is called.
_NAME: Final = Path(description="The hook's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"})
_BODY: Final[Mapping[str, Any]] = {
    "required": False,
    "description": "Anything, up to 1,000,000 bytes; patterns look into JSON.",
    "content": {"application/json": {"schema": {}}, "application/octet-stream": {"schema": {"type": "string"}}},
}
_REFUSALS: Final = {
    401: "The request is not from who knows the hook's secret.",
    404: "There is no such hook.",
    409: "This delivery is stored already.",
    413: "The body is too large.",
    422: "The delivery's id or its body cannot be taken.",
    429: "Too many requests.",
    503: "It could not be stored, and must be sent again.",
}


def _session() -> Any:
    from airflow.utils.session import create_session

    return create_session(scoped=False)


def _refused(told: str = "") -> Problem:
    detail = told or "the request could not be verified: sign it as this hook's scheme asks, with its present secret"
    return Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _too_large() -> Problem:
    # The rest of the body is not read, so the connection cannot be used again.
    return Problem(
        413, f"the body is larger than {MOST_BYTES} bytes; send a reference to it", headers={"Connection": "close"}
    )


def _unavailable() -> Problem:
    return Problem(503, "it could not be stored; send it again, with the same delivery id", retry_after=_RETRY_AFTER)


def _check_content(settings: HookSettings, verified: Verified, body: bytes) -> None:
    delivery = verified.delivery
    if not (len(delivery) <= _LONGEST_ID and delivery.isascii() and delivery.isprintable()):
        raise Problem(422, f"the delivery's id must be of printable ASCII characters, {_LONGEST_ID} at most")
    if settings.json_only:
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(422, "this hook takes JSON documents, and the body is none") from error


def _challenge(settings: HookSettings, body: bytes) -> str | None:
    if settings.scheme != "slack" or b"url_verification" not in body:
        return None
    try:
        document = msgspec.json.decode(body, type=_SlackChallenge)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return document.challenge if document.type == "url_verification" else None


class _SlackChallenge(msgspec.Struct):
    type: str
    challenge: str
