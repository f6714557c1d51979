"""Private keys that a connection holds as text: TLS libraries read files alone, so they are written, and not left."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from event_triggers.sources import _kafka_security, _options
from event_triggers.sources._kafka_config import TlsSettings

CERTIFICATE, KEY = "the certificate", "the private key"


class Spy:
    """Takes the place of Python's TLS context, and looks at the files that it is given."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.seen: dict[str, tuple[Path, int]] = {}

    def load_cert_chain(self, certificate: str, key: str, password: str) -> None:
        for name in (certificate, key):
            path = Path(name)
            self.seen[path.read_text()] = path, stat.S_IMODE(path.stat().st_mode)
        if self.fails:
            raise OSError("the TLS library does not like it")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("source", ["kafka", "others"])
def test_only_we_can_read_them_and_they_are_removed(source: str, fails: bool, scratch: Path) -> None:
    spy: Any = Spy(fails=fails)
    try:
        if source == "kafka":
            _kafka_security._load_certificate(spy, TlsSettings(certificate_pem=CERTIFICATE, key_pem=KEY))
        else:
            options = {"client_cert_pem": CERTIFICATE, "private_key_pem": KEY}
            _options._load_client_certificate(spy, options)
    except OSError:
        assert fails
    assert set(spy.seen) == {CERTIFICATE, KEY}
    path, mode = spy.seen[KEY]
    assert path.is_relative_to(scratch)
    assert mode == 0o600
    assert list(scratch.rglob("*")) == []
