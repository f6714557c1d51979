"""Getting into a secured cluster, and what is said when that does not work."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import Opening
from event_triggers.sources.kafka import KafkaTopic
from servers.certificates import Authority, Certificate
from servers.kafka import KafkaListener
from tests.integration.faults import corrected, live, take, until_told
from tests.integration.kafka_secured import PASSWORD, SecuredKafka, token_endpoint, unsigned_token
from tests.integration.kafka_support import create_topic, kafka_opening, producer, reading, shared_kafka

CALLBACK = f"{unsigned_token.__module__}.{unsigned_token.__name__}"


@pytest.fixture(scope="module")
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    shared_kafka(request.config)  # skips where there is no Kafka
    secured = SecuredKafka(tmp_path_factory.mktemp("certificates"))
    try:
        secured.start()
        yield secured
    finally:
        secured.close()


@pytest.fixture(scope="module")
def client(secured: SecuredKafka) -> Certificate:
    return secured.authority.client("client", password=PASSWORD)


def opening(listener: KafkaListener, **extra: Any) -> Opening:
    settings = {"security_protocol": listener.protocol, "socket_timeout_ms": 3000, **extra}
    return kafka_opening(f"127.0.0.1:{listener.port}", **settings)


def trust(secured: SecuredKafka, **extra: Any) -> dict[str, Any]:
    return {"ssl_ca_location": str(secured.authority.certificate), **extra}


def login(mechanism: str, user: str = "reader", password: str = PASSWORD) -> dict[str, Any]:
    return {"sasl_mechanism": mechanism, "sasl_username": user, "sasl_password": password}


async def check(secured: SecuredKafka, how: Opening) -> None:
    """A message comes through."""
    topic = f"topic-{time.monotonic_ns()}"
    await create_topic(secured.cluster.bootstrap, topic)
    async with producer(secured.cluster.bootstrap) as sender, reading(KafkaTopic(topic), how) as reader:
        await sender.send_and_wait(topic, b"let in")
        assert await reader.bodies(1) == [b"let in"]


async def refused(how: Opening, error: type[Exception] = StreamError) -> str:
    """What is said; without secrets, and before the client's own timeout of a minute."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        async with KafkaTopic("forbidden", conn_id="mine").open(how):
            pass
    assert time.monotonic() - began < 40
    text = str(caught.value)
    assert "'mine'" in text
    assert PASSWORD not in text
    return text


class TestLogin:
    async def test_password_that_is_corrected_later(
        self, secured: SecuredKafka, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The group that waits is told, and goes on by itself."""
        wrong, right = (opening(secured.sasl, **login("PLAIN", password=word)) for word in ("wrong", PASSWORD))
        hub = corrected(right.connection, await wrong.connection("kafka_default"))
        topic = f"topic-{time.monotonic_ns()}"
        await create_topic(secured.cluster.bootstrap, topic)
        async with hub.subscribe("group", [Interest("one", KafkaTopic(topic))]) as group:
            assert "check sasl.username, sasl.password" in await until_told(caplog, "the login was refused")
            await live(group)
            async with producer(secured.cluster.bootstrap) as sender:
                await sender.send_and_wait(topic, b"let in")
            assert [one.message.body for one in await take(group)] == [b"let in"]

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    async def test_password(self, secured: SecuredKafka, mechanism: str) -> None:
        await check(secured, opening(secured.sasl, **login(mechanism)))
        await check(secured, opening(secured.sasl_tls, **login(mechanism), **trust(secured)))

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    async def test_wrong_password(self, secured: SecuredKafka, mechanism: str) -> None:
        text = await refused(opening(secured.sasl, **login(mechanism, password="wr0ng")))
        assert f"{mechanism} as 'reader'" in text
        assert "the login was refused" in text
        assert "check sasl.username, sasl.password and sasl.mechanism" in text
        assert "wr0ng" not in text

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
    async def test_password_is_not_logged(
        self, secured: SecuredKafka, mechanism: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, logger=""):
            await check(secured, opening(secured.sasl, **login(mechanism)))
        assert "SaslHandShake" in caplog.text, "aiokafka no longer logs its requests"
        assert "SaslAuthenticate" not in caplog.text
        assert PASSWORD not in caplog.text

    async def test_other_mechanism(self, secured: SecuredKafka) -> None:
        text = await refused(opening(secured.plain_sasl_only, **login("SCRAM-SHA-256")))
        assert "SCRAM-SHA-256 is not among its logins" in text

    async def test_may_not_read(self, secured: SecuredKafka) -> None:
        await create_topic(secured.cluster.bootstrap, "forbidden")
        text = await refused(opening(secured.sasl, **login("PLAIN", user="stranger")))
        assert "topic 'forbidden' may not be read; grant the operations DESCRIBE and READ on it" in text

    async def test_no_login_where_one_is_needed(self, secured: SecuredKafka) -> None:
        text = await refused(opening(secured.sasl, security_protocol="PLAINTEXT"))
        assert "check security.protocol (PLAINTEXT)" in text


class TestTls:
    async def test_client_certificate_in_files(self, secured: SecuredKafka, client: Certificate) -> None:
        files = {
            "ssl_certificate_location": str(client.certificate),
            "ssl_key_location": str(client.key),
            "ssl_key_password": PASSWORD,
        }
        await check(secured, opening(secured.tls, **files, **trust(secured)))

    async def test_client_certificate_in_the_connection(self, secured: SecuredKafka, client: Certificate) -> None:
        texts = {
            "ssl_ca_pem": secured.authority.certificate.read_text(),
            "ssl_certificate_pem": client.certificate.read_text(),
            "ssl_key_pem": client.key.read_text(),
            "ssl_key_password": PASSWORD,
        }
        await check(secured, opening(secured.tls, **texts))

    async def test_client_certificate_in_a_keystore(
        self, secured: SecuredKafka, client: Certificate, tmp_path: Path
    ) -> None:
        store = tmp_path / "store.p12"
        key = serialization.load_pem_private_key(client.key.read_bytes(), PASSWORD.encode())
        certificate = x509.load_pem_x509_certificate(client.certificate.read_bytes())
        encryption = serialization.BestAvailableEncryption(b"store")
        store.write_bytes(
            pkcs12.serialize_key_and_certificates(b"me", key, certificate, None, encryption)  # type: ignore[arg-type]
        )
        files = {"ssl_keystore_location": str(store), "ssl_keystore_password": "store"}
        await check(secured, opening(secured.tls, **files, **trust(secured)))
        files["ssl_keystore_password"] = "wrong"
        text = await refused(opening(secured.tls, **files, **trust(secured)), ConfigurationError)
        assert "ssl.keystore.location cannot be used" in text

    async def test_no_client_certificate(self, secured: SecuredKafka) -> None:
        text = await refused(opening(secured.tls, **trust(secured)))
        assert "TLS failed" in text
        assert "the client certificate" in text

    async def test_wrong_key_password(self, secured: SecuredKafka, client: Certificate) -> None:
        files = {"ssl_certificate_location": str(client.certificate), "ssl_key_location": str(client.key)}
        for password in ({}, {"ssl_key_password": "wrong"}):
            text = await refused(opening(secured.tls, **files, **password, **trust(secured)), ConfigurationError)
            assert "ssl.key.password is missing or wrong" in text

    async def test_key_of_another_certificate(self, secured: SecuredKafka, client: Certificate) -> None:
        other = secured.authority.client("other")
        files = {"ssl_certificate_location": str(client.certificate), "ssl_key_location": str(other.key)}
        text = await refused(opening(secured.tls, **files, **trust(secured)), ConfigurationError)
        assert "the key does not belong to the certificate" in text

    async def test_missing_files(self, secured: SecuredKafka, tmp_path: Path) -> None:
        for key in ("ssl_ca_location", "ssl_certificate_location", "ssl_crl_location", "ssl_keystore_location"):
            how = opening(secured.tls, **{**trust(secured), key: str(tmp_path / "nothing.pem")})
            text = await refused(how, ConfigurationError)
            assert "cannot be used in the triggerer" in text
            assert "nothing.pem" in text

    async def test_unknown_authority(self, secured: SecuredKafka, tmp_path: Path) -> None:
        stranger = Authority(tmp_path).certificate
        text = await refused(opening(secured.sasl_tls, **login("PLAIN"), ssl_ca_location=str(stranger)))
        assert "its certificate is not trusted" in text
        assert "check ssl.ca.location" in text
        text = await refused(opening(secured.sasl_tls, **login("PLAIN")))
        assert "its certificate is not trusted" in text

    async def test_name_of_another_host(self, secured: SecuredKafka, caplog: pytest.LogCaptureFixture) -> None:
        text = await refused(opening(secured.elsewhere, **trust(secured)))
        assert "its certificate is not trusted" in text
        assert "the host's name" in text
        how = opening(secured.elsewhere, **trust(secured), ssl_endpoint_identification_algorithm="none")
        await check(secured, how)
        assert "whoever has any certificate of a trusted authority can pose as the broker" in caplog.text
        await check(secured, opening(secured.elsewhere, enable_ssl_certificate_verification=False))
        assert "anybody can pose as the broker" in caplog.text

    async def test_other_protocol(self, secured: SecuredKafka) -> None:
        text = await refused(opening(secured.tls, security_protocol="PLAINTEXT"))
        assert "check security.protocol (PLAINTEXT)" in text
        text = await refused(opening(secured.sasl, security_protocol="SSL", **trust(secured)))
        assert "check security.protocol (SSL)" in text


class TestTokens:
    def how(self, secured: SecuredKafka, **extra: Any) -> Opening:
        return opening(secured.sasl, sasl_mechanism="OAUTHBEARER", **extra)

    async def test_callable(self, secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST", f"other.one, {CALLBACK}")
        how = {"oauth_cb": CALLBACK, "sasl_oauthbearer_config": "reader"}
        await check(secured, with_underscores(self.how(secured, **how)))
        how["sasl_oauthbearer_config"] = "stranger"
        await create_topic(secured.cluster.bootstrap, "forbidden-too")
        with pytest.raises(StreamError, match="may not be read"):
            async with KafkaTopic("forbidden-too").open(with_underscores(self.how(secured, **how))):
                pass

    async def test_callable_that_is_not_allowed(self, secured: SecuredKafka) -> None:
        how = with_underscores(self.how(secured, oauth_cb=CALLBACK))
        text = await refused(how, ConfigurationError)
        assert "callback_allowlist in the section [apache_kafka]" in text

    @pytest.mark.parametrize(
        ("path", "error", "part"),
        [
            ("no.such.module", ConfigurationError, "cannot be imported in the triggerer"),
            ("tests.integration.kafka_secured.PASSWORD", ConfigurationError, "is not callable"),
            ("tests.integration.kafka_secured.token_endpoint", StreamError, "must return a tuple"),
            ("json.loads", StreamError, "gave no token: JSONDecodeError"),
        ],
    )
    async def test_callable_that_is_none(
        self, secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch, path: str, error: type[Exception], part: str
    ) -> None:
        monkeypatch.setenv("AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST", path)
        assert part in await refused(with_underscores(self.how(secured, oauth_cb=path)), error)

    async def test_endpoint(self, secured: SecuredKafka) -> None:
        with token_endpoint(PASSWORD) as (url, forms):
            how = {
                "sasl_oauthbearer_method": "oidc",
                "sasl_oauthbearer_token_endpoint_url": url,
                "sasl_oauthbearer_client_id": "me",
                "sasl_oauthbearer_client_secret": PASSWORD,
                "sasl_oauthbearer_scope": "kafka",
            }
            await check(secured, self.how(secured, **how))
            # Several connections, one token.
            assert forms == [{"grant_type": ["client_credentials"], "scope": ["kafka"]}]
            how["sasl_oauthbearer_client_secret"] = "wrong"
            text = await refused(self.how(secured, **how))
            assert "gave no token (HTTP 401, invalid_client, who are you?)" in text
        text = await refused(self.how(secured, **how))
        assert "could not be reached" in text


def with_underscores(how: Opening) -> Opening:
    """``kafka_opening`` makes dots of all underscores; ``oauth_cb`` has one of its own."""
    connection = how.connection

    async def mended(conn_id: str) -> Any:
        found = await connection(conn_id)
        found.extra["oauth_cb"] = found.extra.pop("oauth.cb")  # type: ignore[index, attr-defined]
        return found

    return Opening(connection=mended)
