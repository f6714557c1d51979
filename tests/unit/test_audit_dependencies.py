"""The audit of dependencies: it tells what is known, and is nobody's trouble where there is no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from servers.ports import free_port

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit-dependencies"


def run(database: str, **env: str) -> tuple[int, str]:
    """The status, and what it printed."""
    bare = {name: value for name, value in os.environ.items() if name != "CI" and "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env={**bare, "VULNERABILITY_DATABASE": database, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


@contextmanager
def database(vulnerable: str = "", answer: Any = None) -> Iterator[str]:
    """One that knows of a vulnerability in this package, or that answers so whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            assert all(one["package"]["ecosystem"] == "PyPI" and one["version"] for one in asked)
            known = [{"vulns": [{"id": "X-1"}]} if one["package"]["name"] == vulnerable else {} for one in asked]
            body = json.dumps({"results": known} if answer is None else answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_what_is_known_is_told_and_a_failure() -> None:
    with database(vulnerable="aiohttp") as address:
        status, text = run(address)
        assert status == 1
        assert "aiohttp 3." in text
        assert ": X-1\n" in text
        assert "1 with known vulnerabilities" in text
        assert run(address, CI="true")[0] == 0, "what is published overnight stops no change"


def test_nothing_is_known() -> None:
    with database() as address:
        status, text = run(address)
    assert status == 0
    assert ", 0 with known vulnerabilities" in text


@pytest.mark.parametrize("answer", [{}, [], {"results": []}, {"results": [1]}, "text"])
def test_an_answer_of_something_else_is_none(answer: object) -> None:
    with database(answer=answer) as address:
        status, text = run(address)
    assert status == 0
    assert "skipped: no vulnerability database reachable" in text


def test_without_a_network_it_is_skipped_with_a_word() -> None:
    status, text = run(f"http://127.0.0.1:{free_port()}")
    assert status == 0
    assert "audit of dependencies skipped: no vulnerability database reachable (" in text
