"""A NATS server whose users prove themselves with credentials: what ``nsc``, which is no Debian package, makes.

An operator signs an account, the account signs its users; each is a JWT of NATS's own form (``ed25519-nkey``). The
server knows the operator and the account; a user shows the JWT and signs what the server asks with the seed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from typing import Any

import nkeys

__all__ = ["Accounts"]


class _Key:
    """A key, and the claims that it signs."""

    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def claims(self, subject: str, name: str, about: dict[str, Any], **more: Any) -> str:
        """A signed JWT."""
        claims = {"iat": int(time.time()), "iss": self.public, "sub": subject, "name": name, "nats": about, **more}
        digest = hashlib.sha256(json.dumps(claims).encode()).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(claims)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Accounts:
    """An operator with one account that may use JetStream."""

    def __init__(self) -> None:
        operator, system = _Key(nkeys.PREFIX_BYTE_OPERATOR), _Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = _Key(nkeys.PREFIX_BYTE_ACCOUNT)
        unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage")
        limits = {**dict.fromkeys((*unlimited, "streams", "consumer"), -1), "wildcards": True}
        account = {"type": "account", "version": 2, "limits": limits}
        no_storage = {**limits, "mem_storage": 0, "disk_storage": 0}  # the system account may have none
        trusted = operator.claims(
            operator.public, "operator", {"type": "operator", "version": 2, "system_account": system.public}
        )
        preload = {
            self._account.public: operator.claims(self._account.public, "data", account),
            system.public: operator.claims(system.public, "system", {**account, "limits": no_storage}),
        }
        self.settings = "\n".join(
            [
                f"operator: {trusted}",
                f"system_account: {system.public}",
                "resolver: MEMORY",
                "resolver_preload: {",
                *(f"  {key}: {claims}" for key, claims in preload.items()),
                "}",
            ]
        )
        """For the server's configuration."""

    def credentials(self, **more: Any) -> str:
        """The credentials of a new user, in the form of a file that ``nsc generate creds`` writes.

        :param more: further claims, such as ``exp``, seconds since the epoch.
        """
        user = _Key(nkeys.PREFIX_BYTE_USER)
        about = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        claims = self._account.claims(user.public, "user", about, **more)
        return (
            f"-----BEGIN NATS USER JWT-----\n{claims}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _encoded(claims: dict[str, Any]) -> str:
    return _base64(json.dumps(claims, separators=(",", ":")).encode())
