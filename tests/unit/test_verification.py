"""Who may call a hook. The signatures of others were computed with openssl, or are those their documents show."""

from __future__ import annotations

import hashlib
import hmac
from types import SimpleNamespace
from typing import Any

import pytest

from event_triggers.errors import ConfigurationError
from event_triggers.hook_settings import HookSettings, read_hook_settings
from event_triggers.server import verification
from event_triggers.server.rate import Rates
from event_triggers.server.verification import NotVerified, verify

NOW = 1_700_000_000.0


def settings(scheme: str, *secrets: str, **more: Any) -> HookSettings:
    return HookSettings(scheme=scheme, secrets=secrets, **more)


def test_github() -> None:
    """The vector of GitHub's own page about validating deliveries."""
    headers = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    }
    hook = settings("github", "It's a Secret to Everybody")
    verified = verify(hook, headers, b"Hello, World!", now=NOW)
    assert verified == ("72d3162e-cc78-11e3-81ab-4c9367dc0958", True)
    with pytest.raises(NotVerified, match="does not fit"):
        verify(hook, headers, b"Hello, World?", now=NOW)
    # SHA-1, as GitHub sends it too, is nothing.
    with pytest.raises(NotVerified, match="no signature"):
        verify(hook, {"x-hub-signature": "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"}, b"Hello, World!", now=NOW)


def test_slack() -> None:
    """The vector of Slack's own page about verifying requests."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&"
        b"channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&"
        b"response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&"
        b"trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    headers = {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    hook = settings("slack", "8f742231b10e8888abcd99yyyzzz85a5")
    verified = verify(hook, headers, body, now=1531420618)
    assert verified == (f"sha256:{hashlib.sha256(b'v0:1531420618:' + body).hexdigest()}", False)
    with pytest.raises(NotVerified) as caught:
        verify(hook, headers, body, now=1531420618 + 301)
    assert "set the clock" in caught.value.told


def test_slack_names_its_events() -> None:
    headers = {
        "x-slack-request-timestamp": "1700000000",
        "x-slack-signature": "v0=911f2fe2a59fdde209c75b71db7f529bfd81ce715163b3041bc6f6db58c03ee4",
    }
    verified = verify(settings("slack", "slacksecret"), headers, b'{"event_id": "Ev08MFMKH6"}', now=NOW)
    assert verified == ("Ev08MFMKH6", True)


STRIPE = b'{"id": "evt_1NG8Du2eZvKYlo2CUI79vXWy", "type": "charge.succeeded"}'
STRIPE_SIGNATURE = "a4e8335964a66acb9bf7103e624dc032dd863a7e05d4763c3c25f785c4cdb310"


@pytest.mark.parametrize(
    "header",
    [
        f"t=1700000000,v1={STRIPE_SIGNATURE}",
        f"t=1700000000,v1={'0' * 64},v1={STRIPE_SIGNATURE},v0={'1' * 64}",
    ],
    ids=["one signature", "two secrets at Stripe"],
)
def test_stripe(header: str) -> None:
    hook = settings("stripe", "whsec_test")
    assert verify(hook, {"stripe-signature": header}, STRIPE, now=NOW) == ("evt_1NG8Du2eZvKYlo2CUI79vXWy", True)
    for now in (NOW - 301, NOW + 301):
        with pytest.raises(NotVerified, match="time stamp"):
            verify(hook, {"stripe-signature": header}, STRIPE, now=now)
    with pytest.raises(NotVerified, match="does not fit"):
        verify(hook, {"stripe-signature": header.replace("t=17", "t=18")}, STRIPE, now=NOW)


OWN = {
    "x-webhook-timestamp": "1700000000",
    "x-webhook-delivery": "d-1",
    "x-webhook-signature": "v1=c218e7fe460fcf47c57d77860d8c7b0d29df8567865db47d573d788e2ed204c2",
}


def test_our_own() -> None:
    hook = settings("hmac", "new", "ours")
    assert verify(hook, OWN, b'{"ok": true}', now=NOW + 299) == ("d-1", True)


@pytest.mark.parametrize(
    "change",
    [
        {"x-webhook-timestamp": "1700000001"},
        {"x-webhook-timestamp": "170000000\u0660"},
        {"x-webhook-timestamp": ""},
        {"x-webhook-delivery": "d-2"},
        {"x-webhook-delivery": ""},
        {"x-webhook-signature": ""},
        {"x-webhook-signature": "v1="},
        {"x-webhook-signature": OWN["x-webhook-signature"][:-1]},
        {"x-webhook-signature": OWN["x-webhook-signature"].replace("v1", "v2")},
        {"x-webhook-signature": "v1=\u00e9"},
    ],
    ids=str,
)
def test_whatever_is_changed_is_noticed(change: dict[str, str]) -> None:
    with pytest.raises(NotVerified) as caught:
        verify(settings("hmac", "ours"), {**OWN, **change}, b'{"ok": true}', now=NOW)
    assert caught.value.told == ""


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secretsecret"])
def test_a_wrong_bearer_token(header: str) -> None:
    with pytest.raises(NotVerified, match="bearer"):
        verify(settings("bearer", "secret"), {"authorization": header}, b"", now=NOW)


@pytest.mark.parametrize("secrets", [("ours", "new"), ("new", "ours"), ("new", "other")])
def test_every_secret_is_compared_in_constant_time(secrets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two fits, and whether one does: as many comparisons, each by the function made for it."""
    compared: list[bool] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(hmac.compare_digest(one, other))
        return compared[-1]

    monkeypatch.setattr(verification, "hmac", SimpleNamespace(compare_digest=compare, new=hmac.new, digest=hmac.digest))
    if "ours" in secrets:
        verify(settings("hmac", *secrets), OWN, b'{"ok": true}', now=NOW)
    else:
        with pytest.raises(NotVerified):
            verify(settings("hmac", *secrets), OWN, b'{"ok": true}', now=NOW)
    assert compared == [secret == "ours" for secret in secrets]


def test_a_bearer_token() -> None:
    for secret in ("secret", "sécret"):
        header = b"Bearer " + secret.encode()
        headers = {"authorization": header.decode("latin-1"), "x-webhook-delivery": "d"}
        assert verify(settings("bearer", "another", secret), headers, b"", now=NOW) == ("d", True)


def test_what_a_proxy_says() -> None:
    hook = settings("proxy", proxy_header="X-Client-Verify", proxy_value="SUCCESS")
    assert verify(hook, {"x-client-verify": "SUCCESS"}, b"a", now=NOW).delivery.startswith("sha256:")
    for headers in ({}, {"x-client-verify": "FAILED"}, {"x-client-verify": ""}):
        with pytest.raises(NotVerified):
            verify(hook, headers, b"a", now=NOW)


@pytest.mark.parametrize(
    ("password", "extra", "said"),
    [
        (None, {}, "no secret"),
        ("", {"scheme": "github"}, "no secret"),
        ("s", {"scheme": "open"}, "nobody looks"),
        ("s", {"scheme": "md5"}, "scheme must be"),
        ("s", {"tolerance": 0}, "tolerance"),
        ("s", {"tolerance": True}, "tolerance"),
        ("s", {"rate_limit": "many"}, "rate_limit"),
        ("s", {"json_only": "yes"}, "json_only"),
        ("s", {"previous_secret": 5}, "previous_secret"),
        ("s", {"secret": "hidden"}, "unknown extra"),
        (None, {"scheme": "proxy"}, "proxy_header"),
    ],
    ids=str,
)
def test_a_wrong_connection_says_what_is_wrong(password: str | None, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_hook_settings("webhook_x", password, extra)
    assert "hidden" not in str(caught.value)


def test_a_connection_from_the_form() -> None:
    extra = {"scheme": "slack", "tolerance": "60", "rate_limit": None, "previous_secret": "", "json_only": True}
    assert read_hook_settings("webhook_x", "new", extra) == HookSettings(
        scheme="slack", secrets=("new",), tolerance=60.0, json_only=True
    )
    assert "new" not in repr(read_hook_settings("webhook_x", "new", extra))


def test_a_bucket_fills_again() -> None:
    rates = Rates()
    assert [rates.take("a", 2, 0.0) for _ in range(3)] == [None, None, 1]
    assert rates.take("b", 2, 0.0) is None, "each has its own"
    assert [rates.take("a", 2, 0.5), rates.take("a", 2, 0.5)] == [None, 1]
    assert [rates.take("slow", 0.1, 0.0), rates.take("slow", 0.1, 1.0)] == [None, 9]
