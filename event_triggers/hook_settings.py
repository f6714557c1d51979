"""What a hook's connection says: how its callers are verified, and what they may send.

The connection is called ``webhook_<name of the hook>``. Its password is the secret; its extra says the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from event_triggers.errors import ConfigurationError

__all__ = ["SCHEMES", "HookSettings", "read_hook_settings"]

SCHEMES: Final = ("hmac", "github", "stripe", "slack", "bearer", "proxy", "open")
_KNOWN: Final = {
    "scheme", "previous_secret", "tolerance", "rate_limit", "remember", "json_only", "proxy_header", "proxy_value",
}  # fmt: skip


@dataclass(frozen=True)
class HookSettings:
    """One hook.

    :param scheme: one of :data:`SCHEMES`.
    :param secrets: the secret, and the one before it while callers change over.
    :param tolerance: how many seconds a caller's clock may be wrong, and for how long a delivery without an id of its
        own is known again.
    :param rate_limit: requests per second, for each process of the API server.
    :param remember: for how many seconds a delivery's id is known again.
    :param json_only: refuse bodies that are not JSON.
    :param proxy_header: with ``proxy``, the header by which the proxy says that it has verified the caller, ...
    :param proxy_value: ... and what it says then.
    """

    scheme: str = "hmac"
    secrets: tuple[str, ...] = field(default=(), repr=False)
    tolerance: float = 300.0
    rate_limit: float = 500.0
    remember: float = 7 * 86_400.0
    json_only: bool = False
    proxy_header: str = ""
    proxy_value: str = "SUCCESS"


def read_hook_settings(conn_id: str, password: str | None, extra: Mapping[str, Any]) -> HookSettings:
    """Read a connection.

    :raises ConfigurationError: naming the option that is wrong, and never its value where it may be a secret.
    """

    def wrong(what: str) -> ConfigurationError:
        return ConfigurationError(f"the connection {conn_id!r}: {what}")

    given = {name: value for name, value in extra.items() if value not in (None, "")}
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise wrong(f"unknown extra keys {unknown}; known are {sorted(_KNOWN)}")
    scheme = given.get("scheme", "hmac")
    if scheme not in SCHEMES:
        raise wrong(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}")
    secrets = [one for one in (password, given.get("previous_secret")) if one]
    if not all(isinstance(one, str) for one in secrets):
        raise wrong("previous_secret must be a text")
    if scheme in ("open", "proxy"):
        if secrets:
            raise wrong(f"with scheme {scheme!r} nobody looks at a secret; remove it, or choose another scheme")
    elif not secrets:
        raise wrong(
            "it has no secret, so its hook is refused; set the password, or scheme to 'open' if anybody may call it"
        )
    if scheme == "proxy" and not given.get("proxy_header"):
        raise wrong("scheme 'proxy' needs proxy_header, the header that the proxy sets once it has verified a caller")
    numbers = {name: _number(given.get(name, default)) for name, default in _NUMBERS.items()}
    for name, number in numbers.items():
        if number is None:
            raise wrong(f"{name} must be a number above 0, not {given[name]!r}")
    json_only = given.get("json_only", False)
    if not isinstance(json_only, bool):
        raise wrong(f"json_only must be true or false, not {json_only!r}")
    return HookSettings(
        scheme=scheme,
        secrets=tuple(secrets),
        json_only=json_only,
        proxy_header=str(given.get("proxy_header", "")),
        proxy_value=str(given.get("proxy_value", "SUCCESS")),
        **{name: number for name, number in numbers.items() if number is not None},
    )


_NUMBERS: Final = {"tolerance": 300.0, "rate_limit": 500.0, "remember": 7 * 86_400.0}


def _number(value: Any) -> float | None:
    try:
        number = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e9 else None
