"""The ports that the tests' servers get."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servers.ports import Ports, free_port

ANOTHER = """
import sys
from pathlib import Path
from servers.ports import Ports

ports = Ports(list(map(int, sys.argv[2:])), Path(sys.argv[1]))
print(ports.take(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "locks"


def test_no_port_is_given_twice(locks: Path) -> None:
    few = [free_port() for _ in range(50)]
    ports = Ports(few, locks)
    assert sorted(ports.take() for _ in few) == sorted(set(few))
    with pytest.raises(RuntimeError, match="none of 50 TCP ports is free"):
        ports.take()


def test_port_that_someone_listens_on_is_not_given(locks: Path) -> None:
    used, free = free_port(), free_port()
    with socket.create_server(("127.0.0.1", used)):
        ports = Ports([used, free], locks)
        assert ports.take() == free
        with pytest.raises(RuntimeError):
            ports.take()


def test_another_process_gets_another_until_this_one_ends(locks: Path) -> None:
    few = [free_port(), free_port()]
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER, locks, *map(str, few)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        ports = Ports(few, locks)
        assert {theirs, ports.take()} == set(few)
        with pytest.raises(RuntimeError):
            ports.take()
        other.kill()
        other.wait(30)
        assert ports.take() == theirs
