"""The proxies that the tests put between a client and its server."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from servers.http_proxy import HttpProxy
from servers.ports import free_port
from servers.proxy import TcpProxy


@pytest.mark.parametrize("kind", [TcpProxy, HttpProxy])
def test_a_connection_that_comes_while_a_proxy_closes_is_broken(kind: type[TcpProxy] | type[HttpProxy]) -> None:
    with kind(free_port()) as proxy:

        async def connect_and_close() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", proxy.port))
            await asyncio.sleep(0)  # the loop accepts it in this round, after this task and before the next
            await asyncio.create_task(proxy._close())
            return client

        with proxy._run(connect_and_close()) as client:
            client.settimeout(10)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
