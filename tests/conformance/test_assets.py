"""The conformance suite on asset events, in Airflow's real API server: by the plugin's route, and by the public one.

The bodies of the suite are any bytes, which only requests to hooks are; so each test has a hook, and what it waits for
is either the hook or the hook's asset. Both are read by the same stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import anyio.to_thread
import httpx
import pytest

from event_triggers.sources.assets import AssetEvents
from event_triggers.sources.base import Opening, Position, Source
from event_triggers.sources.webhook import Webhook
from event_triggers.testing.conformance import BrokerHarness, LogConformance
from servers.ports import free_port
from servers.proxy import TcpProxy
from tests.hooks.kit import ApiServer, api_server


@dataclass(frozen=True, init=False)
class HookedAsset(AssetEvents):
    """An asset whose events are requests to a hook."""

    kind: ClassVar[str] = "webhook"


class AssetHarness(BrokerHarness):
    # The client of Airflow's API tries again for ten seconds before a stream that opens gives up.
    patience: ClassVar[float] = 30.0

    def __init__(self, api: ApiServer, proxy: TcpProxy, client: httpx.AsyncClient, *, plugin: bool, by: str) -> None:
        self._api = api
        self._proxy = proxy
        self._client = client
        self._plugin = plugin
        self._by = by
        self._hook = api.hook("open", secret=None)
        self._sent = 0

    def source(self) -> Source:
        return Webhook(self._hook) if self._by == "hook" else HookedAsset(f"webhook/{self._hook}")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return self._api.opening(port=self._proxy.port, start=start, plugin=self._plugin)

    async def publish(self, *bodies: bytes) -> None:
        for body in bodies:
            self._sent += 1
            headers = {"X-Webhook-Delivery": str(self._sent)}
            address = f"/event-triggers/hooks/{self._hook}"
            answer = await self._client.post(address, content=body, headers=headers)
            assert answer.status_code == 202, answer.text

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[Source, Opening]:
        return self.source(), self._api.opening(port=free_port())


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """Airflow's API server. It is ended here, for Airflow's settings are those of the whole process meanwhile."""
    with api_server() as server:
        yield server


@pytest.fixture(params=["plugin-hook", "plugin-asset", "public-hook"])
async def harness(request: pytest.FixtureRequest, api: ApiServer) -> AsyncIterator[AssetHarness]:
    by, _, what = request.param.partition("-")
    with TcpProxy(int(api.url.rpartition(":")[2])) as proxy:
        async with api.caller() as client:
            yield AssetHarness(api, proxy, client, plugin=by == "plugin", by=what)


class TestAssetEvents(LogConformance):
    pass
