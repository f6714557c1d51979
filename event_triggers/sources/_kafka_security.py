"""How a Kafka client proves who it is and checks the broker: TLS contexts and OAUTHBEARER tokens.

Files and callables can block, so :func:`tls_context` belongs into a thread, and :class:`Tokens` uses threads itself. A
token is kept until shortly before it expires; nothing else is kept.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio

from event_triggers.clock import Clock
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources._kafka_config import KafkaSettings, TlsSettings, TokenSettings
from event_triggers.text import text_of

__all__ = ["Tokens", "tls_context"]

_RENEW_BEFORE = 30.0
"""Seconds before its end from which a token is not used for a new connection."""


# ---------------------------------------------------------------------- TLS


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The TLS context of a connection, ``None`` for one without encryption. Reads files.

    :raises ConfigurationError: naming the key whose file or text cannot be used.
    """
    tls = settings.tls
    if tls is None:
        return None
    trust: ssl.SSLContext = _attempt(settings, "ssl.ca.location or ssl.ca.pem", lambda: _trust(tls))
    if tls.crl_location is not None:
        location = tls.crl_location
        _attempt(settings, "ssl.crl.location", lambda: trust.load_verify_locations(cafile=_existing(location)))
        trust.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if tls.ciphers is not None:
        ciphers = tls.ciphers
        _attempt(settings, "ssl.cipher.suites", lambda: trust.set_ciphers(ciphers))
    if tls.keystore_location is not None:
        _attempt(settings, "ssl.keystore.location", lambda: _load_keystore(trust, tls))
    elif tls.certificate_location is not None or tls.certificate_pem is not None:
        _attempt(settings, "ssl.certificate.* and ssl.key.*", lambda: _load_certificate(trust, tls))
    trust.check_hostname = tls.check_hostname
    if not tls.verify:
        trust.verify_mode = ssl.CERT_NONE
    return trust


def _attempt(settings: KafkaSettings, keys: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        named = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise ConfigurationError(
            f"Kafka connection {settings.conn_id!r}: {keys} cannot be used in the triggerer{named}: {reason}"
        ) from error


def _trust(tls: TlsSettings) -> ssl.SSLContext:
    if tls.ca_location is None and tls.ca_pem is None:
        return ssl.create_default_context()
    cafile = capath = None
    if tls.ca_location is not None:
        _existing(tls.ca_location)
        capath = tls.ca_location if Path(tls.ca_location).is_dir() else None
        cafile = tls.ca_location if capath is None else None
    return ssl.create_default_context(cafile=cafile, capath=capath, cadata=tls.ca_pem)


def _load_certificate(context: ssl.SSLContext, tls: TlsSettings) -> None:
    password = tls.key_password or ""  # never let OpenSSL ask the terminal
    # Python takes certificate and key from files only.
    with tempfile.TemporaryDirectory(prefix="event-triggers-") as scratch:
        certificate = tls.certificate_location or _written(scratch, "certificate.pem", tls.certificate_pem)
        key = tls.key_location or (_written(scratch, "key.pem", tls.key_pem) if tls.key_pem else None)
        for path in (certificate, key):
            if path is not None:
                _existing(path)
        try:
            context.load_cert_chain(certificate, key, password)
        except ssl.SSLError as error:
            raise ValueError(_why_not(error)) from error


def _existing(path: str) -> str:
    """OpenSSL does not say which file it misses."""
    if not Path(path).exists():
        raise FileNotFoundError(2, "there is no such file", path)
    return path


def _why_not(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return f"not PEM, or ssl.key.password is missing or wrong ({error.reason or error})"


def _written(folder: str, name: str, text: str | None) -> str:
    path = Path(folder) / name
    path.touch(mode=0o600)
    path.write_text(text or "")
    return str(path)


def _load_keystore(context: ssl.SSLContext, tls: TlsSettings) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

    data = Path(str(tls.keystore_location)).read_bytes()
    password = tls.keystore_password.encode() if tls.keystore_password is not None else None
    key, certificate, chain = pkcs12.load_key_and_certificates(data, password)
    if key is None or certificate is None:
        raise ValueError("the keystore does not hold a key with its certificate")
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *chain)).decode()
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    _load_certificate(context, TlsSettings(certificate_pem=pem, key_pem=key_pem))


# ---------------------------------------------------------------------- tokens


class Tokens:
    """The OAUTHBEARER tokens of one connection."""

    def __init__(self, settings: KafkaSettings, tokens: TokenSettings, clock: Clock) -> None:
        self._conn_id = settings.conn_id
        self._settings = tokens
        self._clock = clock
        self._lock = anyio.Lock()
        self._token = ""
        self._expires = 0.0
        self._extensions: dict[str, str] = dict(tokens.extensions)

    @property
    def extensions(self) -> Mapping[str, str]:
        """What is told to the broker along with the token."""
        return self._extensions

    async def current(self) -> str:
        """A token that has not expired; a new one when there is none.

        :raises ConfigurationError: when the callable cannot be had, or may not be called.
        :raises StreamError: when no token could be fetched.
        """
        async with self._lock:
            if self._now() > self._expires - _RENEW_BEFORE:
                self._token, self._expires = await self._fetch()
            return self._token

    def _now(self) -> float:
        return self._clock.now().timestamp()

    async def _fetch(self) -> tuple[str, float]:
        if self._settings.endpoint is not None:
            return await self._from_endpoint(self._settings.endpoint)
        # Imported and called in a thread: both may block.
        try:
            return await anyio.to_thread.run_sync(self._from_callable)
        except (ConfigurationError, StreamError):
            raise
        except Exception as error:
            # Not along with the error itself: it may hold what the callable was given, which is often a secret.
            text = text_of(error)
            if self._settings.config:
                text = text.replace(self._settings.config, "***")
            raise StreamError(f"{self._what} gave no token: {type(error).__name__}: {text}") from None

    @property
    def _what(self) -> str:
        source = self._settings.callback or "the signer of Amazon MSK"
        return f"Kafka connection {self._conn_id!r}: {source}"

    def _from_callable(self) -> tuple[str, float]:
        if self._settings.msk_region is not None:
            return self._from_msk(self._settings.msk_region)
        answer = self._callback()(self._settings.config)
        if not isinstance(answer, tuple) or not 2 <= len(answer) <= 4 or not isinstance(answer[0], str):
            raise StreamError(f"{self._what} must return a tuple of the token and the second in which it expires")
        if len(answer) == 4:
            self._extensions = {str(name): str(value) for name, value in dict(answer[3]).items()}
        return answer[0], float(answer[1])

    def _from_msk(self, region: str) -> tuple[str, float]:
        try:
            signer = import_module("aws_msk_iam_sasl_signer").MSKAuthTokenProvider
        except ImportError as error:
            raise ConfigurationError(
                f"Kafka connection {self._conn_id!r}: logging in to Amazon MSK with IAM needs the Python package "
                f"aws-msk-iam-sasl-signer-python; install it with: "
                f"pip install 'apache-airflow-providers-apache-kafka[msk]'"
            ) from error
        token, expires_ms = signer.generate_auth_token(region)
        return str(token), float(expires_ms) / 1000

    def _callback(self) -> Callable[[str], Any]:
        path = str(self._settings.callback)
        if path not in _allowed_callbacks():
            # Whoever may edit connections must not thereby choose what runs in the triggerer.
            raise ConfigurationError(
                f"Kafka connection {self._conn_id!r}: oauth_cb {path!r} may not be called; to allow it, add it to "
                f"callback_allowlist in the section [apache_kafka] of Airflow's configuration"
            )
        module, _, name = path.rpartition(".")
        try:
            callback = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"Kafka connection {self._conn_id!r}: oauth_cb {path!r} cannot be imported in the triggerer: {error}"
            ) from error
        if not callable(callback):
            raise ConfigurationError(f"Kafka connection {self._conn_id!r}: oauth_cb {path!r} is not callable")
        found: Callable[[str], Any] = callback
        return found

    async def _from_endpoint(self, endpoint: str) -> tuple[str, float]:
        import httpx

        where = f"Kafka connection {self._conn_id!r}: the token endpoint {endpoint}"
        form = {"grant_type": "client_credentials"}
        if self._settings.scope is not None:
            form["scope"] = self._settings.scope
        login = (str(self._settings.client_id), str(self._settings.client_secret))
        try:
            async with httpx.AsyncClient(verify=await anyio.to_thread.run_sync(self._https), timeout=20) as client:
                response = await client.post(endpoint, data=form, auth=login)
        except httpx.HTTPError as error:
            raise StreamError(f"{where} could not be reached: {type(error).__name__}: {error}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        answer = answer if isinstance(answer, dict) else {}
        token = answer.get("access_token")
        if response.is_error or not isinstance(token, str):
            told = [str(answer[name]) for name in ("error", "error_description") if name in answer]
            status = f"HTTP {response.status_code}"
            raise StreamError(f"{where} gave no token ({', '.join([status, *told])}); check client, secret and scope")
        return token, self._now() + float(answer.get("expires_in") or 0)

    def _https(self) -> ssl.SSLContext:
        location, pem = self._settings.https_ca_location, self._settings.https_ca_pem
        try:
            return _trust(TlsSettings(ca_location=location, ca_pem=pem))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"Kafka connection {self._conn_id!r}: https.ca.location or https.ca.pem cannot be used: {error}"
            ) from error


def _allowed_callbacks() -> frozenset[str]:
    from airflow.configuration import conf

    listed = conf.get("apache_kafka", "callback_allowlist", fallback="") or ""
    return frozenset(path.strip() for path in listed.split(",") if path.strip())
