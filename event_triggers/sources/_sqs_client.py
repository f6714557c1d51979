"""A client for Amazon SQS, made from an Airflow connection. The only importer of the AWS SDK.

Where the Amazon provider is installed, its hook makes the client, so that a connection means the same as in every
other operator: access keys, profiles, roles of all kinds, endpoints, botocore options. The hook is handed the
connection that was already looked up and never looks one up itself, because that would block the triggerer's event
loop. Without the provider the same connection is read here; what only the provider can do (federated roles) is refused.

Everything that reads files or calls the network synchronously happens in a thread: the SDK's service descriptions, the
profile files, and the provider's way of assuming a role, also each time the role's credentials are renewed.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from event_triggers.errors import (
    ConfigurationError,
    ConnectionMissingError,
    EventTriggersError,
    MissingExtraError,
    StreamError,
)
from event_triggers.sources._sqs_wire import advice, region_of, said
from event_triggers.sources.base import BrokerConnection, Opening
from event_triggers.text import plain_logger

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from aiobotocore.session import AioSession
    from types_aiobotocore_sqs import SQSClient

    _Maker = Callable[[], AbstractAsyncContextManager[SQSClient]]

__all__ = ["connect", "translated"]

log = plain_logger(__name__)

_DEFAULT_CONN_ID = "aws_default"
_CLOSE_SECONDS = 2.0
_DEFAULTS: dict[str, Any] = {
    # The SDK repeats what was lost or throttled; when that does not help, the hub opens the stream again.
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "connect_timeout": 10,
    # Longer than the longest long poll, or a quiet queue would look like a dead one.
    "read_timeout": 35,
    "tcp_keepalive": True,
}


@asynccontextmanager
async def connect(
    queue: str, conn_id: str | None, region: str | None, opening: Opening, where: str
) -> AsyncIterator[SQSClient]:
    """A client for the region of this queue; closed in bounded time.

    :raises ConfigurationError: when the connection does not exist, or one of its options is wrong.
    :raises StreamError: when there are no credentials, or the role may not be assumed now.
    """
    connection = await _lookup(conn_id, opening)
    region = region or region_of(queue)
    if connection is not None and connection.extra.get("verify") is False:
        log.warning("aws connection %r: verify is false, so anybody on the way can pose as SQS", connection.conn_id)
    try:
        maker = await anyio.to_thread.run_sync(_maker, conn_id, connection, region, abandon_on_cancel=True)
        context = maker()
        client = await context.__aenter__()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(f"{where}: an option of the connection is wrong: {error}") from error
    except Exception as error:
        raise translated(error, where) from error
    try:
        yield client
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await context.__aexit__(None, None, None)


async def _lookup(conn_id: str | None, opening: Opening) -> BrokerConnection | None:
    if not conn_id:
        return None
    try:
        return await opening.connection(conn_id)
    except ConnectionMissingError:
        if conn_id != _DEFAULT_CONN_ID:
            raise
        log.info("There is no connection %r; the AWS credentials of this machine are used", conn_id)
        return None


def _maker(conn_id: str | None, connection: BrokerConnection | None, region: str | None) -> _Maker:
    """Do in a thread all that blocks; what is left to do in the event loop is to call the result."""
    try:
        import aiobotocore.session  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("SqsQueue", "aiobotocore", "sqs") from error
    try:
        import airflow.providers.amazon.aws.hooks.sqs  # noqa: F401
    except ImportError:
        return _alone(connection, region)
    return _with_provider(conn_id, connection, region)


def _prepare(session: AioSession) -> None:
    """Load in this thread what making a client would load in the event loop, and keep renewals of a role out of it."""
    loader = session.get_component("data_loader")
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data_with_path(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("sqs", kind)
    session.get_scoped_config()
    credentials: Any = getattr(session, "_credentials", None)
    renew: Callable[[], Any] | None = getattr(credentials, "_refresh_using", None)
    if renew is not None and not inspect.iscoroutinefunction(renew):
        credentials._refresh_using = partial(asyncio.to_thread, renew)


# -- with the Amazon provider ------------------------------------------------------------------------------------------


def _with_provider(conn_id: str | None, connection: BrokerConnection | None, region: str | None) -> _Maker:
    from airflow.providers.amazon.aws.hooks.sqs import SqsHook
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    from botocore.config import Config

    known = None
    config = Config(**_DEFAULTS)
    if connection is not None:
        known = AwsConnectionWrapper.from_connection_metadata(
            conn_id=connection.conn_id,
            login=connection.login,
            password=connection.password,
            extra=dict(connection.extra),
        )
        if known.botocore_config is not None:
            config = config.merge(known.botocore_config)
    hook = SqsHook(aws_conn_id=conn_id, region_name=region)
    # Put in place of the hook's own lookup, which is a cached property.
    hook.conn_config = AwsConnectionWrapper(conn=known, region_name=region, botocore_config=config)
    session: Any = hook.get_session(region_name=hook.region_name, deferrable=True)
    _prepare(session)
    endpoint = hook.conn_config.get_service_endpoint_url("sqs")
    return partial(session.create_client, "sqs", endpoint_url=endpoint, config=hook.config, verify=hook.verify)


# -- without it --------------------------------------------------------------------------------------------------------


def _alone(connection: BrokerConnection | None, region: str | None) -> _Maker:
    from aiobotocore.config import AioConfig

    extra = dict(connection.extra) if connection is not None else {}
    services = extra.get("service_config") or {}
    session = _session(extra)
    key, secret = _keys(connection)
    if key and secret:
        session.set_credentials(key, secret, extra.get("aws_session_token"))
    options: dict[str, Any] = {
        "region_name": region or extra.get("region_name") or session.get_config_variable("region"),
        "config": AioConfig(**{**_DEFAULTS, **_config_kwargs(extra)}),
        "verify": extra.get("verify"),
    }
    if extra.get("role_arn"):
        sts = partial(
            session.create_client, "sts", endpoint_url=(services.get("sts") or {}).get("endpoint_url"), **options
        )
        session = _in_role(sts, extra, connection.conn_id if connection is not None else "")
    _prepare(session)
    endpoint = (services.get("sqs") or {}).get("endpoint_url", extra.get("endpoint_url"))
    return partial(session.create_client, "sqs", endpoint_url=endpoint, **options)


def _session(extra: Mapping[str, Any]) -> AioSession:
    from aiobotocore.session import AioSession

    session = AioSession(profile=extra.get("profile_name"))
    session.register_component("data_loader", _loader())
    return session


@cache
def _loader() -> Any:
    """Reads the SDK's service descriptions, and keeps what it read; a session's own one reads them again each time."""
    from botocore.loaders import Loader

    return Loader()


def _keys(connection: BrokerConnection | None) -> tuple[str | None, str | None]:
    if connection is None:
        return None, None
    if connection.login and connection.password:
        return connection.login, connection.password
    return connection.extra.get("aws_access_key_id"), connection.extra.get("aws_secret_access_key")


def _config_kwargs(extra: Mapping[str, Any]) -> dict[str, Any]:
    from botocore import UNSIGNED

    options = dict(extra.get("config_kwargs") or {})
    if options.get("signature_version") == "unsigned":
        options["signature_version"] = UNSIGNED
    return options


def _in_role(sts_client: Callable[[], Any], extra: Mapping[str, Any], conn_id: str) -> AioSession:
    """A session whose credentials are those of the connection's role, renewed before they end."""
    from aiobotocore.credentials import AioDeferredRefreshableCredentials

    method = extra.get("assume_role_method", "assume_role")
    if method != "assume_role":
        raise ConfigurationError(
            f"assume_role_method {method!r} needs the Amazon provider: pip install apache-airflow-providers-amazon"
        )
    asked = {
        "RoleSessionName": re.sub(r"[^\w+=,.@-]+", "-", f"Airflow_{conn_id}"),
        **(extra.get("assume_role_kwargs") or {}),
    }

    async def renew() -> dict[str, str]:
        async with sts_client() as sts:
            given = (await sts.assume_role(RoleArn=extra["role_arn"], **asked))["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    session: Any = _session(extra)
    session._credentials = AioDeferredRefreshableCredentials(refresh_using=renew, method="sts-assume-role")
    in_role: AioSession = session
    return in_role


# -- errors ------------------------------------------------------------------------------------------------------------


def translated(error: Exception, where: str) -> EventTriggersError:
    """What an error of the SDK means, in our words.

    :param where: the queue and its connection.
    """
    if isinstance(error, EventTriggersError):
        return error
    from botocore import exceptions as aws

    if isinstance(error, aws.ClientError):
        # Its text may hold the whole signed request, session token included, and it stays behind ours as the cause.
        error.args = (said(error.response["Error"]),)
        if error.operation_name.startswith("AssumeRole"):
            return StreamError(f"{where}: the connection's role cannot be assumed: {said(error.response['Error'])}")
        return StreamError(f"{where}: {advice(error.response['Error'])}")
    if isinstance(error, aws.NoRegionError):
        return ConfigurationError(
            f"{where}: no AWS region is known; name it with region=, or as region_name in the connection's extra"
        )
    if isinstance(
        error,
        (
            aws.ProfileNotFound,
            aws.ConfigNotFound,
            aws.ConfigParseError,
            aws.ValidationError,
            aws.ParamValidationError,
            aws.InvalidRegionError,
            aws.InvalidProxiesConfigError,
        ),
    ):
        return ConfigurationError(f"{where}: an option of the connection is wrong: {error}")
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return StreamError(
            f"{where}: there are no usable AWS credentials ({error}); "
            f"put them into the connection, or into the environment of the triggerer"
        )
    if isinstance(error, (aws.HTTPClientError, aws.ConnectionError)):
        return StreamError(f"{where}: SQS cannot be reached: {error}")
    return StreamError(f"{where}: {type(error).__name__}: {error}")
