"""Asset events: a log in Airflow's own database, read through its API by one stream per triggerer.

How it is read is told in :mod:`event_triggers.sources._asset_stream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from event_triggers.errors import AirflowApiError, ConfigurationError, InvalidEventError, StreamError
from event_triggers.message import Message
from event_triggers.sources._asset_reader import AssetName, PluginReader, PublicReader
from event_triggers.sources._asset_stream import AssetStream
from event_triggers.sources.base import AirflowCall, Opening, Source, Stream
from event_triggers.text import plain_logger

__all__ = ["AssetEvents", "AssetSource"]

log = plain_logger(__name__)

_NO_ROUTE = frozenset({404, 405})


class AssetSource(Source):
    """What hooks and assets have in common: they share one stream per triggerer."""

    replayable: ClassVar[bool] = True

    @property
    def family(self) -> Hashable:
        return AssetSource

    def key(self, group: str) -> Hashable:
        return "airflow"

    @property
    def asset_name(self) -> AssetName:
        """The asset's name and URI; any URI where that is ``None``."""
        raise NotImplementedError

    def routes(self, message: Message) -> bool:
        name, uri = self.asset_name
        return message.stream == name and uri in (None, message.receipt)

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when Airflow's API is configured wrongly here.
        :raises StreamError: when it cannot be reached, or refuses.
        """
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        try:
            self.validate()  # again: templates are rendered now
        except InvalidEventError as error:
            raise ConfigurationError(str(error)) from error
        try:
            async with opening.airflow() as call:
                yield await _begin(call, opening)
        except AirflowApiError as error:
            raise StreamError(
                f"asset events cannot be read: {error}; its user must be allowed to read assets"
            ) from error


async def _begin(call: AirflowCall, opening: Opening) -> AssetStream:
    stream = AssetStream(PluginReader(call), opening.clock)
    try:
        await stream.begin(None)  # whatever the start: it shows whether the route is there
    except AirflowApiError as error:
        if error.status not in _NO_ROUTE:
            raise
        log.warning(
            "the API server has no plugin of event_triggers, so asset events are read by Airflow's own route: later, "
            "and with masked values; install the package there too"
        )
        stream = AssetStream(PublicReader(call, opening.clock), opening.clock)
        await stream.begin(opening.start)
        return stream
    if opening.start is not None:
        await stream.begin(opening.start)
    return stream


@dataclass(frozen=True, init=False)
class AssetEvents(AssetSource):
    """The events of one asset, from whatever made them: a task of another DAG, a person, Airflow's API.

    A message's body is the event's ``extra``. Its key is the id of the DAG that made the event; its headers are
    ``dag_id``, ``task_id``, ``run_id`` and ``map_index``. An event that no task made has none of them.

    :param asset: an ``Asset`` of Airflow, or an asset's name alone.
    :param uri: where the name is not enough.
    """

    asset: str
    uri: str | None

    kind: ClassVar[str] = "asset"

    def __init__(self, asset: Any, *, uri: str | None = None) -> None:
        if not isinstance(asset, str):
            # An Asset of Airflow has both; nothing of Airflow is imported for that.
            name, uri = getattr(asset, "name", None), uri or getattr(asset, "uri", None)
            if not isinstance(name, str) or not isinstance(uri, str):
                raise InvalidEventError(f"AssetEvents needs an Asset, or the name of one, not {asset!r}")
            asset = name
        object.__setattr__(self, "asset", asset)
        object.__setattr__(self, "uri", uri)

    @property
    def name(self) -> str:
        return self.asset

    @property
    def asset_name(self) -> AssetName:
        return self.asset, self.uri

    def validate(self) -> None:
        if not self.asset or len(self.asset) > 1500:
            raise InvalidEventError(f"AssetEvents: no asset can be called {self.asset!r}")
        uri: Any = self.uri  # DAG authors write anything here
        if uri is not None and (not isinstance(uri, str) or not uri or len(uri) > 1500):
            raise InvalidEventError(f"AssetEvents {self.asset!r}: uri must be a text, not {uri!r}")
