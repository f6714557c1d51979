"""An Airflow connection of type ``nats``, read, and connected; JetStream asked: the only importer of nats-py."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from event_triggers.errors import ConfigurationError, MissingExtraError, StreamError
from event_triggers.message import Message
from event_triggers.sources._options import TLS_OPTIONS, as_flag, as_pem, as_text, read_options, read_tls
from event_triggers.sources.base import BrokerConnection

__all__ = ["FORGOTTEN_AFTER", "OPTIONS", "JetStream", "connect", "to_message"]

OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "token": as_text,
    "creds": as_text,
    "creds_text": as_pem,
    "domain": as_text,
    "inbox_prefix": as_text,
    "tls": as_flag,
    **TLS_OPTIONS,
}
"""What the extra of a connection may hold, and how each value is read."""
_TIMEOUT = 8
"""Seconds that connecting, and an answer, may take."""
_NOT_FOUND = 404
_SHORT_REPLY = 9
"""How many tokens the address for an acknowledgement has without domain and account."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FORGOTTEN_AFTER = 300
"""Seconds after which the server removes a consumer that nobody asks."""


class JetStream:
    """JetStream's API over one connection.

    :param where: the connection and its server, for messages.
    """

    def __init__(self, client: Any, domain: str | None, where: str) -> None:
        self._client = client
        self._prefix = f"$JS.{domain}.API" if domain else "$JS.API"
        self.where = where
        self._inbox: Any = None

    async def ask(self, what: str, /, **asked: Any) -> dict[str, Any]:
        """Call the API.

        :raises StreamError: when it does not answer, or refuses.
        """
        with self._translating(what.rpartition(".")[0] or what):
            body = json.dumps(asked).encode() if asked else b""
            answer = json.loads((await self._client.request(f"{self._prefix}.{what}", body, timeout=_TIMEOUT)).data)
        refused = answer.get("error")
        if refused is not None:
            stream = ".".join(what.split(".")[2:3])
            missing = f"there is no stream {stream!r} (yet): " if refused.get("code") == _NOT_FOUND else ""
            raise StreamError(f"{self.where}: {missing}{refused.get('description')} ({refused.get('err_code')})")
        return dict(answer)

    async def create_consumer(self, stream: str, subject: str, **begin: Any) -> dict[str, Any]:
        """Make an ephemeral pull consumer that acknowledges nothing, and describe it.

        :param begin: where it begins.
        :raises StreamError: when the server refuses.
        """
        config = {
            **begin,
            "ack_policy": "none",
            "filter_subject": subject,
            "inactive_threshold": int(FORGOTTEN_AFTER * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        return await self.ask(f"CONSUMER.CREATE.{stream}", stream_name=stream, config=config)

    async def new_inbox(self) -> None:
        """What was asked for before does not come any more."""
        with self._translating("inbox"):
            if self._inbox is not None:
                await self._inbox.unsubscribe()
            # Without a limit: a client that drops what it cannot hold would drop what it has asked for.
            self._inbox = await self._client.subscribe(self._client.new_inbox(), pending_bytes_limit=0)

    async def pull(self, consumer: str, request: Mapping[str, Any]) -> tuple[list[Any], bool]:
        """Ask a consumer once for messages: what came, and whether the consumer is still there.

        :param consumer: the stream's name, a dot, and the consumer's.
        :raises StreamError: when nothing is answered.
        """
        taken: list[Any] = []
        with self._translating("messages"):
            subject = f"{self._prefix}.CONSUMER.MSG.NEXT.{consumer}"
            await self._client.publish(subject, json.dumps(request).encode(), self._inbox.subject)
            while len(taken) < request["batch"]:
                raw = await self._inbox.next_msg(timeout=_TIMEOUT)
                status = (raw.headers or {}).get("Status")
                if raw.reply:
                    taken.append(raw)
                elif status in ("404", "408"):  # no more
                    break
                elif status != "100":  # the consumer is gone, or its server is
                    return taken, False
        return taken, True

    @contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            with _cancellation_passes():
                yield
        except _failures() as error:
            raise StreamError(f"{self.where}: {what}: {str(error) or type(error).__name__}") from error


def to_message(raw: Any, stream: str, created: str) -> Message:
    """The message that a delivery is.

    :param created: when the stream was created.
    """
    sequence = raw.metadata.sequence.stream
    return Message(
        source="nats",
        stream=raw.subject,
        position=f"{stream}@{sequence}",
        id=f"{stream}:{created}:{sequence}",
        body=raw.data,
        headers=tuple((str(k), str(v).encode("utf-8", "surrogatepass")) for k, v in (raw.headers or {}).items()),
        timestamp=_stored_at(raw),
        partition=stream,
        offset=sequence,
    )


def _stored_at(raw: Any) -> datetime:
    """When the server stored a message: to the microsecond below. Rounded up, it would be after itself."""
    tokens = raw.reply.split(".")
    nanoseconds = int(tokens[7 if len(tokens) == _SHORT_REPLY else 9])
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


@contextmanager
def _cancellation_passes() -> Iterator[None]:
    """The client goes on when it is cancelled while it flushes (``Client._flush_pending``); we do not.

    Not where a cancel scope of anyio is cancelled: that cancels again by itself. Python 3.10 does not tell how often a
    task was cancelled: there, it ends with the next cancellation.
    """
    cancelled: Callable[[], int] = getattr(asyncio.current_task(), "cancelling", lambda: 0)
    before = cancelled()
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if cancelled() > before and anyio.current_effective_deadline() != float("-inf"):
        raise asyncio.CancelledError
    if failed is not None:
        raise failed


def _failures() -> tuple[type[Exception], ...]:
    """What the client raises when something is wrong with the connection, the server, or what it was asked."""
    from nats.errors import Error

    return (Error, OSError, asyncio.TimeoutError, TimeoutError, ValueError)


@asynccontextmanager
async def connect(connection: BrokerConnection, what: str = "") -> AsyncIterator[JetStream]:
    """Connect to the server that the connection names.

    :param what: for what, for messages.
    :raises ConfigurationError: naming the connection and what is wrong in it.
    :raises StreamError: when no server can be reached, or the login is refused.
    """
    try:
        from nats.aio.client import Client
    except ModuleNotFoundError as error:
        raise MissingExtraError("NatsSubject", "nats", "nats") from error
    hosts, where, options, domain = await anyio.to_thread.run_sync(_read, connection)
    client = Client()
    try:
        await _connect(client, hosts, where, options)
        yield JetStream(client, domain, what + where)
    finally:
        # Where connecting failed, too: the client leaves its socket open then.
        with anyio.move_on_after(2, shield=True):
            await client.close()


async def _connect(client: Any, hosts: list[str], where: str, options: Mapping[str, Any]) -> None:
    problems: list[Exception] = []

    async def note(error: Exception) -> None:
        problems.append(error)

    # Failures are the hub's to see, and to wait after.
    once: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.1}
    try:
        with anyio.fail_after(_TIMEOUT), _cancellation_passes():
            await client.connect(
                hosts, error_cb=note, connect_timeout=_TIMEOUT, name="event_triggers", **once, **options
            )
    except ModuleNotFoundError as error:
        raise MissingExtraError("NatsSubject with creds", error.name or "nkeys", "nats") from error
    except _failures() as error:
        said = str(problems[0] if problems else error) or type(error).__name__
        advice = "; correct the connection's login" if "uthorization" in said else ""
        raise StreamError(f"{where}: cannot connect: {said.strip()}{advice}") from None


def _read(connection: BrokerConnection) -> tuple[list[str], str, dict[str, Any], str | None]:
    """Read the connection. It looks at files."""
    where = f"connection {connection.conn_id!r}"
    if not connection.host or "@" in connection.host or "/" in connection.host:
        raise ConfigurationError(f"{where}: its host must be the name of a NATS server, or several with commas between")
    extra = read_options(where, connection.extra, OPTIONS)
    logins = [name for name in ("token", "creds", "creds_text") if name in extra]
    if len(logins) + (connection.password is not None or connection.login is not None) > 1:
        raise ConfigurationError(
            f"{where}: it holds several logins (login and password, {', '.join(logins)}); keep one"
        )
    names = [host.strip() for host in connection.host.split(",")]
    hosts = [f"nats://{host}" if ":" in host else f"nats://{host}:{connection.port or 4222}" for host in names]
    where = f"{where} ({','.join(hosts)})"
    options: dict[str, Any] = {"user": connection.login, "password": connection.password, "token": extra.get("token")}
    if connection.password is not None and connection.login is None:
        options = {"token": connection.password}
    context = read_tls(where, extra, extra.get("tls", False))
    if context is not None:
        options["tls"] = context
    if "inbox_prefix" in extra:
        options["inbox_prefix"] = extra["inbox_prefix"]
    return hosts, where, options | _keys(where, extra), extra.get("domain")


def _keys(where: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = Path(extra["creds"]).read_text() if "creds" in extra else extra.get("creds_text")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: the file of creds cannot be read: {error}") from None
    if text is None:
        return {}
    if not re.search(r"BEGIN NATS USER JWT.*BEGIN USER NKEY SEED", text, re.DOTALL):
        raise ConfigurationError(f"{where}: its creds hold no user JWT and seed, as 'nsc generate creds' writes them")
    from nats.aio.client import RawCredentials

    return {"user_credentials": RawCredentials(text)}
