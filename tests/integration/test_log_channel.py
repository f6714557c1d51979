"""The two processes of Airflow's triggerer, and what they send each other at the same moment.

The one that runs triggers is a process of its own here, with the log as Airflow sets it up; the test is its supervisor.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

LINES = 3_000
TRIGGERS = 4_000_000
"""Bytes of new triggers: more than sockets hold."""

RUNNER = """
import asyncio, logging, socket, sys

from airflow.sdk.execution_time.supervisor import _configure_logs_over_json_channel
from event_triggers.log_channel import spare_the_loop
from event_triggers.text import plain_logger

requests, logs, lines, triggers = map(int, sys.argv[1:])

async def main():
    spare_the_loop()
    log = plain_logger("event_triggers.wait")
    reader, _ = await asyncio.open_connection(sock=socket.socket(fileno=requests))
    for number in range(lines):
        log.info("%d: every source is connected, and nothing that is sent from now on is missed", number)
    await reader.readexactly(triggers)
    log.info("all triggers are there")
    await reader.read()

_configure_logs_over_json_channel(logs)
asyncio.run(main())
"""


def test_a_supervisor_that_sends_and_does_not_read_is_waited_for_by_nobody() -> None:
    requests, their_requests = socket.socketpair()
    logs, their_logs = socket.socketpair()
    passed = their_requests.fileno(), their_logs.fileno()
    env = {**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO"}
    command = [sys.executable, "-c", RUNNER, *map(str, (*passed, LINES, TRIGGERS))]
    logs.settimeout(120)
    with requests, logs, subprocess.Popen(command, pass_fds=passed, env=env) as runner:
        try:
            their_requests.close()
            their_logs.close()
            requests.settimeout(120)
            requests.sendall(b"x" * TRIGGERS)  # as Airflow's supervisor does: it reads no log until all is sent
            content = b""
            while b"all triggers are there" not in content:
                more = logs.recv(65536)
                assert more, f"the runner has ended: {runner.wait(30)}"
                content += more
        finally:
            runner.kill()
    said = [json.loads(line)["event"] for line in content.splitlines() if b"event_triggers.wait" in line]
    assert [text.partition(":")[0] for text in said[:LINES]] == [str(number) for number in range(LINES)]
