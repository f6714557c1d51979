"""A TCP proxy on the loopback interface that can fail as networks do.

Flow: every accepted connection is paired with one to the target; two pumps copy bytes between them. All of it runs on
one event loop in a thread of its own, so tests of any kind (synchronous, asynchronous, of another process) can use it.

Invariants:

* While *black-holed* nothing passes in either direction, not even the end of a connection; what was sent is held and
  goes on after :meth:`TcpProxy.restore`, as packets do that are sent again.
* :meth:`TcpProxy.cut` resets every connection at that moment, on both sides; new ones are possible at once.

Nothing is kept: a proxy that is closed and opened again is another one, on another port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from servers.accepting import stop_accepting

__all__ = ["TcpProxy"]

_CHUNK = 64 * 1024
_T = TypeVar("_T")


class TcpProxy:
    """Listens on a free port of the loopback interface and passes connections on. A context manager.

    :param target_port: where to pass them on to; nothing has to listen there yet.
    :param target_host: the host of that port.
    :param port: the port to listen on; 0 takes a free one.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = (target_host, target_port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._pairs: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._refusing = False
        self._closing = False
        self._accepted = 0
        self._delivered = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._thread.start()
        self._passing = self._run(self._new_event())
        self._server = self._run(self._listen())

    @property
    def address(self) -> str:
        """``host:port`` to connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        """How many connections were accepted so far."""
        return self._accepted

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return len(self._pairs)

    @property
    def delivered(self) -> int:
        """How many bytes went from the target to those who connected."""
        return self._delivered

    def cut(self) -> int:
        """Reset every connection that is open now, on both sides; tells how many there were."""
        return self._run(self._cut())

    def black_hole(self) -> None:
        """Let nothing pass any more, and tell nobody. New connections are accepted and hang too."""
        self._call(self._passing.clear)

    def refuse(self) -> None:
        """Reset new connections as soon as they are accepted; open ones go on."""
        self._refusing = True

    def restore(self) -> None:
        """Pass everything again, first what was held."""
        self._refusing = False
        self._call(self._passing.set)

    def close(self) -> None:
        """Reset all connections and stop listening. Safe to repeat."""
        if not self._thread.is_alive():
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------------ from other threads into the loop

    def _run(self, work: Awaitable[_T]) -> _T:
        async def do() -> _T:
            return await work

        future: Future[_T] = asyncio.run_coroutine_threadsafe(do(), self._loop)
        return future.result(10)

    def _call(self, function: Callable[[], object]) -> None:
        async def do() -> None:
            function()

        self._run(do())

    # ------------------------------------------------------------------ inside the loop

    async def _new_event(self) -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=self._listener)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            # It was accepted before that, and is handed over only now.
            _reset(writer)
            return
        self._accepted += 1
        writers = [writer]
        task = self._loop.create_task(self._serve(reader, writers), name=f"tcp-proxy connection {self._accepted}")
        self._pairs[task] = writers
        task.add_done_callback(self._pairs.pop)

    async def _serve(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        writer = writers[0]
        try:
            if self._refusing:
                return
            await self._passing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            writers.append(far_writer)
            # Each direction ends by itself: a half-closed connection stays open the other way.
            pumps = [self._pump(reader, far_writer), self._pump(far_reader, writer, counted=True)]
            await asyncio.gather(*pumps)
        except OSError:
            pass  # one side broke; the other is reset below
        finally:
            for one in writers:
                _reset(one)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool = False) -> None:
        while True:
            data = await source.read(_CHUNK)
            await self._passing.wait()
            if not data:
                if sink.can_write_eof():
                    sink.write_eof()
                return
            sink.write(data)
            await sink.drain()
            self._delivered += len(data) if counted else 0

    async def _cut(self) -> int:
        pairs = dict(self._pairs)
        for task, writers in pairs.items():
            for writer in writers:
                _reset(writer)
            task.cancel()
        if pairs:
            await asyncio.wait(pairs)
        return len(pairs)

    async def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        await stop_accepting(self._listener)
        self._server.close()
        await self._cut()
        with contextlib.suppress(OSError):
            self._listener.close()
        # Transports that were aborted report it in the next rounds of the loop.
        for _ in range(3):
            await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with RST instead of FIN."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
