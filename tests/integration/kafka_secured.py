"""A Kafka that only lets in whom it knows: TLS with client certificates, all of SASL but Kerberos, and ACLs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import confluent_kafka.admin

from servers.certificates import Authority, Certificate
from servers.kafka import KafkaCluster, KafkaListener

__all__ = ["PASSWORD", "SecuredKafka", "token_endpoint", "unsigned_token"]

PASSWORD = "p4ss,w=rd"
_api: Any = confluent_kafka.admin
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"


class SecuredKafka:
    """One broker; ``reader`` may read every topic, ``stranger`` may only log in.

    :param folder: takes the certificates.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        server = self.authority.server("127.0.0.1", "localhost")
        client_needed = {"ssl.client.auth": "required", **_trusted(self.authority.certificate)}
        users = f'user_reader="{PASSWORD}" user_stranger="{PASSWORD}"'
        logins = {
            "plain.sasl.jaas.config": f"{_PLAIN} {users};",
            "scram-sha-256.sasl.jaas.config": _SCRAM,
            "scram-sha-512.sasl.jaas.config": _SCRAM,
            "oauthbearer.sasl.jaas.config": f'{_OAUTH} unsecuredLoginStringClaim_sub="broker";',
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        }
        self.tls = KafkaListener("TLS", "SSL", settings={**_identity(server), **client_needed})
        elsewhere = self.authority.server("elsewhere.example")
        self.elsewhere = KafkaListener("ELSEWHERE", "SSL", settings=_identity(elsewhere))
        self.sasl = KafkaListener("LOGIN", "SASL_PLAINTEXT", settings=logins)
        self.sasl_tls = KafkaListener("LOGIN_TLS", "SASL_SSL", settings={**logins, **_identity(server)})
        self.plain_sasl_only = KafkaListener(
            "ONE", "SASL_PLAINTEXT", settings={**logins, "sasl.enabled.mechanisms": "PLAIN"}
        )
        self.cluster = KafkaCluster(
            listeners=[[self.tls, self.elsewhere, self.sasl, self.sasl_tls, self.plain_sasl_only]],
            settings={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:CN=client",
            },
        )

    def start(self) -> SecuredKafka:
        self.cluster.start()
        admin = _api.AdminClient({"bootstrap.servers": self.cluster.bootstrap})
        for mechanism in (_api.ScramMechanism.SCRAM_SHA_256, _api.ScramMechanism.SCRAM_SHA_512):
            credential = _api.ScramCredentialInfo(mechanism, 4096)
            user = _api.UserScramCredentialUpsertion("reader", credential, PASSWORD.encode())
            _wait(admin.alter_user_scram_credentials([user]))
        every_topic = (_api.ResourceType.TOPIC, "*", _api.ResourcePatternType.LITERAL, "User:reader", "*")
        for operation in (_api.AclOperation.READ, _api.AclOperation.DESCRIBE):
            _wait(admin.create_acls([_api.AclBinding(*every_topic, operation, _api.AclPermissionType.ALLOW)]))
        return self

    def close(self) -> None:
        self.cluster.close()


def _wait(answers: dict[Any, Any]) -> None:
    for future in answers.values():
        future.result(20)


def _identity(certificate: Certificate) -> dict[str, str]:
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate.certificate.read_text(),
        "ssl.keystore.key": certificate.key.read_text(),
    }


def _trusted(authority: Path) -> dict[str, str]:
    return {"ssl.truststore.type": "PEM", "ssl.truststore.certificates": authority.read_text()}


def unsigned_token(config: str, *, seconds: float = 3600) -> tuple[str, float]:
    """As an ``oauth_cb``: a token that nobody signed, for the user that ``config`` names."""
    now = time.time()
    claims = {"sub": config, "iat": now, "exp": now + seconds}
    parts = (json.dumps({"alg": "none"}), json.dumps(claims))
    encoded = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts]
    return f"{encoded[0]}.{encoded[1]}.", now + seconds


@contextmanager
def token_endpoint(secret: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OIDC token endpoint that knows the client ``me``; yields its URL and the forms it was sent."""
    forms: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            forms.append(form)
            login = base64.b64encode(f"me:{secret}".encode()).decode()
            if self.headers["Authorization"] == f"Basic {login}":
                status, answer = 200, {"access_token": unsigned_token("reader")[0], "expires_in": 3600}
            else:
                status, answer = 401, {"error": "invalid_client", "error_description": "who are you?"}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token", forms
        finally:
            server.shutdown()
            thread.join()
