"""The client of Airflow's public REST API: where it is, who we are, and calls that wait while it is away.

Invariants:

* At most :data:`MOST_IN_FLIGHT` requests are in flight per triggerer, whatever is due: more gain nothing, and some
  thirty at once were seen to exhaust the API server's database pool.
* A call returns an answer or raises :class:`~event_triggers.errors.AirflowApiError` for a refusal that repeating cannot
  mend. No answer, 429 and 5xx are repeated with growing pauses for as long as the caller waits.
* Tokens and passwords are in no error, log line or ``repr``.

A restart forgets the token and asks for a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from event_triggers.backoff import Backoff
from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import AirflowApiError, ConfigurationError, ConnectionMissingError
from event_triggers.sources.base import BrokerConnection

__all__ = ["DEFAULT_CONN_ID", "MOST_IN_FLIGHT", "AirflowApi", "ApiSettings", "find_settings", "path_of"]

log = logging.getLogger(__name__)

DEFAULT_CONN_ID = "airflow_api_default"
MOST_IN_FLIGHT = 4
_TIMEOUT = httpx.Timeout(60.0, connect=5.0, pool=None)
_REPEATED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class ApiSettings:
    """Where Airflow's API server is, and as whom to speak to it.

    :param base_url: without ``/api/v2``, for example ``https://airflow.example.com``.
    :param login: with ``password``, exchanged for a token at ``/auth/token``.
    :param token: a ready-made token; it is used as it is.
    :param verify: whether to verify the server's certificate, or a path of a CA bundle.
    :param origin: where these settings come from, for messages.
    """

    base_url: str
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    verify: bool | str = True
    origin: str = ""


async def find_settings(
    lookup: Callable[[str], Awaitable[BrokerConnection]],
    *,
    conn_id: str = DEFAULT_CONN_ID,
    fallback_url: str | None = None,
) -> ApiSettings:
    """The settings of the connection ``conn_id``; without such a connection, Airflow's own address and no credentials.

    :param fallback_url: the address of the API server by Airflow's configuration.
    :raises ConfigurationError: when there is neither.
    """
    try:
        connection = await lookup(conn_id)
    except ConnectionMissingError:
        if conn_id != DEFAULT_CONN_ID or not fallback_url:
            raise
        return ApiSettings(fallback_url.rstrip("/"), origin="Airflow's configuration")
    return _settings_of(connection, fallback_url)


def _settings_of(connection: BrokerConnection, fallback_url: str | None) -> ApiSettings:
    known = {"token", "verify", "base_path"}
    unknown = sorted(set(connection.extra) - known)
    if unknown:
        raise ConfigurationError(
            f"the connection {connection.conn_id!r} has unknown extra keys {unknown}; known are {sorted(known)}"
        )
    if connection.host:
        scheme, _, host = connection.host.rpartition("://")
        scheme = scheme or connection.schema or "http"
        port = f":{connection.port}" if connection.port else ""
        base_url = f"{scheme}://{host.rstrip('/')}{port}"
    elif fallback_url:
        base_url = fallback_url
    else:
        raise ConfigurationError(f"the connection {connection.conn_id!r} names no host")
    verify = connection.extra.get("verify", True)
    if verify is False:
        log.warning("the connection %r turns the verification of TLS certificates off", connection.conn_id)
    return ApiSettings(
        base_url=base_url.rstrip("/") + str(connection.extra.get("base_path", "")).rstrip("/"),
        login=connection.login,
        password=connection.password,
        token=connection.extra.get("token"),
        verify=verify,
        origin=f"the connection {connection.conn_id!r}",
    )


def path_of(*parts: str) -> str:
    """A path below ``/api/v2`` whose parts are quoted, so that run ids with ``+`` or ``/`` stay one part."""
    return "/api/v2/" + "/".join(quote(part, safe="~") for part in parts)


class AirflowApi:
    """Calls to one Airflow, as one user. Use it as a context manager.

    :param settings: where and as whom.
    :param refresh: gives the settings anew before another token is asked for, since they may have been corrected.
    :param clock: the time to go by.
    :param transport: how to reach it; for tests.
    """

    def __init__(
        self,
        settings: ApiSettings,
        *,
        refresh: Callable[[], Awaitable[ApiSettings]] | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = settings
        self._refresh = refresh
        self._clock = clock or SystemClock()
        self._client = httpx.AsyncClient(
            base_url=settings.base_url,
            timeout=_TIMEOUT,
            verify=settings.verify,
            transport=transport,
            limits=httpx.Limits(max_connections=MOST_IN_FLIGHT, max_keepalive_connections=MOST_IN_FLIGHT),
        )
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._token = settings.token
        self._renewing = asyncio.Lock()
        self._away = False
        self._listeners: dict[Callable[[int, str], None], None] = {}

    async def __aenter__(self) -> AirflowApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def listen(self, listener: Callable[[int, str], None]) -> Callable[[], None]:
        """Tell ``listener`` (with a log level) when the API goes away and comes back; gives the way to stop it."""
        self._listeners[listener] = None
        return lambda: self._listeners.pop(listener, None) and None

    async def call(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send one request and give its answer, whose status is below 400.

        Waits, for as long as it takes, while Airflow is away or overloaded.

        :raises AirflowApiError: for every other status; its text says what to grant or to configure.
        """
        backoff = Backoff(first=0.2, most=15.0)
        renewed = False
        while True:
            token, answer = await self._try(method, path, json, params)
            if isinstance(answer, httpx.Response):
                if answer.status_code == 401 and not renewed:
                    renewed = True
                    await self._renew(token)
                    continue
                if answer.status_code not in _REPEATED:
                    self._back()
                    if answer.status_code < 400:
                        return answer
                    raise self._refusal(method, path, answer)
            await self._wait(backoff, answer)

    async def _try(
        self, method: str, path: str, json: Any, params: Mapping[str, Any] | None
    ) -> tuple[str | None, httpx.Response | httpx.TransportError]:
        async with self._slots:
            if self._token is None:
                await self._renew(None)
            token = self._token
            headers = {"Authorization": f"Bearer {token}"}
            try:
                return token, await self._client.request(method, path, json=json, params=params, headers=headers)
            except httpx.TransportError as error:
                return token, error

    async def _wait(self, backoff: Backoff, answer: httpx.Response | httpx.TransportError) -> None:
        pause = backoff.next()
        if isinstance(answer, httpx.Response):
            after = answer.headers.get("retry-after", "")
            pause = max(pause, min(float(after), 60.0)) if after.isdigit() else pause
            what = f"answers {answer.status_code}"
        else:
            what = f"cannot be reached ({type(answer).__name__}: {answer})"
        if not self._away and backoff.attempts >= 3:
            self._away = True
            self._tell(logging.WARNING, f"Airflow's API at {self.settings.base_url} {what}; what arrives waits for it")
        await self._clock.sleep(pause)

    def _back(self) -> None:
        if self._away:
            self._away = False
            self._tell(logging.INFO, f"Airflow's API at {self.settings.base_url} is back")

    def _tell(self, level: int, text: str) -> None:
        for listener in list(self._listeners):
            listener(level, text)

    # ------------------------------------------------------------------ tokens

    async def _renew(self, old: str | None) -> None:
        async with self._renewing:
            if self._token is not None and self._token != old:
                return  # somebody else has renewed it meanwhile
            if old is not None and self._refresh is not None:
                self.settings = await self._refresh()
            self._token = None
            self._token = self.settings.token or await self._fetch_token()

    async def _fetch_token(self) -> str:
        settings = self.settings
        backoff = Backoff(first=0.2, most=15.0)
        while True:
            try:
                if settings.login:
                    body = {"username": settings.login, "password": settings.password or ""}
                    answer: Any = await self._client.post("/auth/token", json=body)
                else:
                    answer = await self._client.get("/auth/token")
            except httpx.TransportError as error:
                answer = error
            if isinstance(answer, httpx.Response) and answer.status_code not in _REPEATED:
                break
            await self._wait(backoff, answer)
        if answer.status_code >= 400:
            raise self._no_token(answer)
        try:
            return str(answer.json()["access_token"])
        except (ValueError, KeyError, TypeError) as error:
            raise AirflowApiError(
                f"{settings.base_url}/auth/token gave no token; is this address (from {settings.origin}) "
                f"really Airflow's API server?"
            ) from error

    def _no_token(self, answer: httpx.Response) -> AirflowApiError:
        settings = self.settings
        if settings.login:
            text = (
                f"Airflow at {settings.base_url} refused the login of user {settings.login!r} ({answer.status_code}); "
                f"correct login and password in {settings.origin}"
            )
        else:
            text = (
                f"no credentials for Airflow's API at {settings.base_url} (from {settings.origin}): create the "
                f"connection {DEFAULT_CONN_ID!r} with host, login and password of a user who may edit task instances "
                f"and XComs"
            )
        return AirflowApiError(text, status=answer.status_code)

    def _refusal(self, method: str, path: str, answer: httpx.Response) -> AirflowApiError:
        status = answer.status_code
        try:
            detail = answer.json().get("detail", "")
        except (ValueError, AttributeError):
            detail = answer.text[:200]
        who = f"user {self.settings.login!r}" if self.settings.login else f"the token of {self.settings.origin}"
        advice = {
            401: f"; {who} is not accepted: correct the credentials",
            403: f"; grant {who} to read and edit task instances and to create and edit XComs of this DAG",
        }.get(status, "")
        return AirflowApiError(f"Airflow answered {status} to {method} {path}: {detail}{advice}", status=status)
