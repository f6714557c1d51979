"""The client of Airflow's public REST API: where it is, who we are, and calls that wait while it is away.

Invariants:

* At most :data:`MOST_IN_FLIGHT` requests are in flight per triggerer, whatever is due: more gain nothing, and some
  thirty at once were seen to exhaust the API server's database pool.
* A call returns what Airflow answers or raises :class:`~event_triggers.errors.AirflowApiError` for a refusal that
  repeating cannot mend. No answer, 429 and 5xx are repeated with growing pauses for as long as the caller waits.
* A request that is answered 500 again and again, while others are answered well, is one that Airflow cannot stand: it
  raises, so that it does not hold up what waits behind it. While Airflow is away for everybody, nothing is blamed.
* Whether a request that got no answer was carried out is not known. It is sent again: every request of this package
  has the same effect twice as once, or is answered 409 the second time.
* Tokens and passwords are in no error, log line or ``repr``.

A restart forgets the token and asks for a new one. After a restart of Airflow's, a token that the API server does not
know any more (its secret has changed) is replaced like one that has expired.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from event_triggers.api_settings import DEFAULT_CONN_ID, ApiSettings
from event_triggers.backoff import Backoff
from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import AirflowApiError, ConfigurationError
from event_triggers.text import shown

__all__ = ["MOST_IN_FLIGHT", "AirflowApi", "ApiSettings", "path_of"]

MOST_IN_FLIGHT = 4
_TIMEOUT = httpx.Timeout(60.0, connect=5.0, pool=None)
_LONGEST_PAUSE = 60.0
"""Seconds beyond which a server's ``Retry-After`` is not believed."""
_REPEATED = frozenset({429, 500, 502, 503, 504})
_MOST_ERRORS = 5
"""How often in a row the same request may be answered 500 before it is blamed itself, ..."""
_MOST_ERRORS_AMONG_ANSWERS = 3
"""... and how often of these while Airflow has answered another request since the time before."""
_MOST_REMEMBERED = 1000
_QUIET = 1.0
"""Seconds without a failure after which one good answer says that Airflow is back, whoever still sleeps."""


def path_of(*parts: str) -> str:
    """A path below ``/api/v2`` whose parts are quoted, so that run ids with ``+`` or ``/`` stay one part."""
    return "/api/v2/" + "/".join(quote(part, safe="~") for part in parts)


@dataclass(slots=True)
class _Failing:
    """A request that Airflow answers 500."""

    errors: int = 0
    among_answers: int = 0
    answers: int = 0
    """How many requests Airflow had answered by the last time."""


_VERSION = path_of("version")
"""Airflow answers this even without a database."""


class AirflowApi:
    """Calls to one Airflow, as one user. Use it as a context manager.

    :param settings: where and as whom.
    :param refresh: gives the settings anew before another token is asked for, since they may have been corrected.
    :param clock: the time to go by.
    :param transport: how to reach it; for tests.
    :raises ConfigurationError: when the settings are no address, or name a CA bundle that cannot be read.

    Making one reads certificates from files: do that in a thread.
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
        self._client = _client(settings, transport)
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._token = settings.token
        self._renewing = asyncio.Lock()
        self._troubled: dict[Backoff, str] = {}
        self._last_failure = float("-inf")
        self._listeners: dict[Callable[[int, str], None], None] = {}
        self._answers = 0
        """How many requests Airflow has answered for which it needs its database."""
        self._failing: dict[tuple[str, str], _Failing] = {}

    async def __aenter__(self) -> AirflowApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    def listen(self, listener: Callable[[int, str], None]) -> Callable[[], None]:
        """Tell ``listener`` (with a log level) when the API goes away and comes back; gives the way to stop it."""
        self._listeners[listener] = None

        def stop() -> None:
            self._listeners.pop(listener, None)

        return stop

    @property
    def trouble(self) -> str | None:
        """What is wrong, while the API is away."""
        return next(iter(self._troubled.values()), None)

    async def ask_once(self, path: str) -> Any:
        """The document at this path, asked for once; text that says what is wrong when there is none to be had."""
        answer = await self._send("GET", path, token=self._token)
        if not isinstance(answer, httpx.Response):
            return f"{type(answer).__name__}: {answer}"
        try:
            return self._document("GET", path, answer)
        except AirflowApiError as error:
            return str(error)

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
    ) -> Any:
        """Send one request and give the document that is answered; ``None`` when there is none.

        Waits, for as long as it takes, while Airflow is away or overloaded.

        :param content: a JSON document that is encoded already; then it is this document, and not the path alone, that
            is blamed when Airflow fails over it.

        :raises AirflowApiError: when Airflow refuses; its text says what to grant or to configure. Its status is 500
            when Airflow fails over this request and no other.
        """
        backoff = _backoff()
        renewed = False
        about = path if content is None else f"{path} {hash(content)}"
        sent = {"json": json} if content is None else {"content": content}
        try:
            while True:
                token = self._token or await self._renew(None)
                answer = await self._send(method, path, token=token, params=params, **sent)
                if isinstance(answer, httpx.Response):
                    if _refuses_token(answer) and not renewed:
                        renewed = True
                        await self._renew(token)
                        continue
                    if answer.status_code not in _REPEATED or self._is_to_blame(method, about, answer):
                        self._count_answer(method, about, answer)
                        self._answered(backoff)
                        return self._document(method, path, answer)
                await self._wait(backoff, answer)
                renewed = False  # the new token may have expired meanwhile, too
        finally:
            self._troubled.pop(backoff, None)

    def _is_to_blame(self, method: str, path: str, answer: httpx.Response) -> bool:
        """Whether it is this request that Airflow cannot stand."""
        if answer.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
            return False  # such an answer is about the server, whatever it was asked
        failing = self._failing.setdefault((method, path), _Failing(answers=self._answers))
        if len(self._failing) > _MOST_REMEMBERED:
            del self._failing[next(iter(self._failing))]
        among_answers = failing.answers < self._answers
        failing.errors += 1
        failing.among_answers += among_answers
        failing.answers = self._answers
        enough = failing.errors >= _MOST_ERRORS and failing.among_answers >= _MOST_ERRORS_AMONG_ANSWERS
        return among_answers and enough

    async def _send(
        self, method: str, path: str, *, token: str | None = None, **content: Any
    ) -> httpx.Response | httpx.RequestError:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if "content" in content:
            headers["Content-Type"] = "application/json"
        async with self._slots:
            try:
                return await self._client.request(method, path, headers=headers, **content)
            except httpx.RequestError as error:
                return error

    def _count_answer(self, method: str, path: str, answer: httpx.Response) -> None:
        if answer.status_code in _REPEATED:
            return
        self._failing.pop((method, path), None)
        if path != _VERSION:
            self._answers += 1

    def _document(self, method: str, path: str, answer: httpx.Response) -> Any:
        if answer.status_code >= 300:
            raise self._refusal(method, path, answer)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise self._not_airflow(f"{method} {path}", answer) from error

    async def _wait(self, backoff: Backoff, answer: httpx.Response | httpx.RequestError) -> None:
        pause = backoff.next()
        self._last_failure = self._clock.monotonic()
        if isinstance(answer, httpx.Response):
            pause = max(pause, _retry_after(answer))
            what = f"answers {answer.status_code}"
        else:
            what = f"cannot be reached ({type(answer).__name__}: {answer})"
        if backoff.attempts >= 3:
            text = f"Airflow's API at {self.settings.base_url} {what}"
            if not self._troubled:
                self.tell(logging.WARNING, f"{text}; what arrives waits for it")
            self._troubled[backoff] = text
        await self._clock.sleep(pause)

    def _answered(self, backoff: Backoff) -> None:
        if self._troubled.pop(backoff, None) is None:
            return
        # Others may sleep for a while before they try again, and find that it is back, too.
        if not self._troubled or self._clock.monotonic() - self._last_failure > _QUIET:
            self._troubled.clear()
            self.tell(logging.INFO, f"Airflow's API at {self.settings.base_url} is back")

    def tell(self, level: int, text: str) -> None:
        """Write this into the log of everybody who listens."""
        for listener in list(self._listeners):
            listener(level, text)

    # ------------------------------------------------------------------ tokens

    async def _renew(self, old: str | None) -> str:
        async with self._renewing:
            if self._token is not None and self._token != old:
                return self._token  # somebody else has renewed it meanwhile
            if old is not None and self._refresh is not None:
                self.settings = await self._refresh()
                self._client.base_url = self.settings.base_url
            self._token = self.settings.token or await self._fetch_token()
            return self._token

    async def _fetch_token(self) -> str:
        settings = self.settings
        login = {"username": settings.login, "password": settings.password or ""} if settings.login else None
        backoff = _backoff()
        try:
            while True:
                answer = await self._send("POST" if login else "GET", "/auth/token", json=login)
                if isinstance(answer, httpx.Response) and answer.status_code not in _REPEATED:
                    break
                await self._wait(backoff, answer)
            self._answered(backoff)
        finally:
            self._troubled.pop(backoff, None)
        if answer.status_code >= 300:
            raise self._no_token(answer)
        try:
            return str(answer.json()["access_token"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_airflow("/auth/token", answer) from error

    def _no_token(self, answer: httpx.Response) -> AirflowApiError:
        if answer.is_redirect:
            return self._redirected(answer)
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
        if answer.is_redirect:
            return self._redirected(answer)
        detail = _detail_of(answer)
        if detail is None:
            if status == httpx.codes.NOT_FOUND:
                # Not Airflow, but what stands before it: nothing is missing in Airflow because of that.
                return self._not_airflow(f"{method} {path}", answer, status=None)
            detail = answer.text[:200]
        who = f"user {self.settings.login!r}" if self.settings.login else f"the token of {self.settings.origin}"
        advice = {
            401: f"; {who} is not accepted: correct the credentials",
            403: f"; grant {who} to read and edit task instances and to create and edit XComs of this DAG",
            500: f"; it did so {_MOST_ERRORS} times or more while it answered others: look into the API server's log",
        }.get(status, "")
        text = f"Airflow answered {status} to {method} {path}: {shown(str(detail), 1000)}{advice}"
        return AirflowApiError(text, status=status)

    def _redirected(self, answer: httpx.Response) -> AirflowApiError:
        where = answer.headers.get("location", "elsewhere").partition("?")[0]
        return AirflowApiError(
            f"{self.settings.base_url} (from {self.settings.origin}) sends us on to {where}; correct the host, schema "
            f"or base_path of {self.settings.origin}",
            status=answer.status_code,
        )

    def _not_airflow(self, what: str, answer: httpx.Response, *, status: int | None = None) -> AirflowApiError:
        kind = answer.headers.get("content-type", "nothing readable")
        return AirflowApiError(
            f"{self.settings.base_url} answered {answer.status_code} to {what} with {kind}, not as Airflow does; "
            f"is this address (from {self.settings.origin}) really Airflow's API server?",
            status=status,
        )


def _backoff() -> Backoff:
    return Backoff(first=0.2, most=15.0)


def _detail_of(answer: httpx.Response) -> Any:
    """What Airflow says about a refusal; ``None`` when this is not how Airflow says it."""
    try:
        return answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None


def _refuses_token(answer: httpx.Response) -> bool:
    """Whether another token may help: this one has expired (401), or is not one of this server's (403)."""
    if answer.status_code == httpx.codes.FORBIDDEN:
        return "token" in str(_detail_of(answer)).lower()
    return answer.status_code == httpx.codes.UNAUTHORIZED


def _retry_after(answer: httpx.Response) -> float:
    after = answer.headers.get("retry-after", "")
    return min(float(after), _LONGEST_PAUSE) if after.isascii() and after.isdecimal() else 0.0


def _client(settings: ApiSettings, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    try:
        verify = (
            ssl.create_default_context(cafile=settings.verify) if isinstance(settings.verify, str) else settings.verify
        )
        return httpx.AsyncClient(
            base_url=settings.base_url,
            timeout=_TIMEOUT,
            verify=verify,
            transport=transport,
            # The slots bound them. The pool must not: it keeps a place for ever for a connection whose request was
            # cancelled before it was made, and waits in vain when all its places have gone that way.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"{settings.origin}: {settings.base_url!r} is no address of a server: {error}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{settings.origin}: the CA bundle {settings.verify!r} cannot be read: {error}"
        ) from error
