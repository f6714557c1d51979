"""``python -m demo.screenshot FILE``: a picture of Airflow's graph page in the middle of the demo's wait.

Chromium (Debian's package ``chromium``) is steered over its debugging protocol, which needs nothing but a WebSocket.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from demo.belongings import Belongings, Interrupted
from demo.run import Demo
from demo.view import View
from demo.watch import DAG_ID, GROUP
from servers.airflow_client import wait_for
from servers.process import ManagedProcess, ServerFailed

__all__ = ["Browser", "main"]

_WIDTH, _HEIGHT = 1500, 640

# What the page remembers of a person: the graph view, with the group unfolded.
_REMEMBERED = {"default_dag_view": "graph", f"{DAG_ID}/open-groups": [GROUP], f"{DAG_ID}/all-groups": [GROUP]}

_SETTLED = """(() => {
    const nodes = [...document.querySelectorAll('.react-flow__node')];
    return JSON.stringify(nodes.map(node => [node.innerText, node.getBoundingClientRect().toJSON()]));
})()"""


class Browser:
    """A headless Chromium with one page.

    :param belongings: takes what is to be ended.
    :raises ServerFailed: when there is no Chromium.
    """

    def __init__(self, belongings: Belongings) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise ServerFailed("no Chromium was found (apt-get install chromium)")
        profile = belongings.folder / "chromium"
        profile.mkdir()
        address = profile / "DevToolsActivePort"
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--window-size={_WIDTH},{_HEIGHT}", "--remote-debugging-port=0", f"--user-data-dir={profile}",
            "about:blank",
        ]  # fmt: skip
        self._process = ManagedProcess("chromium", command, log=belongings.folder / "chromium.log")
        belongings.add(self._process.stop)
        self._process.start(lambda: address.exists() and address.read_text().count("\n") >= 1)
        self._port = int(address.read_text().splitlines()[0])

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A new page."""
        answer = httpx.put(f"http://127.0.0.1:{self._port}/json/new?about:blank", trust_env=False, timeout=30)
        with connect(answer.json()["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            yield Page(socket)


class Page:
    """One page, and commands to it."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command of the debugging protocol and return its result.

        :raises ServerFailed: when the browser refuses it.
        """
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise ServerFailed(f"chromium refused {method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, script: str) -> Any:
        """What a script gives."""
        return self.command("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, url: str, remembered: dict[str, Any]) -> None:
        """Go there, with this in the page's local storage."""
        lines = [f"localStorage.setItem({json.dumps(k)}, {json.dumps(json.dumps(v))});" for k, v in remembered.items()]
        self.command("Page.enable")
        self.command("Page.addScriptToEvaluateOnNewDocument", source="\n".join(lines))
        self.command("Page.navigate", url=url)

    def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])


def _graph(demo: Demo, browser: Browser) -> bytes:
    with browser.page() as page:
        size = {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        page.command("Emulation.setDeviceMetricsOverride", **size)
        page.open(f"{demo.airflow.url}/dags/{DAG_ID}/runs/{quote(demo.watch.run_id)}", _REMEMBERED)
        seen: list[str] = [""]

        def settled() -> bool:
            seen.append(str(page.value(_SETTLED)))
            named = all(name in seen[-1] for name in ("wait", "orders", "stock", "shifts", "close_books"))
            states = all(state in seen[-1].lower() for state in ("deferred", "success"))
            return named and states and seen[-1] == seen[-2]

        wait_for(settled, timeout=60, what=lambda: f"the graph is drawn; {seen[-1]}", pause=1.0)
        return page.picture()


def main() -> int:
    """Run the demo until one marker of three is green, and take the picture."""
    parser = argparse.ArgumentParser(prog="python -m demo.screenshot", description=main.__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file.resolve()
    belongings, view = Belongings(), View()
    try:
        try:
            demo = Demo(belongings, view)
            demo.start()
            browser = Browser(belongings)
            until = next(place for place, step in enumerate(demo.story) if step.event == "stock")
            demo.send(demo.story[: until + 1])
            view.leave()
            file.write_bytes(_graph(demo, browser))
            view.say(f"{file.name}: {file.stat().st_size / 1024:.0f} KB")
        finally:
            belongings.close()
    except Interrupted as interrupt:
        return 128 + interrupt.number
    finally:
        belongings.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
