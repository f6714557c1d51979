"""``python -m benchmarks.marking_probe URL PATH TOKEN``: asks for a page of Airflow's API again and again.

Prints how long each answer took, in seconds, a line each; ends when its standard input does. A process of its own, so
that what it measures is the server and not whoever marks.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from urllib.parse import urlsplit

__all__ = ["main"]

PAUSE = 0.05


def main(url: str, path: str, token: str) -> None:
    """Ask until nobody listens any more."""
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    while not ended.is_set():
        began = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        print(time.perf_counter() - began if answer.status == 200 else -answer.status, flush=True)
        ended.wait(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
