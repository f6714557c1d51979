"""The routes of hooks keep what their own description says, whatever is sent."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hooks.kit import ApiServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.timeout(600)
def test_nothing_that_is_sent_breaks_a_hook(api: ApiServer) -> None:
    hooks = [api.hook(), api.hook("open", secret=None), api.hook("open", secret=None, json_only=True)]
    hooks += [api.hook(scheme) for scheme in ("github", "stripe", "slack", "bearer")]
    schema = schemathesis.openapi.from_url(f"{api.url}/event-triggers/openapi.json")
    case_of = schema["/hooks/{name}"]["POST"].as_strategy()
    seen: set[int] = set()

    @given(case=case_of, hook=st.sampled_from([None, *hooks]))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: schemathesis.Case[Any], hook: str | None) -> None:
        if hook is not None:
            case.path_parameters = {"name": hook}
        response = case.call()
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    assert {202, 401} <= seen


def test_headers_of_any_kind(api: ApiServer) -> None:
    hooks = {scheme: api.hook(scheme) for scheme in ("hmac", "github", "stripe", "slack", "bearer")}
    names = [
        "Authorization", "X-Webhook-Timestamp", "X-Webhook-Delivery", "X-Webhook-Signature", "X-Hub-Signature-256",
        "X-GitHub-Delivery", "Stripe-Signature", "X-Slack-Signature", "X-Slack-Request-Timestamp",
    ]  # fmt: skip
    printable = bytes(byte for byte in range(32, 256) if byte != 127)
    values = st.lists(st.sampled_from(printable), max_size=60).map(lambda value: bytes(value).strip())
    shapes = st.one_of(values, st.sampled_from([b"v1=,t=", b"t=1,v1=a", b"v0=", b"sha256=", b"Bearer", b"9" * 400]))

    @given(scheme=st.sampled_from(list(hooks)), headers=st.dictionaries(st.sampled_from(names), shapes))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(scheme: str, headers: dict[str, bytes]) -> None:
        sent = [(name.encode(), value) for name, value in headers.items()]
        address = f"{api.url}/event-triggers/hooks/{hooks[scheme]}"
        answer = httpx.post(address, content=b'{"id": 1}', headers=sent, trust_env=False)
        assert answer.status_code == 401

    check()
