"""Airflow's API over real connections, when those who ask are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from event_triggers.airflow_api import MOST_IN_FLIGHT, AirflowApi
from event_triggers.api_settings import ApiSettings

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@asynccontextmanager
async def answering() -> AsyncIterator[str]:
    """The address of a server that answers everything, and closes the connection: each request needs a new one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_requests_that_are_cancelled_at_any_moment_do_not_use_up_the_connections() -> None:
    """As when hundreds of groups are ended at once."""
    async with answering() as url, AirflowApi(ApiSettings(url, token="t", origin="test")) as api:
        for steps in range(80):
            asked = [asyncio.create_task(api.call("GET", "version")) for _ in range(2 * MOST_IN_FLIGHT)]
            for _ in range(steps % 40):
                await asyncio.sleep(0)
            for one in asked:
                one.cancel()
            await asyncio.wait(asked)
        with anyio.fail_after(20):
            assert await api.call("GET", "version") == {}
