"""Calls to Airflow's API: tokens, refusals, waiting while it is away, and never too many at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from event_triggers.airflow_api import MOST_IN_FLIGHT, AirflowApi, ApiSettings, path_of
from event_triggers.errors import AirflowApiError, ConfigurationError
from tests.unit.api_kit import Edge, answer, body_of
from tests.unit.hub_kit import idle, soon

SECRETS = ("s3cret", "t0ken")
WITH_TOKEN = ApiSettings("http://airflow", token="t0ken", origin="the connection 'c'")
NOBODY = ApiSettings("http://airflow", origin="Airflow's configuration")


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="event_triggers")
    yield
    assert not any(secret in caplog.text for secret in SECRETS)


async def refused(api: AirflowApi, method: str = "GET", path: str = "/api/v2/x") -> AirflowApiError:
    with pytest.raises(AirflowApiError) as caught:
        await soon(api.call(method, path))
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert not any(secret in text for secret in SECRETS)
    return caught.value


# ------------------------------------------------------------------ tokens


async def test_login_and_password_are_exchanged_for_a_token_once() -> None:
    edge = Edge(lambda request: answer(document={"version": "3.3.2"}))
    async with edge.api() as api:
        assert await api.call("GET", "/api/v2/version") == {"version": "3.3.2"}
        await api.call("GET", "/api/v2/version")
    (request,) = edge.token_requests
    assert (request.method, request.url.path) == ("POST", "/auth/token")
    assert body_of(request) == {"username": "marker", "password": "s3cret"}
    assert edge.used_tokens == ["token-1", "token-1"]


async def test_a_static_token_is_used_as_it_is() -> None:
    edge = Edge()
    async with edge.api(WITH_TOKEN) as api:
        await api.call("GET", "/api/v2/version")
    assert (edge.used_tokens, edge.token_requests) == (["t0ken"], [])


async def test_where_all_are_admins_a_token_is_there_for_the_asking() -> None:
    edge = Edge()
    async with edge.api(NOBODY) as api:
        await api.call("GET", "/api/v2/version")
    (request,) = edge.token_requests
    assert (request.method, request.content) == ("GET", b"")
    assert edge.used_tokens == ["token-1"]


async def test_many_calls_at_first_ask_for_one_token() -> None:
    edge = Edge()
    async with edge.api() as api:
        await asyncio.gather(*(api.call("GET", "/api/v2/x") for _ in range(20)))
    assert len(edge.token_requests) == 1


async def test_a_token_that_has_expired_is_renewed_once_for_all() -> None:
    edge = Edge(lambda request: answer(401 if "token-1" in request.headers["authorization"] else 200))
    async with edge.api() as api:
        await asyncio.gather(*(api.call("GET", "/api/v2/x") for _ in range(10)))
    assert len(edge.token_requests) == 2
    assert edge.used_tokens[-10:] == ["token-2"] * 10


async def test_renewing_reads_the_settings_again() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return answer(200 if request.url.host == "elsewhere" else 401)

    async def refresh() -> ApiSettings:
        return ApiSettings("http://elsewhere", login="other", password="new s3cret")

    edge = Edge(handle)
    async with edge.api(refresh=refresh) as api:
        await api.call("GET", "/api/v2/x")
    assert body_of(edge.token_requests[1])["username"] == "other"
    assert edge.requests[-1].url == "http://elsewhere/api/v2/x"


async def test_a_new_token_that_is_not_accepted_either_is_refused() -> None:
    edge = Edge(lambda request: answer(401, {"detail": "Invalid JWT token"}))
    async with edge.api() as api:
        error = await refused(api)
        assert len(edge.requests) == 2
        await refused(api)
    assert error.status == 401
    assert "Airflow answered 401 to GET /api/v2/x: Invalid JWT token; user 'marker' is not accepted" in str(error)


async def test_a_token_of_another_secret_is_renewed() -> None:
    """An API server that was started again with another secret answers 403, not 401."""

    def handle(request: httpx.Request) -> httpx.Response:
        known = "token-1" not in request.headers["authorization"]
        return answer() if known else answer(403, {"detail": "Invalid JWT token"})

    edge = Edge(handle)
    async with edge.api() as api:
        await soon(api.call("GET", "/api/v2/x"))
    assert edge.used_tokens == ["token-1", "token-2"]


async def test_a_right_that_is_missing_is_not_the_token_s_fault() -> None:
    edge = Edge(lambda request: answer(403, {"detail": "Forbidden"}))
    async with edge.api() as api:
        assert (await refused(api)).status == 403
    assert len(edge.token_requests) == len(edge.requests) == 1


async def test_a_token_that_expires_twice_during_one_call_is_renewed_twice() -> None:
    answers = [answer(401), answer(503), answer(401), answer(document={"n": 1})]
    edge = Edge(lambda request: answers[len(edge.requests) - 1])
    async with edge.api() as api:
        call = asyncio.ensure_future(api.call("GET", "/api/v2/x"))
        await edge.pass_time(call.done)
        assert await call == {"n": 1}
    assert edge.used_tokens == ["token-1", "token-2", "token-2", "token-3"]


async def test_a_static_token_that_is_not_accepted_is_named_by_its_origin() -> None:
    edge = Edge(lambda request: answer(401))
    async with edge.api(WITH_TOKEN) as api:
        assert "the token of the connection 'c' is not accepted" in str(await refused(api))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (None, "Airflow at http://airflow refused the login of user 'marker' (401); correct login and password in"),
        (NOBODY, "no credentials for Airflow's API at http://airflow (from Airflow's configuration): create the"),
    ],
)
async def test_without_a_token_it_is_said_what_to_configure(settings: ApiSettings | None, text: str) -> None:
    edge = Edge()
    edge.tokens = lambda request: answer(401, {"detail": "Invalid credentials"})
    async with edge.api(settings) as api:
        assert text in str(await refused(api))
        edge.tokens = None
        await api.call("GET", "/api/v2/x")


async def test_a_token_is_waited_for_while_airflow_is_away() -> None:
    edge = Edge()
    edge.tokens = lambda request: (
        answer(503) if len(edge.token_requests) < 5 else answer(document={"access_token": "x"})
    )
    async with edge.api() as api:
        call = asyncio.ensure_future(api.call("GET", "/api/v2/x"))
        await edge.pass_time(call.done)
        await call


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("status", "detail", "text"),
    [
        (403, "Forbidden", "403 to PATCH /api/v2/x: Forbidden; grant user 'marker' to read and edit task instances"),
        (404, "Task 'x' not found", "Airflow answered 404 to PATCH /api/v2/x: Task 'x' not found"),
        (409, "already in success state", "Airflow answered 409 to PATCH /api/v2/x: already in success state"),
        (422, [{"msg": "reserved"}], "Airflow answered 422 to PATCH /api/v2/x: [{'msg': 'reserved'}]"),
    ],
)
async def test_a_refusal_says_what_was_refused_and_what_to_grant(status: int, detail: Any, text: str) -> None:
    edge = Edge(lambda request: answer(status, {"detail": detail}))
    async with edge.api() as api:
        error = await refused(api, "PATCH")
    assert text in str(error)
    assert error.status == status
    assert len(edge.requests) == 1, "repeating cannot mend it"


async def test_a_refusal_in_prose_is_shown_shortened() -> None:
    edge = Edge(lambda request: httpx.Response(413, text="too large " * 100))
    async with edge.api() as api:
        assert len(str(await refused(api))) < 300


async def test_a_404_of_something_before_airflow_says_nothing_about_airflow() -> None:
    """A router without a server behind it: what was asked for may well be there."""
    edge = Edge(lambda request: httpx.Response(404, html="default backend - 404"))
    async with edge.api() as api:
        error = await refused(api)
    assert error.status is None
    assert "answered 404 to GET /api/v2/x with text/html" in str(error)


@pytest.mark.parametrize("for_a_token", [True, False])
async def test_a_redirect_is_no_answer(for_a_token: bool) -> None:
    where = "https://airflow/login?next=t0ken"
    edge = Edge(lambda request: httpx.Response(307, headers={"location": where}))
    if for_a_token:
        edge.tokens = edge.handler
    async with edge.api() as api:
        error = str(await refused(api))
    assert "http://airflow (from the test) sends us on to https://airflow/login; correct the host" in error


@pytest.mark.parametrize("for_a_token", [True, False])
async def test_another_server_is_recognised(for_a_token: bool) -> None:
    edge = Edge(lambda request: httpx.Response(200, html="<h1>Welcome</h1>"))
    if for_a_token:
        edge.tokens = edge.handler
    async with edge.api() as api:
        error = str(await refused(api))
    assert "text/html" in error
    assert "really Airflow's API server?" in error


async def test_an_answer_without_a_token_is_recognised() -> None:
    edge = Edge()
    edge.tokens = lambda request: answer(200, ["t0ken"])
    async with edge.api() as api:
        assert "/auth/token" in str(await refused(api))


async def test_an_empty_answer_is_an_answer() -> None:
    edge = Edge(lambda request: httpx.Response(204))
    async with edge.api() as api:
        assert await api.call("DELETE", "/api/v2/x") is None


# ------------------------------------------------------------------ waiting


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.DecodingError("garbled"),
        *(answer(status) for status in (429, 500, 502, 503, 504)),
    ],
    ids=repr,
)
async def test_while_airflow_is_away_calls_wait(trouble: httpx.Response | Exception) -> None:
    edge = Edge(lambda request: trouble if len(edge.requests) < 8 else answer(document={"n": 1}))
    told: list[tuple[int, str]] = []
    async with edge.api() as api:
        api.listen(lambda level, text: told.append((level, text)))
        call = asyncio.ensure_future(api.call("POST", "/api/v2/x", json={"a": 1}))
        await edge.pass_time(lambda: api.trouble is not None)
        await edge.pass_time(call.done)
        assert await call == {"n": 1}
        assert api.trouble is None
    assert {body_of(request)["a"] for request in edge.requests} == {1}
    assert [level for level, _ in told] == [logging.WARNING, logging.INFO], "said once, and once when it is back"
    assert told[0][1].startswith("Airflow's API at http://airflow ")
    assert told[1][1] == "Airflow's API at http://airflow is back"


async def test_a_short_trouble_is_not_worth_a_word() -> None:
    edge = Edge(lambda request: answer(503) if len(edge.requests) < 3 else answer())
    told: list[str] = []
    async with edge.api() as api:
        api.listen(lambda level, text: told.append(text))
        call = asyncio.ensure_future(api.call("GET", "/api/v2/x"))
        await edge.pass_time(call.done)
    assert told == []


async def test_one_call_in_trouble_does_not_come_and_go_in_the_log() -> None:
    edge = Edge(lambda request: answer(500) if request.url.path.endswith("poison") else answer())
    told: list[str] = []
    async with edge.api() as api:
        stop = api.listen(lambda level, text: told.append(text))
        poison = asyncio.ensure_future(api.call("GET", "/api/v2/poison"))
        await edge.pass_time(lambda: api.trouble is not None)
        for _ in range(5):
            await api.call("GET", "/api/v2/fine")
        assert len(told) == 1
        poison.cancel()
        await asyncio.wait({poison})
        assert api.trouble is None
        stop()
    assert len(told) == 1


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [("7", 7, 7), ("999999", 60, 60), ("Wed, 01 Jan 2030 00:00:00 GMT", 0, 1), ("²", 0, 1), ("-5", 0, 1)],
)
async def test_a_server_may_say_when_to_come_again(after: str, least: float, most: float) -> None:
    headers = [(b"retry-after", after.encode())]
    edge = Edge(lambda request: httpx.Response(429, headers=headers) if len(edge.requests) < 2 else answer())
    async with edge.api() as api:
        call = asyncio.ensure_future(api.call("GET", "/api/v2/x"))
        await soon(edge.clock.wait_for_sleepers())
        (pause,) = edge.clock.sleepers
        assert least <= pause <= most
        edge.clock.advance(pause)
        await soon(call)


async def test_never_more_than_a_handful_in_flight() -> None:
    """Asking for tokens counts too."""
    edge = Edge(lambda request: answer(401 if "token-1" in request.headers["authorization"] else 200))
    async with edge.api() as api:
        await soon(asyncio.gather(*(api.call("GET", "/api/v2/x") for _ in range(100))))
    assert edge.most_in_flight == MOST_IN_FLIGHT == 4
    assert edge.in_flight == 0


async def test_a_call_that_waits_for_its_next_try_holds_no_place() -> None:
    edge = Edge(lambda request: answer(503) if request.url.path.endswith("away") else answer())
    async with edge.api() as api:
        away = [asyncio.ensure_future(api.call("GET", "/api/v2/away")) for _ in range(MOST_IN_FLIGHT)]
        await soon(edge.clock.wait_for_sleepers(MOST_IN_FLIGHT))
        await soon(api.call("GET", "/api/v2/fine"))
        for call in away:
            call.cancel()
        await asyncio.wait(away)


async def test_a_cancelled_call_gives_its_place_back() -> None:
    edge = Edge()
    async with edge.api(WITH_TOKEN) as api:
        edge.gate.clear()
        calls = [asyncio.ensure_future(api.call("GET", "/api/v2/x")) for _ in range(MOST_IN_FLIGHT)]
        await idle()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        edge.gate.set()
        await soon(api.call("GET", "/api/v2/x"))


# ------------------------------------------------------------------ paths, secrets


async def test_parts_of_a_path_stay_parts() -> None:
    edge = Edge()
    path = path_of("dags", "a.b", "dagRuns", "manual__2030-01-01T00:00:00+00:00/x y%", "taskInstances", "~")
    async with edge.api(WITH_TOKEN) as api:
        await api.call("GET", path, params={"map_index": -1, "state": ["success", "failed"]})
    raw = edge.requests[0].url.raw_path.decode()
    assert raw == (
        "/api/v2/dags/a.b/dagRuns/manual__2030-01-01T00%3A00%3A00%2B00%3A00%2Fx%20y%25/taskInstances/~"
        "?map_index=-1&state=success&state=failed"
    )


async def test_below_a_base_path() -> None:
    edge = Edge()
    settings = ApiSettings("https://host:8443/team/airflow", login="u", password="s3cret")
    async with edge.api(settings) as api:
        await api.call("GET", "/api/v2/version")
    assert edge.token_requests[0].url == "https://host:8443/team/airflow/auth/token"
    assert edge.requests[0].url == "https://host:8443/team/airflow/api/v2/version"


def test_secrets_are_not_shown() -> None:
    settings = ApiSettings("http://airflow", login="marker", password="s3cret", token="t0ken")
    assert "marker" in repr(settings)
    assert not any(secret in repr(settings) for secret in SECRETS)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (ApiSettings("http://host:port", origin="the connection 'c'"), "the connection 'c': 'http://host:port' is no"),
        (ApiSettings("http://h", verify="/no/such/ca.pem", origin="the connection 'c'"), "CA bundle '/no/such/ca.pem'"),
    ],
)
def test_settings_that_cannot_be_used(settings: ApiSettings, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        AirflowApi(settings)
