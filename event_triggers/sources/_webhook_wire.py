"""How a request to a hook is kept in the ``extra`` of an asset event, and read back exactly as it came.

=================  ==================================================================================
``delivery``       the delivery's id
``headers``        pairs of name and value, in the order in which they came; none that holds a secret
``body``           the body as text, where it is UTF-8 and a database can keep it as text
``body_base64``    else the body, encoded
=================  ==================================================================================

The body is kept as one text and not as its document, so that not a byte of it changes, and that Airflow's masking,
which goes by the names of fields, finds no field in it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["ASSET_PREFIX", "CONN_PREFIX", "NAME", "Received", "from_extra", "to_extra"]

ASSET_PREFIX: Final = "webhook/"
"""A hook's asset has its name behind this, as name and as URI."""
CONN_PREFIX: Final = "webhook_"
"""A hook's connection has its name behind this, as id."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a hook may be called."""

_SECRET: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers that are never kept: whoever may look at asset events must not learn what to send."""


class Received(NamedTuple):
    """A request as it came."""

    delivery: str
    headers: tuple[tuple[str, bytes], ...]
    body: bytes


def to_extra(received: Received) -> dict[str, Any]:
    """The request as an asset event's extra."""
    headers = [[name, value.decode("latin-1")] for name, value in received.headers if name.lower() not in _SECRET]
    return {"delivery": received.delivery, "headers": headers, **_body_of(received.body)}


def _body_of(body: bytes) -> dict[str, str]:
    if b"\0" not in body:  # which PostgreSQL keeps as text nowhere
        try:
            return {"body": body.decode("utf-8")}
        except UnicodeDecodeError:
            pass
    return {"body_base64": base64.b64encode(body).decode("ascii")}


def from_extra(extra: Any) -> Received | None:
    """The request again; ``None`` when this is no extra that :func:`to_extra` gave."""
    if not isinstance(extra, Mapping):
        return None
    delivery, headers, body = extra.get("delivery"), extra.get("headers"), extra.get("body")
    if not isinstance(delivery, str) or not isinstance(headers, list):
        return None
    try:
        if isinstance(body, str):
            content = body.encode("utf-8")
        else:
            content = base64.b64decode(str(extra["body_base64"]), validate=True)
        return Received(delivery, tuple(_pairs(headers)), content)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None


def _pairs(headers: Iterable[Any]) -> Iterable[tuple[str, bytes]]:
    for name, value in headers:
        yield str(name), str(value).encode("latin-1")
