"""A reverse proxy for HTTP/1.1 that answers, delays, hangs and cuts as servers and networks in trouble do.

Flow: each request is read as a whole and compared with the rules, oldest first; the first that fits says what becomes
of it. Without a rule it goes to the target over a connection of its own, and the answer comes back as it is. All of it
runs on one event loop in a thread of its own, so tests of any kind (synchronous, asynchronous, of another process) can
use it.

Invariants:

* A request reaches the target at most once, and only as a whole.
* What the target has answered to a request that is *cut* was carried out, though the client cannot know.
* :meth:`HttpProxy.restore` ends every rule; requests that hang are passed on then, whether or not their client is
  still there.

A target that is away is answered for with a reset connection. Requests with chunked bodies are not understood.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

from servers.accepting import stop_accepting

__all__ = ["HttpProxy", "Seen"]

_LONGEST_HEAD = 256 * 1024
_T = TypeVar("_T")


class Seen(NamedTuple):
    """A request, and what became of it."""

    method: str
    path: str
    status: int | None
    """What the target answered; ``None`` when it was not asked, or did not answer."""
    fault: str | None
    """The name of the fault that befell it."""


class _Fault(Enum):
    ANSWER = "answer"
    DELAY = "delay"
    HANG = "hang"
    CUT = "cut"
    RESET = "reset"


@dataclass(eq=False)
class _Rule:
    fault: _Fault
    method: str | None
    part: str
    left: float
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def fits(self, request: _Request) -> bool:
        return self.left > 0 and self.method in (None, request.method) and self.part in request.path


class _Request(NamedTuple):
    method: str
    path: str
    raw: bytes


class HttpProxy:
    """Listens on a free port of the loopback interface and passes requests on. A context manager.

    Every fault can be limited: to a ``method``, to a ``part`` of the path (with its query), and to so many ``times``.

    :param target_port: where to pass requests on to; nothing has to listen there yet.
    :param port: the port to listen on; 0 takes a free one.
    """

    def __init__(self, target_port: int, *, port: int = 0) -> None:
        self.target_port = target_port
        self.seen: list[Seen] = []
        """What came, in the order in which it was seen through."""
        self._rules: list[_Rule] = []
        self._closing = False
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-proxy", daemon=True)
        self._thread.start()
        self._restored: asyncio.Event = self._run(self._new_event())
        self._server = self._run(self._listen())

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def answer(
        self,
        status: int,
        *,
        method: str | None = None,
        part: str = "",
        times: float = float("inf"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with this status, without asking the target."""
        self._add(_Rule(_Fault.ANSWER, method, part, times, status=status, headers=headers or {}))

    def delay(self, seconds: float, *, method: str | None = None, part: str = "", times: float = float("inf")) -> None:
        """Pass requests on only after so many seconds."""
        self._add(_Rule(_Fault.DELAY, method, part, times, seconds=seconds))

    def hang(self, *, method: str | None = None, part: str = "", times: float = float("inf")) -> None:
        """Hold requests until :meth:`restore`, and pass them on then."""
        self._add(_Rule(_Fault.HANG, method, part, times))

    def cut(self, *, method: str | None = None, part: str = "", times: float = float("inf")) -> None:
        """Let the target do what it is asked, and break the connection in the middle of its answer."""
        self._add(_Rule(_Fault.CUT, method, part, times))

    def reset(self, *, method: str | None = None, part: str = "", times: float = float("inf")) -> None:
        """Break the connection without asking the target, as when nothing is there."""
        self._add(_Rule(_Fault.RESET, method, part, times))

    def restore(self) -> None:
        """Pass everything on again, first what hangs."""

        async def do() -> None:
            self._rules.clear()
            self._restored.set()
            self._restored = await self._new_event()

        self._run(do())

    def faults(self, name: str) -> int:
        """How many requests met with a fault: ``answer``, ``delay``, ``hang``, ``cut`` or ``reset``."""
        return sum(one.fault == name for one in list(self.seen))

    def close(self) -> None:
        """Break all connections and stop listening. Safe to repeat."""
        if not self._thread.is_alive():
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> HttpProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------------ from other threads into the loop

    def _run(self, work: Awaitable[_T]) -> _T:
        async def do() -> _T:
            return await work

        future: Future[_T] = asyncio.run_coroutine_threadsafe(do(), self._loop)
        return future.result(10)

    def _add(self, rule: _Rule) -> None:
        async def do() -> None:
            self._rules.append(rule)

        self._run(do())

    # ------------------------------------------------------------------ inside the loop

    async def _new_event(self) -> asyncio.Event:
        return asyncio.Event()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=self._listener, limit=_LONGEST_HEAD)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer), name="http-proxy connection")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read_request(reader)
                if not await self._handle(request, writer):
                    return
        except (OSError, EOFError):
            pass  # the client or the target has gone
        finally:
            writer.transport.abort()

    async def _handle(self, request: _Request, writer: asyncio.StreamWriter) -> bool:
        """See one request through; ``False`` when its connection is to be broken."""
        rule = next((rule for rule in self._rules if rule.fits(request)), None)
        fault = rule.fault if rule else None
        status: int | None = None
        try:
            if rule is not None:
                rule.left -= 1
                if rule.fault is _Fault.RESET:
                    return False
                if rule.fault is _Fault.ANSWER:
                    writer.write(_answer(rule.status, rule.headers))
                    await writer.drain()
                    return True
                if rule.fault is _Fault.DELAY:
                    await asyncio.sleep(rule.seconds)
                elif rule.fault is _Fault.HANG:
                    await self._restored.wait()
            answer = await self._ask(request)
            status = int(answer.split(b" ", 2)[1])
            writer.write(answer[: len(answer) // 2] if fault is _Fault.CUT else answer)
            await writer.drain()
            return fault is not _Fault.CUT
        finally:
            self.seen.append(Seen(request.method, request.path, status, fault.value if fault else None))

    async def _ask(self, request: _Request) -> bytes:
        """The target's answer, as a whole, fit for a connection that stays open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        try:
            writer.write(_with_connection(request.raw, b"close"))
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.transport.abort()
        if b"\r\n\r\n" not in answer:
            raise EOFError
        return _with_connection(answer, b"keep-alive")

    async def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        await stop_accepting(self._listener)
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(OSError):
            self._listener.close()
        # Transports that were aborted report it in the next rounds of the loop.
        for _ in range(3):
            await asyncio.sleep(0)


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    head = await reader.readuntil(b"\r\n\r\n")
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    lengths = [line.split(b":", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    body = await reader.readexactly(int(lengths[0])) if lengths else b""
    return _Request(method, path, head + body)


def _with_connection(message: bytes, value: bytes) -> bytes:
    """The request or answer with this ``Connection`` header instead of its own."""
    head, _, body = message.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: " + value]) + b"\r\n\r\n" + body


def _answer(status: int, headers: Mapping[str, str]) -> bytes:
    body = json.dumps({"detail": f"the proxy answers {status}"}).encode()
    lines = [f"HTTP/1.1 {status} by the proxy", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
