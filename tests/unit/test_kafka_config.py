"""A kafka connection's extra, read into settings: every known key, and what is said of mistakes."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import pytest

from event_triggers.errors import ConfigurationError
from event_triggers.sources._kafka_config import KafkaSettings, read_settings
from event_triggers.sources._kafka_keys import IGNORED, READ, REFUSED
from event_triggers.sources.base import BrokerConnection

SECRET = "s3cr3t-do-not-tell"


def read(**extra: Any) -> KafkaSettings:
    """Settings of an extra written with ``__`` for its dots, besides ``bootstrap.servers``."""
    values = {"bootstrap.servers": "one:9092", **{name.replace("__", "."): value for name, value in extra.items()}}
    return read_settings(BrokerConnection("my_kafka", "kafka", extra=values))


def refusal(**extra: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(**extra)
    text = str(caught.value)
    assert "'my_kafka'" in text
    assert SECRET not in text
    return text


def test_the_least() -> None:
    settings = read()
    assert settings.servers == ("one:9092",)
    assert settings.protocol == "PLAINTEXT"
    assert (settings.mechanism, settings.tls, settings.tokens, settings.isolation) == (None, None, None, None)
    assert settings.arguments["bootstrap_servers"] == ["one:9092"]
    assert settings.arguments["security_protocol"] == "PLAINTEXT"


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("a", ("a:9092",)),
        ("a:1, b:2 ,", ("a:1", "b:2")),
        (["a:1", "b:2"], ("a:1", "b:2")),
        ("SASL_SSL://a.example.com:9093", ("a.example.com:9093",)),
        ("[::1]:9094,[fe80::1%eth0]", ("[::1]:9094", "[fe80::1%eth0]:9092")),
    ],
)
def test_servers(given: Any, servers: tuple[str, ...]) -> None:
    assert read(bootstrap__servers=given).servers == servers


@pytest.mark.parametrize("given", ["a:b", "a:0", "a:99999", "a b:1", "user@a:1", "a:1:2"])
def test_wrong_servers(given: str) -> None:
    assert "host:port" in refusal(bootstrap__servers=given)


def test_no_servers() -> None:
    text = refusal(bootstrap__servers=None)
    assert "bootstrap.servers" in text
    assert "host and port" not in text
    with pytest.raises(ConfigurationError, match="its host and port are not looked at"):
        read_settings(BrokerConnection("my_kafka", "kafka", host="a", port=9092))


def test_translation() -> None:
    arguments = read(
        client__id="me",
        client__rack="r1",
        check__crcs="false",
        socket__timeout__ms="5000",
        retry__backoff__ms=7,
        fetch__wait__max__ms=100,
        fetch__min__bytes=1,
        fetch__max__bytes=10_000,
        fetch__message__max__bytes="2000",
        connections__max__idle__ms=0,
        topic__metadata__refresh__interval__ms=9_000,
        metadata__max__age__ms=60_000,
    ).arguments
    expected = {
        "client_id": "me",
        "client_rack": "r1",
        "check_crcs": False,
        "request_timeout_ms": 5000,
        "retry_backoff_ms": 7,
        "fetch_max_wait_ms": 100,
        "fetch_min_bytes": 1,
        "fetch_max_bytes": 10_000,
        "max_partition_fetch_bytes": 2000,
        "connections_max_idle_ms": None,
        "metadata_max_age_ms": 9_000,
    }
    assert expected.items() <= dict(arguments).items()


@pytest.mark.parametrize(
    ("extra", "wait"),
    [({}, 1000), ({"socket.timeout.ms": 1000}, 500), ({"socket.timeout.ms": 1000, "fetch.wait.max.ms": 900}, 900)],
)
def test_a_fetch_waits_less_than_an_answer_may_take(extra: dict[str, Any], wait: int) -> None:
    assert read(**extra).arguments["fetch_max_wait_ms"] == wait


def test_looking_for_partitions_cannot_be_switched_off() -> None:
    assert read(topic__metadata__refresh__interval__ms=-1).arguments["metadata_max_age_ms"] == 30_000


@pytest.mark.parametrize("value", ["read_uncommitted", "READ_COMMITTED"])
def test_isolation(value: str) -> None:
    assert read(isolation__level=value).isolation == value.lower()


@pytest.mark.parametrize("mechanism", ["PLAIN", "scram-sha-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_login(mechanism: str, name: str) -> None:
    settings = read(
        security__protocol="sasl_plaintext", sasl__username="me", sasl__password=SECRET, **{name: mechanism}
    )
    assert settings.mechanism == settings.arguments["sasl_mechanism"] == mechanism.upper()
    assert settings.arguments["sasl_plain_username"] == "me"
    assert settings.arguments["sasl_plain_password"] == SECRET
    assert SECRET not in repr(settings)
    assert settings.about == f"Kafka at one:9092 (connection 'my_kafka', SASL_PLAINTEXT, {mechanism.upper()} as 'me')"


def test_login_needs_both() -> None:
    assert "sasl.password" in refusal(security__protocol="SASL_SSL", sasl__mechanism="PLAIN", sasl__username="me")
    assert "sasl.username" in refusal(security__protocol="SASL_SSL", sasl__mechanism="PLAIN", sasl__password=SECRET)
    text = refusal(security__protocol="SASL_SSL", sasl__username="me", sasl__password=SECRET)
    assert "sasl.mechanism is missing" in text


def test_kerberos(caplog: pytest.LogCaptureFixture) -> None:
    settings = read(
        security__protocol="SASL_PLAINTEXT", sasl__kerberos__service__name="broker", sasl__kerberos__keytab="/k"
    )
    assert settings.mechanism == "GSSAPI"
    assert settings.arguments["sasl_kerberos_service_name"] == "broker"
    assert "sasl.kerberos.keytab does nothing" in caplog.text


def test_tls() -> None:
    settings = read(
        security__protocol="ssl",
        ssl__ca__location="probe",
        ssl__certificate__pem="cert",
        ssl__key__pem=SECRET,
        ssl__key__password=SECRET,
        ssl__endpoint__identification__algorithm="none",
        ssl__cipher__suites="HIGH",
        ssl__crl__location="/crl",
    )
    tls = settings.tls
    assert tls is not None
    assert (tls.ca_location, tls.certificate_pem, tls.ciphers, tls.crl_location) == (None, "cert", "HIGH", "/crl")
    assert tls.verify
    assert not tls.check_hostname
    assert SECRET not in repr(settings)


def test_no_verification_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tls = read(security__protocol="SSL", enable__ssl__certificate__verification="false").tls
    assert tls is not None
    assert not tls.verify
    assert not tls.check_hostname
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'my_kafka': enable.ssl.certificate.verification is false" in caplog.text


def test_tls_pairs() -> None:
    ssl: dict[str, Any] = {"security__protocol": "SSL"}
    assert "exclude" in refusal(**ssl, ssl__key__pem=SECRET, ssl__key__location="/k")
    assert "exclude" in refusal(**ssl, ssl__keystore__location="/s", ssl__certificate__location="/c")
    assert "certificate too" in refusal(**ssl, ssl__key__pem=SECRET)


def test_security_keys_without_their_protocol_are_told(caplog: pytest.LogCaptureFixture) -> None:
    read(sasl__username="me", sasl__password=SECRET, ssl__ca__location="/ca")
    assert "sasl.password, sasl.username, ssl.ca.location are not used, because security.protocol is PLAINTEXT" in (
        caplog.text
    )
    assert SECRET not in caplog.text


class TestTokens:
    base: ClassVar[dict[str, Any]] = {"security__protocol": "SASL_SSL", "sasl__mechanism": "OAUTHBEARER"}

    def test_callable(self) -> None:
        tokens = read(**self.base, oauth_cb="my.callback", sasl__oauthbearer__config="c").tokens
        assert tokens is not None
        assert (tokens.callback, tokens.config) == ("my.callback", "c")

    def test_endpoint(self) -> None:
        settings = read(
            **self.base,
            sasl__oauthbearer__method="OIDC",
            sasl__oauthbearer__token__endpoint__url="https://idp/token",
            sasl__oauthbearer__client__id="me",
            sasl__oauthbearer__client__secret=SECRET,
            sasl__oauthbearer__scope="kafka",
            sasl__oauthbearer__extensions="logicalCluster=lkc-1, identityPoolId=pool-1",
        )
        tokens = settings.tokens
        assert tokens is not None
        assert (tokens.endpoint, tokens.client_id, tokens.client_secret) == ("https://idp/token", "me", SECRET)
        assert tokens.extensions == {"logicalCluster": "lkc-1", "identityPoolId": "pool-1"}
        assert SECRET not in repr(settings)

    @pytest.mark.parametrize(
        "host",
        ["b-1.x.abc.c2.kafka.eu-west-1.amazonaws.com", "boot-x.c3.kafka-serverless.eu-west-1.amazonaws.com"],
    )
    def test_amazon_msk(self, host: str) -> None:
        tokens = read(**self.base, bootstrap__servers=f"{host}:9098").tokens
        assert tokens is not None
        assert tokens.msk_region == "eu-west-1"

    def test_no_source(self) -> None:
        assert "needs a source of tokens" in refusal(**self.base)
        assert "needs sasl.oauthbearer.token.endpoint.url" in refusal(**self.base, sasl__oauthbearer__method="oidc")
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        text = refusal(**self.base, sasl__oauthbearer__method="oidc", sasl__oauthbearer__grant__type=grant)
        assert "only client_credentials" in text
        assert "azure_imds" in refusal(
            **self.base, sasl__oauthbearer__metadata__authentication__type="azure_imds", oauth_cb="x.y"
        )


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"security.protocol": "tls"}, "must be one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL, not 'tls'"),
        ({"fetch.min.bytes": "many"}, "fetch.min.bytes must be a whole number"),
        ({"fetch.min.bytes": True}, "fetch.min.bytes must be a whole number"),
        ({"fetch.min.bytes": 1.5}, "fetch.min.bytes must be a whole number"),
        ({"socket.timeout.ms": 10}, "socket.timeout.ms must be a whole number from 1000"),
        ({"socket.timeout.ms": 1000, "fetch.wait.max.ms": 1000}, "must be less than socket.timeout.ms"),
        ({"check.crcs": "perhaps"}, "check.crcs must be true or false"),
        ({"client.id": {"a": 1}}, "client.id must be a text, not dict"),
    ],
)
def test_wrong_values(extra: dict[str, Any], part: str) -> None:
    assert part in refusal(**extra)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bootstrap.server", "did you mean 'bootstrap.servers'?"),
        ("sasl_username", "did you mean 'sasl.username'?"),
        ("sasl.user.name", "did you mean 'sasl.username'?"),
        ("ssl.ca.file", "did you mean 'ssl.ca."),
        ("sasl.jaas.config", "sasl.username and sasl.password"),
        ("ssl.truststore.location", "ssl.ca.location"),
        ("fetch.max.wait.ms", "fetch.wait.max.ms"),
        ("zzz", "those of librdkafka"),
    ],
)
def test_unknown_keys(name: str, part: str) -> None:
    text = refusal(**{name: SECRET})
    assert f"unknown key {name!r}" in text
    assert part in text


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_keys(name: str) -> None:
    assert f"{name} cannot be used: " in refusal(**{name: SECRET})
    read(**{name: False})


def test_ignored_keys_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        settings = read(**dict.fromkeys(IGNORED, SECRET))
    assert settings.arguments == read().arguments
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "group.id is not used: there is no consumer group here" in caplog.text
    assert SECRET not in caplog.text


def test_the_tables_hold_keys_of_librdkafka() -> None:
    """And one of the Python client, which is not known to producers."""
    confluent_kafka = pytest.importorskip("confluent_kafka")
    unknown = set()
    for name in {*READ, *IGNORED, *REFUSED}:
        # The second key is no key, so that no producer is made of the first one.
        with pytest.raises((confluent_kafka.KafkaException, AttributeError, TypeError, ValueError)) as caught:
            confluent_kafka.Producer({name: "\x01", "no.such.key": "\x01"})
        if f'No such configuration property: "{name}"' in str(caught.value):
            unknown.add(name)
    assert unknown == {"on_commit"}
    assert {*READ, *IGNORED}.isdisjoint(REFUSED)
    assert READ.isdisjoint(IGNORED)
