"""The keys of librdkafka's configuration, sorted by what this package does with them.

An Airflow connection of type ``kafka`` is written for librdkafka, whose keys number about 200. Each is either *read*
(it says how to reach the cluster, or how to fetch), *ignored* (it concerns what is never done here, or tunes librdkafka
itself), or *refused* (ignoring it could connect otherwise than was asked for). What is none of these is a mistake.
"""

from __future__ import annotations

import difflib
from typing import Final

from event_triggers.errors import ConfigurationError
from event_triggers.sources.base import BrokerConnection
from event_triggers.text import plain_logger

__all__ = ["IGNORED", "READ", "REFUSED", "Extra"]

log = plain_logger(__name__)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


READ: Final = _names(
    """
    bootstrap.servers metadata.broker.list security.protocol client.id client.rack isolation.level check.crcs
    socket.timeout.ms connections.max.idle.ms retry.backoff.ms metadata.max.age.ms topic.metadata.refresh.interval.ms
    fetch.wait.max.ms fetch.min.bytes fetch.max.bytes fetch.message.max.bytes max.partition.fetch.bytes
    sasl.mechanism sasl.mechanisms sasl.username sasl.password sasl.kerberos.service.name
    oauth_cb sasl.oauthbearer.config sasl.oauthbearer.method sasl.oauthbearer.client.id sasl.oauthbearer.client.secret
    sasl.oauthbearer.client.credentials.client.id sasl.oauthbearer.client.credentials.client.secret
    sasl.oauthbearer.scope sasl.oauthbearer.extensions sasl.oauthbearer.token.endpoint.url sasl.oauthbearer.grant.type
    sasl.oauthbearer.metadata.authentication.type https.ca.location https.ca.pem
    ssl.ca.location ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.key.location ssl.key.pem
    ssl.key.password ssl.keystore.location ssl.keystore.password ssl.cipher.suites ssl.crl.location
    ssl.endpoint.identification.algorithm enable.ssl.certificate.verification
    """
)
"""Keys that are translated, or at least looked at."""

_GROUPS_AND_COMMITS: Final = _names(
    """
    group.id group.instance.id group.protocol group.protocol.type group.remote.assignor partition.assignment.strategy
    session.timeout.ms heartbeat.interval.ms coordinator.query.interval.ms max.poll.interval.ms max.poll.records
    enable.auto.commit auto.commit.enable auto.commit.interval.ms enable.auto.offset.store auto.offset.reset
    offset.store.method offset.store.path offset.store.sync.interval.ms enable.partition.eof
    consume.callback.max.messages share.acknowledgement.mode allow.auto.create.topics
    consume_cb rebalance_cb offset_commit_cb on_commit
    """
)

_PRODUCERS: Final = _names(
    """
    transactional.id transaction.timeout.ms enable.idempotence enable.gapless.guarantee linger.ms retries
    queue.buffering.max.messages queue.buffering.max.kbytes queue.buffering.max.ms
    queue.buffering.backpressure.threshold message.send.max.retries compression.codec compression.type
    compression.level batch.num.messages batch.size delivery.report.only.error dr_cb dr_msg_cb on_delivery
    sticky.partitioning.linger.ms request.required.acks acks request.timeout.ms message.timeout.ms
    delivery.timeout.ms queuing.strategy produce.offset.report partitioner partitioner_cb msg_order_cmp
    message.max.bytes message.copy.max.bytes
    """
)

_TUNING: Final = _names(
    """
    builtin.features client.software.name receive.message.max.bytes max.in.flight max.in.flight.requests.per.connection
    metadata.recovery.strategy metadata.recovery.rebootstrap.trigger.ms metadata.request.timeout.ms
    topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.fast.cnt topic.metadata.refresh.sparse
    topic.metadata.propagation.max.ms debug socket.blocking.max.ms socket.send.buffer.bytes
    socket.receive.buffer.bytes socket.keepalive.enable socket.nagle.disable socket.max.fails broker.address.ttl
    broker.address.family socket.connection.setup.timeout.ms enable.sparse.connections reconnect.backoff.jitter.ms
    reconnect.backoff.ms reconnect.backoff.max.ms retry.backoff.max.ms statistics.interval.ms enabled_events log_level
    log.queue log.thread.name log.connection.close enable.random.seed internal.termination.signal api.version.request
    api.version.request.timeout.ms api.version.fallback.ms broker.version.fallback queued.min.messages
    queued.max.messages.kbytes fetch.queue.backoff.ms fetch.error.backoff.ms client.dns.lookup enable.metrics.push
    enable_sasl_queue ssl.engine.id sasl.kerberos.min.time.before.relogin sasl.oauthbearer.sub.claim.name
    error_cb throttle_cb stats_cb log_cb logger default.topic.config
    """
)

_TICKETS: Final = _names("sasl.kerberos.principal sasl.kerberos.keytab sasl.kerberos.kinit.cmd")

IGNORED: Final[dict[str, str]] = {
    **dict.fromkeys(_GROUPS_AND_COMMITS, "there is no consumer group here and nothing is committed"),
    **dict.fromkeys(_PRODUCERS, "nothing is produced here"),
    **dict.fromkeys(_TUNING, "it tunes librdkafka, which is not used here"),
    **dict.fromkeys(_TICKETS, "no Kerberos ticket is fetched here"),
    **dict.fromkeys(("plugin.library.paths", "interceptors"), "librdkafka's plugins are not loaded here"),
}
"""Keys that are accepted and do nothing, with the reason."""

_NOT_IN_PYTHON: Final = "Python's ssl module has no such setting"
_ONLY_IN_C: Final = "it can only be set by a program in C"

REFUSED: Final[dict[str, str]] = {
    "ssl.curves.list": _NOT_IN_PYTHON,
    "ssl.sigalgs.list": _NOT_IN_PYTHON,
    "ssl.providers": _NOT_IN_PYTHON,
    "ssl.engine.location": _NOT_IN_PYTHON,
    "ssl.ca.certificate.stores": "it exists on Windows only; use ssl.ca.location",
    "ssl.certificate.verify_cb": "certificates are verified by Python's ssl module alone",
    "topic.blacklist": "name the topics to read in the KafkaTopic",
    "enable.sasl.oauthbearer.unsecure.jwt": "unsigned tokens are not made here; name a callable in oauth_cb",
    "oauthbearer_token_refresh_cb": "use oauth_cb",
    **dict.fromkeys(
        _names(
            """
            sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.private.key.file
            sasl.oauthbearer.assertion.private.key.passphrase sasl.oauthbearer.assertion.private.key.pem
            sasl.oauthbearer.assertion.file sasl.oauthbearer.assertion.claim.aud
            sasl.oauthbearer.assertion.claim.exp.seconds sasl.oauthbearer.assertion.claim.iss
            sasl.oauthbearer.assertion.claim.jti.include sasl.oauthbearer.assertion.claim.nbf.seconds
            sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.jwt.template.file
            """
        ),
        "of OIDC's grants only client_credentials is done here; name a callable in oauth_cb for others",
    ),
    **dict.fromkeys(
        _names(
            """
            ssl_key ssl_certificate ssl_ca ssl_engine_callback_data socket_cb connect_cb closesocket_cb open_cb
            resolve_cb background_event_cb opaque default_topic_conf
            """
        ),
        _ONLY_IN_C,
    ),
}
"""Keys that cannot be honoured and must not be passed over, with the reason or what to do instead."""

_HINTS: Final[dict[str, str]] = {
    "sasl.jaas.config": "librdkafka has sasl.username and sasl.password instead",
    "ssl.truststore.location": "librdkafka has ssl.ca.location instead, a PEM file",
    "ssl.truststore.password": "librdkafka has ssl.ca.location instead, a PEM file without a password",
    "ssl.truststore.type": "librdkafka has ssl.ca.location instead, a PEM file",
    "ssl.keystore.type": "librdkafka reads ssl.keystore.location as PKCS#12 only",
    "fetch.max.wait.ms": "librdkafka calls it fetch.wait.max.ms",
    "sasl.login.callback.handler.class": "it is of the Java client; use oauth_cb",
    "sasl.client.callback.handler.class": "it is of the Java client; use oauth_cb",
}
"""What to say of keys that other clients know."""


class Extra:
    """The connection's extra, asked key by key. ``None``, an empty text and a missing key are the same."""

    def __init__(self, connection: BrokerConnection) -> None:
        self.connection = connection
        self.values = {name: value for name, value in connection.extra.items() if value is not None and value != ""}

    def wrong(self, text: str) -> ConfigurationError:
        """The error that says this of the connection."""
        return ConfigurationError(f"Kafka connection {self.connection.conn_id!r}: {text}")

    def check_names(self) -> None:
        """Every key must be known, and none refused."""
        for name in self.values:
            if name in READ:
                continue
            if name in IGNORED:
                log.debug("kafka connection %r: %s is not used: %s", self.connection.conn_id, name, IGNORED[name])
            elif name in REFUSED:
                if self.values[name] in (False, "false"):
                    continue
                raise self.wrong(f"{name} cannot be used: {REFUSED[name]}")
            else:
                raise self.wrong(f"its extra has the unknown key {name!r}; {_advice(name)}")

    def warn_unused(self, protocol: str) -> None:
        """Tell of keys that the chosen protocol has no use for: most often the protocol is what is wrong."""
        unused = [
            name
            for name in READ & self.values.keys()
            if (name.startswith("sasl.") and not protocol.startswith("SASL"))
            or (name.startswith("ssl.") and not protocol.endswith("SSL"))
        ]
        if unused:
            log.warning(
                "kafka connection %r: %s not used, because security.protocol is %s",
                self.connection.conn_id,
                f"{', '.join(sorted(unused))} {'is' if len(unused) == 1 else 'are'}",
                protocol,
            )

    def warn_no_ticket(self) -> None:
        """Tell that tickets are not fetched here, when the connection looks as if it expected that."""
        if _TICKETS & self.values.keys():
            log.warning(
                "kafka connection %r: no Kerberos ticket is fetched here (%s does nothing); "
                "keep a ticket in the triggerer's credential cache (kinit, k5start)",
                self.connection.conn_id,
                ", ".join(sorted(_TICKETS & self.values.keys())),
            )

    def text(self, *names: str) -> str | None:
        """The first of these keys that is there."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise self.wrong(f"{name} must be a text, not {type(value).__name__}")
            return str(value)
        return None

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """One of these, as it is spelled here, whatever its case in the connection."""
        value = self.text(name)
        if value is None:
            return None
        for choice in choices:
            if value.strip().lower() == choice.lower():
                return choice
        raise self.wrong(f"{name} must be one of {', '.join(choices)}, not {value!r}")

    def integer(self, name: str, least: int, most: int = 2**31 - 1) -> int | None:
        """A whole number; digits in a text are one too."""
        value = self.values.get(name)
        if value is None:
            return None
        try:
            number = int(value) if not isinstance(value, bool | float) or value == int(value) else None
        except (TypeError, ValueError):
            number = None
        if number is None or isinstance(value, bool) or not least <= number <= most:
            raise self.wrong(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        return number

    def flag(self, name: str) -> bool | None:
        """True or false, in any of librdkafka's spellings."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in ("true", "t", "1"):
            return True
        if text in ("false", "f", "0"):
            return False
        raise self.wrong(f"{name} must be true or false, not {value!r}")

    def pair(self, one: str, other: str) -> None:
        """These two keys exclude each other."""
        if one in self.values and other in self.values:
            raise self.wrong(f"{one} and {other} exclude each other")


def _advice(name: str) -> str:
    if name in _HINTS:
        return _HINTS[name]
    known = sorted({*READ, *IGNORED, *REFUSED})
    plain = name.strip().lower().replace("_", ".").replace("-", ".")
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "the keys are those of librdkafka, for example bootstrap.servers"
