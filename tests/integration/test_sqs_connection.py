"""How an aws connection becomes a client, through the Amazon provider's hook and without it. On moto."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from event_triggers.errors import ConfigurationError, ConnectionMissingError, MissingExtraError, StreamError
from event_triggers.sources.sqs import SqsQueue
from servers.sqs import MotoServer, SqsServer
from tests.integration.sqs_support import Gate, Queue, opening, pull, settle
from tests.support import missing

ROLE = "arn:aws:iam::123456789012:role/reader"


@pytest.fixture(scope="module")
def server() -> Iterator[SqsServer]:
    with MotoServer() as server:
        yield server


@pytest.fixture
async def gate(server: SqsServer) -> AsyncIterator[Gate]:
    async with Gate.before(server) as gate:
        yield gate


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without credentials, region or profiles of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(params=["provider", "alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Through the Amazon provider, or as if it were not installed."""
    if request.param == "alone":
        monkeypatch.setitem(sys.modules, "airflow.providers.amazon.aws.hooks.sqs", None)
    else:
        provided("airflow.providers.amazon.aws.hooks.sqs")
    return str(request.param)


def provided(module: str) -> Any:
    """A module of the Amazon provider."""
    try:
        return import_module(module)
    except ImportError:
        missing("the Amazon provider is not installed: pip install apache-airflow-providers-amazon")


async def read_one(source: SqsQueue, endpoint: str, **connection: Any) -> None:
    async with source.open(opening(endpoint, **connection)) as stream:
        await settle(stream, *await pull(stream))


@pytest.mark.usefixtures("way")
class TestCredentials:
    async def test_login_and_password(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("x")
        await read_one(queue.source(), gate.endpoint, login="AKIALOGIN", password="secret")
        assert set(gate.signers) == {("AKIALOGIN", "us-east-1")}

    async def test_keys_in_the_extra(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("x")
        extra = {"aws_access_key_id": "AKIAEXTRA", "aws_secret_access_key": "secret", "aws_session_token": "token"}
        await read_one(queue.source(), gate.endpoint, login=None, password=None, extra=extra)
        assert set(gate.signers) == {("AKIAEXTRA", "us-east-1")}

    async def test_profile(self, server: SqsServer, gate: Gate, tmp_path: Path) -> None:
        (tmp_path / "credentials").write_text("[other]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = s\n")
        queue = Queue(server)
        await queue.send("x")
        await read_one(queue.source(), gate.endpoint, login=None, password=None, extra={"profile_name": "other"})
        assert set(gate.signers) == {("AKIAPROFILE", "us-east-1")}

    @pytest.mark.parametrize("conn_id", ["aws_default", None])
    async def test_machine_speaks_for_a_missing_default(
        self, server: SqsServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, conn_id: str | None
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMACHINE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
        queue = Queue(server)
        await queue.send("x")
        await read_one(queue.source(conn_id=conn_id), gate.endpoint)
        assert set(gate.signers) == {("AKIAMACHINE", "us-east-1")}

    async def test_other_connections_must_be_defined(self, server: SqsServer) -> None:
        with pytest.raises(ConnectionMissingError, match="'elsewhere'"):
            await read_one(SqsQueue("q", conn_id="elsewhere"), server.endpoint_url)

    async def test_no_credentials(self, server: SqsServer) -> None:
        with pytest.raises(StreamError, match="no usable AWS credentials"):
            await read_one(Queue(server).source(), server.endpoint_url, login=None, password=None)

    async def test_role(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("x")
        # So short that the credentials are renewed with every request.
        extra = {
            "role_arn": ROLE,
            "assume_role_kwargs": {"DurationSeconds": 900},
            "service_config": {"sts": {"endpoint_url": server.endpoint_url}},
        }
        await read_one(queue.source(), gate.endpoint, extra=extra)
        keys = {key for key, _ in gate.signers}
        assert "access" not in keys
        assert len(keys) > 1, "the role's credentials are not renewed"

    async def test_role_that_may_not_be_assumed(self, server: SqsServer, gate: Gate) -> None:
        gate.refuse_role()
        extra = {"role_arn": ROLE, "service_config": {"sts": {"endpoint_url": gate.endpoint}}}
        with pytest.raises(StreamError, match="role cannot be assumed: not you"):
            await read_one(Queue(server).source(), gate.endpoint, extra=extra)


async def test_provider_renews_a_role_outside_of_the_event_loop(
    server: SqsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_aws = provided("airflow.providers.amazon.aws.hooks.base_aws")
    renew = base_aws.BaseSessionFactory._refresh_credentials
    threads = []

    def watched(factory: Any) -> Any:
        threads.append(threading.current_thread())
        return renew(factory)

    monkeypatch.setattr(base_aws.BaseSessionFactory, "_refresh_credentials", watched)
    queue = Queue(server)
    await queue.send("x")
    extra = {
        "role_arn": ROLE,
        "assume_role_kwargs": {"DurationSeconds": 900},
        "service_config": {"sts": {"endpoint_url": server.endpoint_url}},
    }
    await read_one(queue.source(), server.endpoint_url, extra=extra)
    assert len(threads) > 1
    assert threading.main_thread() not in threads


async def test_federated_roles_need_the_provider(server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.amazon.aws.hooks.sqs", None)
    extra = {"role_arn": ROLE, "assume_role_method": "assume_role_with_saml"}
    with pytest.raises(ConfigurationError, match="needs the Amazon provider"):
        await read_one(SqsQueue("q", conn_id="somewhere"), server.endpoint_url, extra=extra)


async def test_missing_sdk_names_the_extra(server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiobotocore.session", None)
    with pytest.raises(MissingExtraError, match=r"airflow-event-triggers\[sqs\]"):
        await read_one(SqsQueue("q", conn_id="somewhere"), server.endpoint_url)


@pytest.mark.usefixtures("way")
class TestOptions:
    @pytest.mark.parametrize(
        ("queue", "region", "expected"),
        [
            ("q", None, "us-east-1"),
            ("q", "eu-north-1", "eu-north-1"),
            ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", None, "eu-west-1"),
            ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", "eu-north-1", "eu-north-1"),
        ],
    )
    async def test_region(self, gate: Gate, queue: str, region: str | None, expected: str) -> None:
        source = SqsQueue(queue, conn_id="somewhere", region=region)
        with pytest.raises(StreamError, match="does not exist"):
            await read_one(source, gate.endpoint)
        assert {region for _, region in gate.signers} == {expected}

    async def test_no_region(self, server: SqsServer) -> None:
        with pytest.raises(ConfigurationError, match="no AWS region is known"):
            await read_one(Queue(server).source(), server.endpoint_url, extra={"region_name": None})

    @pytest.mark.parametrize(
        "extra",
        [
            {"profile_name": "nobody"},
            {"config_kwargs": {"no_such_option": 1}},
            {"endpoint_url": "nonsense"},
            {"role_arn": ROLE, "assume_role_method": "assume_role_by_magic"},
        ],
        ids=["profile", "option", "endpoint", "method"],
    )
    async def test_wrong_options_end_the_wait(self, server: SqsServer, extra: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            await read_one(Queue(server).source(), server.endpoint_url, extra=extra)

    async def test_options_for_the_sdk_count(self, server: SqsServer, gate: Gate) -> None:
        gate.refuse("ReceiveMessage", "InternalFailure", times=3, status=500)
        with pytest.raises(StreamError, match="InternalFailure"):
            await read_one(
                Queue(server).source(),
                gate.endpoint,
                extra={"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}},
            )
        assert len(gate.asked("ReceiveMessage")) == 1

    async def test_endpoint_of_the_service(self, server: SqsServer, gate: Gate) -> None:
        queue = Queue(server)
        await queue.send("x")
        extra = {"service_config": {"sqs": {"endpoint_url": gate.endpoint}}}
        await read_one(queue.source(), "http://127.0.0.1:9", extra=extra)
        assert gate.asked("ReceiveMessage")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    with MotoServer(certificate=certificate(tmp_path_factory.mktemp("tls"))) as server:
        yield server


@pytest.mark.usefixtures("way")
class TestTls:
    @pytest.mark.parametrize("trust", ["file", "nothing checked"])
    async def test_trusted(self, tls_server: SqsServer, trust: str, caplog: pytest.LogCaptureFixture) -> None:
        queue = Queue(tls_server)
        await queue.send("x")
        verify = str(tls_server.authority) if trust == "file" else False
        await read_one(queue.source(), tls_server.endpoint_url, extra={"verify": verify})
        await queue.kept(0)
        said = "aws connection 'somewhere': verify is false, so anybody on the way can pose as SQS" in caplog.text
        assert said == (trust == "nothing checked")

    async def test_not_trusted(self, tls_server: SqsServer) -> None:
        with pytest.raises(StreamError, match=r"(?i)ssl"):
            await read_one(Queue(tls_server).source(), tls_server.endpoint_url)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
