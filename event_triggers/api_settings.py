"""Where Airflow's API server is and who we are: by an Airflow connection, or by Airflow's own configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from event_triggers.errors import ConfigurationError, ConnectionMissingError
from event_triggers.sources.base import BrokerConnection
from event_triggers.text import plain_logger

__all__ = ["DEFAULT_CONN_ID", "ApiSettings", "find_settings"]

log = plain_logger(__name__)

DEFAULT_CONN_ID = "airflow_api_default"


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
        base_url = _url_of(connection)
    elif fallback_url:
        base_url = fallback_url
    else:
        raise ConfigurationError(f"the connection {connection.conn_id!r} names no host")
    token = connection.extra.get("token")
    if token is not None and not (isinstance(token, str) and token.strip().isascii() and token.strip().isprintable()):
        raise ConfigurationError(
            f"the token in the extra of the connection {connection.conn_id!r} is no text of a token"
        )
    verify = connection.extra.get("verify", True)
    if not isinstance(verify, (bool, str)) or verify == "":
        raise ConfigurationError(
            f"verify in the extra of the connection {connection.conn_id!r} must be true, false, or the path of a CA "
            f"bundle, not {verify!r}"
        )
    if verify is False:
        log.warning(
            "connection %r: verify is false, so anybody on the way can pose as Airflow's API server and read its token",
            connection.conn_id,
        )
    return ApiSettings(
        base_url=base_url.rstrip("/") + str(connection.extra.get("base_path", "")).rstrip("/"),
        login=connection.login,
        password=connection.password,
        token=token.strip() if token else None,
        verify=verify,
        origin=f"the connection {connection.conn_id!r}",
    )


def _url_of(connection: BrokerConnection) -> str:
    scheme, _, place = (connection.host or "").rpartition("://")
    scheme = (scheme or connection.schema or "http").lower()
    host, slash, path = place.partition("/")
    if scheme not in ("http", "https") or "@" in host or not host:
        raise ConfigurationError(
            f"the host of the connection {connection.conn_id!r} must be the name of Airflow's API server, with http:// "
            f"or https:// before it or in the schema, and without a user"
        )
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    port = f":{connection.port}" if connection.port else ""
    return f"{scheme}://{host}{port}{slash}{path}"
