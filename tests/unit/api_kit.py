"""The edge of Airflow's API, as tests see it: every request passes through a function of theirs, none gets out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.testing import ManualClock

__all__ = ["Edge", "answer", "body_of"]

Handler = Callable[[httpx.Request], "httpx.Response | Exception"]


def answer(status: int = 200, document: Any = None, **headers: str) -> httpx.Response:
    """An answer with a JSON document."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={} if document is None else document, headers=named)


def body_of(request: httpx.Request) -> Any:
    """The document that a request carries."""
    return json.loads(request.content) if request.content else None


class Edge:
    """Takes the requests of API clients.

    :param handler: answers everything but ``/auth/token``, or gives the error that the connection ends with.
    """

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler or (lambda request: answer())
        self.clock = ManualClock()
        self.requests: list[httpx.Request] = []
        """All that came, but those for tokens."""
        self.token_requests: list[httpx.Request] = []
        self.tokens: Handler | None = None
        """Answers ``/auth/token``; by default with ``token-1``, ``token-2``, ..."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate = asyncio.Event()
        """While it is not set, requests wait."""
        self.gate.set()

    async def take(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(5):  # long enough that requests overlap
                await asyncio.sleep(0)
            await self.gate.wait()
            result = self._token(request) if request.url.path.endswith("/auth/token") else self._other(request)
        finally:
            self.in_flight -= 1
        if isinstance(result, Exception):
            raise result
        return result

    def _token(self, request: httpx.Request) -> httpx.Response | Exception:
        self.token_requests.append(request)
        if self.tokens is not None:
            return self.tokens(request)
        return answer(201, {"access_token": f"token-{len(self.token_requests)}"})

    def _other(self, request: httpx.Request) -> httpx.Response | Exception:
        self.requests.append(request)
        return self.handler(request)

    @property
    def used_tokens(self) -> list[str]:
        """The tokens of the requests."""
        return [request.headers["authorization"].removeprefix("Bearer ") for request in self.requests]

    @asynccontextmanager
    async def api(self, settings: ApiSettings | None = None, **options: Any) -> AsyncIterator[AirflowApi]:
        """A client whose requests come here."""
        settings = settings or ApiSettings("http://airflow", login="marker", password="s3cret", origin="the test")
        async with AirflowApi(settings, clock=self.clock, transport=httpx.MockTransport(self.take), **options) as api:
            yield api

    async def pass_time(self, until: Callable[[], bool], *, step: float = 20, most: int = 50) -> None:
        """Turn the clock until something is so."""
        for _ in range(most):
            for _ in range(60):
                await asyncio.sleep(0)
            if until():
                return
            self.clock.advance(step)
        raise AssertionError(f"not so after {most * step} s")
