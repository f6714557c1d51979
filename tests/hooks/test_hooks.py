"""Requests to hooks, at Airflow's real API server and database."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from event_triggers.server.hooks import MOST_BYTES
from tests.hooks.kit import ApiServer, signed


def check_problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["title"]
    detail = document["detail"]
    assert isinstance(detail, str)
    assert detail
    return detail


async def test_a_delivery_is_an_event_of_the_hooks_asset(api: ApiServer) -> None:
    name = api.hook()
    answer = await api.send(name, b'{"signed_off": true}', "d-1")
    assert answer.status_code == 202
    assert answer.json() == {"delivery": "d-1"}
    (extra,) = api.events(name)
    assert (extra["delivery"], extra["body"]) == ("d-1", '{"signed_off": true}')
    assert ["x-webhook-delivery", "d-1"] in extra["headers"]


@pytest.mark.parametrize("body", [b"", bytes(range(256)), b"\xff\xfe", "\u20ac\0".encode()], ids=range(4))
async def test_any_body_is_kept_byte_for_byte(api: ApiServer, body: bytes) -> None:
    name = api.hook()
    assert (await api.send(name, body)).status_code == 202
    (extra,) = api.events(name)
    assert (extra["body"].encode() if "body" in extra else base64.b64decode(extra["body_base64"])) == body


async def test_the_first_delivery_spares_the_server_long_looks_for_garbage(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from event_triggers.server.app import create_app  # it warns unless Airflow's server was imported before

    app = FastAPI()
    app.mount("/event-triggers", create_app())
    monkeypatch.setattr("event_triggers.garbage._calmed", False)
    gc.unfreeze()
    async with httpx.AsyncClient(base_url="http://airflow", transport=httpx.ASGITransport(app)) as client:
        path = f"/event-triggers/hooks/{api.hook()}"
        assert (await client.post(path, content=b"1")).status_code == 401
        assert gc.get_freeze_count() == 0
        assert (await client.post(path, content=b"1", headers=signed(b"1"))).status_code == 202
    assert gc.get_freeze_count() > 100_000
    gc.unfreeze()


async def test_a_replayed_delivery(api: ApiServer) -> None:
    name = api.hook()
    assert (await api.send(name, b"1", "same")).status_code == 202
    assert "stored already" in check_problem(await api.send(name, b"1", "same"), 409)
    assert (await api.send(api.hook(), b"1", "same")).status_code == 202, "another hook's deliveries are others"
    assert len(api.events(name)) == 1


async def test_copies_that_come_at_once_to_two_servers_are_stored_once(api: ApiServer) -> None:
    name = api.hook()
    urls = [api.url, api.second_url]
    sent = [api.send(name, b"{}", f"d-{number // 6}", url=urls[number % 2]) for number in range(60)]
    answers = await asyncio.gather(*sent)
    assert Counter(answer.status_code for answer in answers) == {202: 10, 409: 50}
    assert Counter(extra["delivery"] for extra in api.events(name)) == {f"d-{number}": 1 for number in range(10)}


async def test_wrong_secrets_learn_nothing(api: ApiServer) -> None:
    name = api.hook()
    headers = signed(b"{}", "d", secret="guessed")
    async with api.caller() as client:
        answers = [
            await client.post(f"/event-triggers/hooks/{name}", content=b"{}", headers=one)
            for one in (headers, {}, signed(b"other", "d"), signed(b"{}", "d", secret="guessed", stamp=1))
        ]
    details = {check_problem(answer, 401) for answer in answers}
    assert len(details) == 1
    assert api.events(name) == []


async def test_an_old_time_stamp_is_told_to_who_knows_the_secret(api: ApiServer) -> None:
    name = api.hook()
    async with api.caller() as client:
        answer = await client.post(f"/event-triggers/hooks/{name}", content=b"x", headers=signed(b"x", stamp=1000))
    assert "set the clock" in check_problem(answer, 401)


async def test_both_secrets_are_good_while_callers_change_over(api: ApiServer) -> None:
    name = api.hook(previous_secret="the old one")
    async with api.caller() as client:
        for secret, status in (("the old one", 202), ("older", 401)):
            headers = signed(b"x", secret, secret=secret)
            answer = await client.post(f"/event-triggers/hooks/{name}", content=b"x", headers=headers)
            assert answer.status_code == status
    assert (await api.send(name, b"x", "new")).status_code == 202


@pytest.mark.parametrize(
    ("secret", "extra", "status"),
    [(None, {}, 401), (None, {"scheme": "open"}, 202), ("s", {"scheme": "open"}, 401), ("s", {"sceme": "open"}, 401)],
    ids=["no secret", "opened", "open and a secret", "a mistyped option"],
)
async def test_a_hook_without_a_secret_is_refused_unless_it_is_opened(
    api: ApiServer, secret: str | None, extra: dict[str, Any], status: int
) -> None:
    name = api.hook(**{"secret": secret, **extra})
    async with api.caller() as client:
        answer = await client.post(f"/event-triggers/hooks/{name}", content=b"{}")
    assert answer.status_code == status
    assert "connection" not in answer.text


@pytest.mark.parametrize("name", ["nobody", "a%2Fb", "..%2F..", "x" * 200, "%00"])
async def test_an_unknown_hook(api: ApiServer, name: str) -> None:
    async with api.caller() as client:
        answer = await client.post(f"/event-triggers/hooks/{name}", content=b"{}")
    assert answer.status_code == 404


@pytest.mark.parametrize("length_known", [True, False])
async def test_what_is_too_large_is_not_read(api: ApiServer, length_known: bool) -> None:
    name = api.hook()
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 50 * MOST_BYTES:
            sent += 65536
            yield bytes(65536)

    content: Any = bytes(MOST_BYTES + 1) if length_known else endless()
    async with api.caller() as client:
        try:
            answer = await client.post(f"/event-triggers/hooks/{name}", content=content)
            assert "larger" in check_problem(answer, 413)
        except httpx.TransportError:  # the server has hung up already
            assert not length_known
    assert sent < 40 * MOST_BYTES
    assert (await api.send(name, bytes(MOST_BYTES))).status_code == 202


async def test_too_many_requests(api: ApiServer) -> None:
    name = api.hook(rate_limit=2)
    answers = [await api.send(name, b"x", f"d{number}") for number in range(3)]
    refused = await asyncio.gather(*(api.send(name, b"x", f"e{n}") for n in range(30)))
    limited = [answer for answer in [*answers, *refused] if answer.status_code == 429]
    assert limited
    assert int(limited[0].headers["retry-after"]) >= 1
    assert len(api.events(name)) == 33 - len(limited)


@pytest.mark.parametrize("delivery", ["x" * 201, "caf\u00e9"])
async def test_an_id_that_cannot_be_taken(api: ApiServer, delivery: str) -> None:
    name = api.hook("open", secret=None)
    async with api.caller() as client:
        headers = {b"X-Webhook-Delivery": delivery.encode("latin-1")}
        answer = await client.post(f"/event-triggers/hooks/{name}", content=b"{}", headers=headers)
    check_problem(answer, 422)


async def test_a_hook_that_takes_json_only(api: ApiServer) -> None:
    name = api.hook(json_only=True)
    check_problem(await api.send(name, b"{"), 422)
    assert (await api.send(name, b"[1]")).status_code == 202


async def test_the_database_is_away(api: ApiServer) -> None:
    name = api.hook()
    assert (await api.send(name, b"x", "before")).status_code == 202
    api.postgres.stop()
    try:
        answer = await api.send(name, b"x", "meanwhile")
        unknown = await api.send("hook-never-asked-for", b"x")
    finally:
        api.postgres.start()
    check_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    check_problem(unknown, 503)
    again = await api.send(name, b"x", "meanwhile")
    assert again.status_code == 202, "what was not stored was not remembered either"
    assert [extra["delivery"] for extra in api.events(name)] == ["before", "meanwhile"]


async def test_secrets_are_kept_out_of_events(api: ApiServer) -> None:
    name = api.hook("bearer")
    async with api.caller() as client:
        headers = {"Authorization": "Bearer a secret of tests", "Cookie": "a=b", "X-Kept": "yes"}
        answer = await client.post(f"/event-triggers/hooks/{name}", content=b"{}", headers=headers)
    assert answer.status_code == 202
    (extra,) = api.events(name)
    assert "a secret of tests" not in str(extra)
    kept = dict(extra["headers"])
    assert kept["x-kept"] == "yes"
    assert "cookie" not in kept


async def test_slack_asks_whether_somebody_is_here(api: ApiServer) -> None:
    import hashlib
    import hmac
    import time

    name = api.hook("slack")
    body = b'{"type": "url_verification", "challenge": "3eZbrw1a", "token": "t"}'
    stamp = str(int(time.time()))
    digest = hmac.new(b"a secret of tests", f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    headers = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={digest}"}
    async with api.caller() as client:
        answer = await client.post(f"/event-triggers/hooks/{name}", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1a"})
    assert api.events(name) == []


async def test_the_asset_is_on_the_page_of_assets(api: ApiServer) -> None:
    name = api.hook()
    await api.send(name, b"{}")
    async with api.opening().airflow() as call:
        found = await call("GET", "/api/v2/assets", params={"name_pattern": f"webhook/{name}"})
        events = await call("GET", "/api/v2/assets/events", params={"asset_id": found["assets"][0]["id"]})
    assert [asset["name"] for asset in found["assets"]] == [f"webhook/{name}"]
    assert events["total_entries"] == 1
