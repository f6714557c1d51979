"""The parts that run servers for tests: what they end is gone, what they keep is there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.airflow_client import TimedOut, wait_for
from servers.postgres import Postgres, find_binaries
from servers.process import ManagedProcess, ServerFailed
from servers.redis import Redis, find_redis
from tests.support import missing

# A parent, and a child in a process group of its own that does not mind SIGTERM.
FAMILY = """
import os, signal, time
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("child", os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[ManagedProcess]:
    log = tmp_path / "family.log"
    process = ManagedProcess("family", [sys.executable, "-c", FAMILY], log=log)
    process.start(lambda: "child" in process.tail())
    yield process
    process.kill()


def child_of(family: ManagedProcess) -> int:
    return int(family.tail().split()[1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class TestManagedProcess:
    def test_stop_ends_a_child_in_a_group_of_its_own(self, family: ManagedProcess) -> None:
        assert os.getpgid(child_of(family)) != os.getpgid(family.pid)
        family.stop(timeout=5)
        assert not family.running
        wait_for(lambda: gone(child_of(family)), timeout=5, what="the child is gone")

    def test_kill_ends_it_too(self, family: ManagedProcess) -> None:
        family.kill()
        wait_for(lambda: gone(child_of(family)), timeout=5, what="the child is gone")

    def test_one_that_ends_by_itself_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such port')"]
        process = ManagedProcess("short", command, log=tmp_path / "log")
        with pytest.raises(ServerFailed, match=r"short ended with status 1:\nno such port"):
            process.start(lambda: False)

    def test_one_that_is_never_ready_is_stopped(self, tmp_path: Path) -> None:
        process = ManagedProcess("slow", [sys.executable, "-c", FAMILY], log=tmp_path / "log")
        with pytest.raises(ServerFailed, match="slow was not ready after 0 s"):
            process.start(lambda: False, timeout=0.2)
        assert not process.running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    if find_binaries() is None:
        missing("PostgreSQL is not installed (apt-get install postgresql)")
    with Postgres() as cluster:
        yield cluster


class TestPostgres:
    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_data_and_port_outlive_a_restart(self, cluster: Postgres, how: str) -> None:
        cluster.create_database(how)
        cluster.run_sql("CREATE TABLE kept AS SELECT 7 AS number", database=how)
        getattr(cluster, how)()
        with pytest.raises(ServerFailed, match="psql failed"):
            cluster.run_sql("SELECT 1")
        cluster.start()
        assert cluster.run_sql("SELECT number FROM kept", database=how) == "7"

    def test_a_database_is_copied_from_another(self, cluster: Postgres) -> None:
        cluster.create_database("original")
        cluster.run_sql("CREATE TABLE one AS SELECT 1 AS number", database="original")
        assert cluster.create_database("copy", template="original").endswith("/copy")
        assert cluster.run_sql("SELECT number FROM one", database="copy") == "1"
        cluster.drop_database("copy")
        with pytest.raises(ServerFailed, match='database "copy" does not exist'):
            cluster.run_sql("SELECT 1", database="copy")

    def test_nothing_is_left_when_it_is_closed(self) -> None:
        if find_binaries() is None:
            missing("PostgreSQL is not installed (apt-get install postgresql)")
        with Postgres() as short:
            pid = short.pid
            assert not gone(pid)
        assert gone(pid)
        assert not short.home.exists()


def test_a_wait_that_fails_says_for_what() -> None:
    with pytest.raises(TimedOut, match="not within 0 s: the moon"):
        wait_for(lambda: None, timeout=0, what="the moon")


@pytest.mark.parametrize("persistent", [False, True], ids=["in-memory", "persistent"])
def test_redis_keeps_over_a_crash_what_it_is_asked_to_keep(persistent: bool) -> None:
    if find_redis() is None:
        missing("Redis is not installed (apt-get install redis-server)")
    client_of = importlib.import_module("redis").Redis.from_url
    with Redis(password="secret", persistent=persistent) as server:
        with client_of(server.url) as client:
            client.set("key", "value")
        server.kill()
        server.start()
        with client_of(server.url) as client:
            assert client.get("key") == (b"value" if persistent else None)
