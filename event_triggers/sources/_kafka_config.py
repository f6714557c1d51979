"""An Airflow connection of type ``kafka``, read into the arguments of an aiokafka consumer.

The extra of such a connection holds librdkafka's keys. Nothing here opens a file, connects, or imports a client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from event_triggers.sources._kafka_keys import Extra
from event_triggers.sources.base import BrokerConnection
from event_triggers.text import plain_logger

__all__ = ["ISOLATION_LEVELS", "KafkaSettings", "TlsSettings", "TokenSettings", "read_settings"]

log = plain_logger(__name__)

ISOLATION_LEVELS: Final = ("read_committed", "read_uncommitted")

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI")
_DEFAULT_PORT: Final = 9092

_DEFAULTS: Final[dict[str, Any]] = {
    "client_id": "airflow-event-triggers",
    "request_timeout_ms": 20_000,
    "metadata_max_age_ms": 30_000,
    # What is fetched ahead is the memory a slow reader costs.
    "fetch_max_bytes": 16 * 1024 * 1024,
}

_FETCH_WAIT_MS: Final = 1_000
"""How long a broker that has nothing new keeps a question. A message is answered at once, so a longer wait only makes
waiting cheaper; but where a group begins to read is asked over the same connection, and answered after it."""

_MSK: Final = re.compile(r"\.kafka(?:-serverless)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$", re.IGNORECASE)


@dataclass(frozen=True)
class TlsSettings:
    """How to encrypt and whom to trust. Files are only read when the connection is opened."""

    ca_location: str | None = None
    ca_pem: str | None = field(default=None, repr=False)
    certificate_location: str | None = None
    certificate_pem: str | None = field(default=None, repr=False)
    key_location: str | None = None
    key_pem: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    keystore_location: str | None = None
    keystore_password: str | None = field(default=None, repr=False)
    ciphers: str | None = None
    crl_location: str | None = None
    verify: bool = True
    check_hostname: bool = True


@dataclass(frozen=True)
class TokenSettings:
    """Where OAUTHBEARER tokens come from: a callable, an OIDC endpoint, or Amazon MSK's signer; exactly one is set.

    :param callback: dotted path of a callable, called as confluent-kafka calls its ``oauth_cb``.
    :param config: what that callable is given.
    :param endpoint: URL of an OIDC token endpoint.
    :param msk_region: the AWS region of an MSK cluster with IAM.
    """

    callback: str | None = None
    config: str = field(default="", repr=False)
    endpoint: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    scope: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict, repr=False)
    https_ca_location: str | None = None
    https_ca_pem: str | None = field(default=None, repr=False)
    msk_region: str | None = None


@dataclass(frozen=True)
class KafkaSettings:
    """Everything that is needed to connect, checked.

    :param arguments: of the aiokafka consumer, without those that need files or objects of its own.
    :param isolation: the connection's ``isolation.level``; ``None`` when it has none.
    """

    conn_id: str
    servers: tuple[str, ...]
    protocol: str
    mechanism: str | None
    arguments: Mapping[str, Any] = field(repr=False)
    isolation: str | None = None
    tls: TlsSettings | None = None
    tokens: TokenSettings | None = None

    @property
    def request_timeout(self) -> float:
        """Seconds that a broker has to answer."""
        return float(self.arguments["request_timeout_ms"]) / 1000

    @property
    def about(self) -> str:
        """Which cluster this is and how it is entered, for people; no secrets."""
        how = self.protocol
        if self.mechanism is not None:
            user = self.arguments.get("sasl_plain_username")
            how += f", {self.mechanism}" + (f" as {user!r}" if user is not None else "")
        return f"Kafka at {', '.join(self.servers)} (connection {self.conn_id!r}, {how})"


def read_settings(connection: BrokerConnection) -> KafkaSettings:
    """Read and check the whole connection.

    :raises ConfigurationError: naming the connection, the key, and what is wrong with it.
    """
    extra = Extra(connection)
    extra.check_names()
    protocol = extra.choice("security.protocol", _PROTOCOLS) or "PLAINTEXT"
    servers = _servers(extra)
    mechanism = _mechanism(extra) if protocol.startswith("SASL") else None
    tls = _tls(extra) if protocol.endswith("SSL") else None
    extra.warn_unused(protocol)
    return KafkaSettings(
        conn_id=connection.conn_id,
        servers=servers,
        protocol=protocol,
        mechanism=mechanism,
        arguments={
            **_DEFAULTS,
            **_tuning(extra),
            **_login(extra, mechanism),
            "bootstrap_servers": list(servers),
            "security_protocol": protocol,
        },
        isolation=extra.choice("isolation.level", ISOLATION_LEVELS),
        tls=tls,
        tokens=_tokens(extra, servers) if mechanism == "OAUTHBEARER" else None,
    )


def _servers(extra: Extra) -> tuple[str, ...]:
    value = extra.values.get("bootstrap.servers") or extra.values.get("metadata.broker.list")
    if value is None:
        more = " (its host and port are not looked at)" if extra.connection.host else ""
        raise extra.wrong(
            f"its extra must have the key bootstrap.servers{more}, "
            f'for example {{"bootstrap.servers": "broker-1:9092,broker-2:9092"}}'
        )
    parts = value if isinstance(value, list) else str(value).split(",")
    servers = tuple(_server(extra, str(part).strip()) for part in parts if str(part).strip())
    if not servers:
        raise extra.wrong("bootstrap.servers names no server")
    return servers


def _server(extra: Extra, text: str) -> str:
    match = re.fullmatch(r"(?:\w+://)?(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\s:/@\[\]]+)(?::(?P<port>\d{1,5}))?", text)
    if match is None or not 0 < int(match["port"] or _DEFAULT_PORT) < 65536:
        _, login, place = text.rpartition("@")  # whoever writes a login there means a secret
        named = f"***@{place}" if login else text
        raise extra.wrong(f"bootstrap.servers must be host:port, several with commas between, not {named!r}")
    return f"{match['host']}:{match['port'] or _DEFAULT_PORT}"


def _tuning(extra: Extra) -> dict[str, Any]:
    found: dict[str, Any] = {
        "client_id": extra.text("client.id"),
        "client_rack": extra.text("client.rack"),
        "check_crcs": extra.flag("check.crcs"),
        "request_timeout_ms": extra.integer("socket.timeout.ms", 1_000, 300_000),
        "retry_backoff_ms": extra.integer("retry.backoff.ms", 1, 300_000),
        "fetch_max_wait_ms": extra.integer("fetch.wait.max.ms", 0, 300_000),
        "fetch_min_bytes": extra.integer("fetch.min.bytes", 0),
        "fetch_max_bytes": extra.integer("fetch.max.bytes", 1),
        "max_partition_fetch_bytes": extra.integer("max.partition.fetch.bytes", 1)
        or extra.integer("fetch.message.max.bytes", 1),
    }
    found = {name: value for name, value in found.items() if value is not None}
    ages = [extra.integer("metadata.max.age.ms", 1), extra.integer("topic.metadata.refresh.interval.ms", -1)]
    # -1 switches librdkafka's looking for new partitions off, which would lose their messages.
    positive = [max(age, 1_000) for age in ages if age is not None and age > 0]
    if positive:
        found["metadata_max_age_ms"] = min(positive)
    idle = extra.integer("connections.max.idle.ms", 0)
    if idle is not None:
        found["connections_max_idle_ms"] = idle or None
    timeout = found.get("request_timeout_ms", _DEFAULTS["request_timeout_ms"])
    wait = found.setdefault("fetch_max_wait_ms", min(_FETCH_WAIT_MS, timeout // 2))
    if wait >= timeout:
        raise extra.wrong(f"fetch.wait.max.ms ({wait}) must be less than socket.timeout.ms ({timeout})")
    return found


def _mechanism(extra: Extra) -> str:
    named = extra.choice("sasl.mechanism", _MECHANISMS) or extra.choice("sasl.mechanisms", _MECHANISMS)
    if named is None and "sasl.username" in extra.values:
        raise extra.wrong(f"sasl.mechanism is missing; it is one of {', '.join(_MECHANISMS)}")
    return named or "GSSAPI"


def _login(extra: Extra, mechanism: str | None) -> dict[str, Any]:
    if mechanism is None:
        return {}
    login: dict[str, Any] = {"sasl_mechanism": mechanism}
    if mechanism == "GSSAPI":
        extra.warn_no_ticket()
        service = extra.text("sasl.kerberos.service.name")
        return {**login, **({"sasl_kerberos_service_name": service} if service else {})}
    if mechanism == "OAUTHBEARER":
        return login
    for name, argument in (("sasl.username", "sasl_plain_username"), ("sasl.password", "sasl_plain_password")):
        value = extra.text(name)
        if value is None:
            raise extra.wrong(f"sasl.mechanism {mechanism} needs {name}")
        login[argument] = value
    return login


def _tokens(extra: Extra, servers: tuple[str, ...]) -> TokenSettings:
    method = extra.choice("sasl.oauthbearer.method", ("default", "oidc")) or "default"
    given = extra.text("sasl.oauthbearer.metadata.authentication.type")
    if given not in (None, "none"):
        raise extra.wrong(f"sasl.oauthbearer.metadata.authentication.type {given!r} is not done here; use oauth_cb")
    if method == "oidc":
        return _oidc(extra)
    callback = extra.values.get("oauth_cb")
    if callback is not None:
        if not isinstance(callback, str):
            raise extra.wrong("oauth_cb must be the dotted path of a callable")
        return TokenSettings(callback=callback, config=extra.text("sasl.oauthbearer.config") or "")
    for server in servers:
        match = _MSK.search(server.rpartition(":")[0])
        if match is not None:
            return TokenSettings(msk_region=match["region"].lower())
    raise extra.wrong(
        "sasl.mechanism OAUTHBEARER needs a source of tokens: the dotted path of a callable in oauth_cb, "
        "or sasl.oauthbearer.method oidc with its endpoint and client"
    )


def _oidc(extra: Extra) -> TokenSettings:
    grant = extra.text("sasl.oauthbearer.grant.type")
    if grant not in (None, "client_credentials"):
        raise extra.wrong(f"sasl.oauthbearer.grant.type {grant!r} is not done here, only client_credentials")
    prefix = "sasl.oauthbearer."
    names: dict[str, tuple[str, ...]] = {
        "endpoint": (f"{prefix}token.endpoint.url",),
        "client_id": (f"{prefix}client.id", f"{prefix}client.credentials.client.id"),
        "client_secret": (f"{prefix}client.secret", f"{prefix}client.credentials.client.secret"),
    }
    values = {}
    for what, keys in names.items():
        value = extra.text(*keys)
        if value is None:
            raise extra.wrong(f"sasl.oauthbearer.method oidc needs {keys[0]}")
        values[what] = value
    if not values["endpoint"].startswith(("https://", "http://")) or "@" in values["endpoint"]:
        raise extra.wrong(f"{prefix}token.endpoint.url must be an address that begins with https://, without a login")
    extra.pair("https.ca.location", "https.ca.pem")
    return TokenSettings(
        endpoint=values["endpoint"],
        client_id=values["client_id"],
        client_secret=values["client_secret"],
        scope=extra.text(f"{prefix}scope"),
        extensions=_extensions(extra, extra.text(f"{prefix}extensions") or ""),
        https_ca_location=extra.text("https.ca.location"),
        https_ca_pem=extra.text("https.ca.pem"),
    )


def _extensions(extra: Extra, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise extra.wrong("sasl.oauthbearer.extensions must be name=value, several with commas between")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _tls(extra: Extra) -> TlsSettings:
    for one, other in (
        ("ssl.certificate.location", "ssl.certificate.pem"),
        ("ssl.key.location", "ssl.key.pem"),
        ("ssl.keystore.location", "ssl.certificate.location"),
        ("ssl.keystore.location", "ssl.certificate.pem"),
    ):
        extra.pair(one, other)
    key = extra.text("ssl.key.location", "ssl.key.pem")
    if key is not None and extra.text("ssl.certificate.location", "ssl.certificate.pem") is None:
        raise extra.wrong("a client key needs its certificate too, in ssl.certificate.location or ssl.certificate.pem")
    verify = extra.flag("enable.ssl.certificate.verification")
    if verify is False:
        log.warning(
            "kafka connection %r: enable.ssl.certificate.verification is false, so anybody can pose as the broker",
            extra.connection.conn_id,
        )
    identify = extra.choice("ssl.endpoint.identification.algorithm", ("none", "https")) or "https"
    if verify is not False and identify == "none":
        log.warning(
            "kafka connection %r: ssl.endpoint.identification.algorithm is none, so whoever has any certificate of a "
            "trusted authority can pose as the broker",
            extra.connection.conn_id,
        )
    read: Callable[[str], str | None] = extra.text
    location = read("ssl.ca.location")
    return TlsSettings(
        # "probe" asks librdkafka to look in the usual places, which is what Python does without being asked.
        ca_location=None if location == "probe" else location,
        ca_pem=read("ssl.ca.pem"),
        certificate_location=read("ssl.certificate.location"),
        certificate_pem=read("ssl.certificate.pem"),
        key_location=read("ssl.key.location"),
        key_pem=read("ssl.key.pem"),
        key_password=read("ssl.key.password"),
        keystore_location=read("ssl.keystore.location"),
        keystore_password=read("ssl.keystore.password"),
        ciphers=read("ssl.cipher.suites"),
        crl_location=read("ssl.crl.location"),
        verify=verify is not False,
        check_hostname=verify is not False and identify == "https",
    )
