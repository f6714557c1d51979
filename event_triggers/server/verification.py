"""Whether a request comes from who knows a hook's secret, and which delivery it is.

====================  ========================================================  =====================================
scheme                what is signed, and in which headers                      the delivery's id
====================  ========================================================  =====================================
``hmac``              ``<time>.<delivery>.<body>``: ``X-Webhook-Timestamp``,    ``X-Webhook-Delivery`` (signed too)
                      ``X-Webhook-Delivery``, ``X-Webhook-Signature: v1=...``
``github``            the body: ``X-Hub-Signature-256: sha256=...``             ``X-GitHub-Delivery``
``stripe``            ``<time>.<body>``: ``Stripe-Signature: t=...,v1=...``     ``id`` of the body
``slack``             ``v0:<time>:<body>``: ``X-Slack-Request-Timestamp``,      ``event_id`` of the body
                      ``X-Slack-Signature: v0=...``
``bearer``            nothing: ``Authorization: Bearer <secret>``               ``X-Webhook-Delivery``
``proxy``, ``open``   nothing                                                   ``X-Webhook-Delivery``
====================  ========================================================  =====================================

All signatures are HMAC-SHA256 in hexadecimal. Where there is no id, a digest of the signed content, or of the body,
stands for it. Every comparison takes the same time wherever two values differ, and all secrets are tried.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from event_triggers.hook_settings import HookSettings

__all__ = ["DELIVERY_HEADER", "SIGNATURE_HEADER", "TIMESTAMP_HEADER", "NotVerified", "Verified", "verify"]

DELIVERY_HEADER: Final = "x-webhook-delivery"
SIGNATURE_HEADER: Final = "x-webhook-signature"
TIMESTAMP_HEADER: Final = "x-webhook-timestamp"

_MOST_SIGNATURES: Final = 10
"""More in one header are not looked at: each costs a comparison."""


class NotVerified(Exception):
    """The caller is not who it must be. The text is for the log of the API server.

    :param told: what may be told to the caller, who has proved that it knows the secret; else empty.
    """

    def __init__(self, reason: str, *, told: str = "") -> None:
        super().__init__(reason)
        self.told = told


class Verified(NamedTuple):
    """The caller is verified."""

    delivery: str
    """The delivery's id, or a digest."""
    own_id: bool
    """Whether the caller named it."""


def verify(settings: HookSettings, headers: Mapping[str, str], body: bytes, *, now: float) -> Verified:
    """Verify a request.

    :param headers: by lower-case name.
    :param now: seconds since 1970.
    :raises NotVerified: when it is not from who knows the secret, or is too old.
    """
    return _SCHEMES[settings.scheme](settings, headers, body, now)


def _hmac(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    stamp, delivery = _stamp(headers.get(TIMESTAMP_HEADER)), headers.get(DELIVERY_HEADER, "")
    signed = f"{stamp}.{delivery}.".encode("latin-1", "replace") + body
    _check(settings, signed, _values(headers.get(SIGNATURE_HEADER, ""), "v1"))
    _check_age(settings, stamp, now)
    return _named(delivery, signed)


def _github(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    _check(settings, body, _values(headers.get("x-hub-signature-256", ""), "sha256"))
    return _named(headers.get("x-github-delivery", ""), body)


def _stripe(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    header = headers.get("stripe-signature", "")
    stamp = _stamp(next(iter(_values(header, "t")), None))
    signed = f"{stamp}.".encode() + body
    _check(settings, signed, _values(header, "v1"))
    _check_age(settings, stamp, now)
    return _named(_field(body, "id"), signed)


def _slack(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    stamp = _stamp(headers.get("x-slack-request-timestamp"))
    signed = f"v0:{stamp}:".encode() + body
    _check(settings, signed, _values(headers.get("x-slack-signature", ""), "v0"))
    _check_age(settings, stamp, now)
    return _named(_field(body, "event_id"), signed)


def _bearer(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not _any_equal([token.strip()], [_plain(one) for one in settings.secrets]):
        raise NotVerified("its bearer token is missing or not the hook's secret")
    return _named(headers.get(DELIVERY_HEADER, ""), body)


def _proxy(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    if not _any_equal([headers.get(settings.proxy_header.lower(), "")], [settings.proxy_value]):
        raise NotVerified(f"the proxy does not say {settings.proxy_header}: {settings.proxy_value}")
    return _named(headers.get(DELIVERY_HEADER, ""), body)


def _open(settings: HookSettings, headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    return _named(headers.get(DELIVERY_HEADER, ""), body)


_SCHEMES: Final[Mapping[str, Callable[[HookSettings, Mapping[str, str], bytes, float], Verified]]] = {
    "hmac": _hmac,
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "bearer": _bearer,
    "proxy": _proxy,
    "open": _open,
}


# ---------------------------------------------------------------------- parts


def _check(settings: HookSettings, signed: bytes, signatures: list[str]) -> None:
    if not signatures:
        raise NotVerified(f"it carries no signature as scheme {settings.scheme!r} has them")
    right = [hmac.new(one.encode(), signed, hashlib.sha256).hexdigest() for one in settings.secrets]
    if not _any_equal([one.lower() for one in signatures], right):
        raise NotVerified("its signature does not fit its content and the hook's secret")


def _any_equal(given: Iterable[str], right: Iterable[str]) -> bool:
    expected = [one.encode("utf-8", "surrogatepass") for one in right]
    equal = False
    for one in given:
        for other in expected:
            equal |= hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other)
    return equal


def _plain(secret: str) -> str:
    """A secret as a header carries it: bytes, each shown as one character."""
    return secret.encode("utf-8", "surrogatepass").decode("latin-1")


def _check_age(settings: HookSettings, stamp: str, now: float) -> None:
    # After the signature: so only who knows the secret learns what is wrong.
    away = now - int(stamp)
    if abs(away) > settings.tolerance:
        told = (
            f"the request is stamped {abs(away):.0f} s {'ago' if away > 0 else 'ahead'}; sign it anew, or set the clock"
        )
        raise NotVerified(f"its time stamp is {away:.0f} s old, more than {settings.tolerance:g} s off", told=told)


def _stamp(value: str | None) -> str:
    text = (value or "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise NotVerified("it has no time stamp in seconds since 1970")
    return text


def _values(header: str, name: str) -> list[str]:
    """The values of ``name`` in a header like ``t=1,v1=abc,v1=def``."""
    pairs = (part.strip().partition("=") for part in header.split(","))
    return [value for key, _, value in pairs if key == name][:_MOST_SIGNATURES]


def _field(body: bytes, name: str) -> str:
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else ""


def _named(delivery: str, content: bytes) -> Verified:
    if delivery:
        return Verified(delivery, own_id=True)
    return Verified(f"sha256:{hashlib.sha256(content).hexdigest()}", own_id=False)
