"""Webhooks: requests to a hook in Airflow's API server, which keeps each as an event of the hook's asset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from event_triggers.errors import InvalidEventError
from event_triggers.sources._asset_reader import AssetName
from event_triggers.sources._webhook_wire import ASSET_PREFIX, CONN_PREFIX, NAME
from event_triggers.sources.assets import AssetSource

__all__ = ["Webhook"]


@dataclass(frozen=True)
class Webhook(AssetSource):
    """What is sent to ``POST /event-triggers/hooks/<hook>`` of Airflow's API server.

    The hook exists as soon as the Airflow connection ``webhook_<hook>`` does. A message's body is the request's, byte
    for byte; its headers are the request's, its key is the delivery's id.

    :param hook: its name: letters, digits, ``.``, ``_`` and ``-``, up to 100 of them.
    """

    hook: str

    kind: ClassVar[str] = "webhook"
    conn_type: ClassVar[str] = "webhook"

    @property
    def name(self) -> str:
        return self.hook

    @property
    def asset(self) -> Any:
        """The ``Asset`` of Airflow that a request makes an event of, to schedule DAGs by."""
        from airflow.sdk import Asset

        return Asset(ASSET_PREFIX + self.hook, group="webhook")

    @property
    def conn_id(self) -> str:
        """The id of the Airflow connection that holds the hook's secret."""
        return CONN_PREFIX + self.hook

    @property
    def asset_name(self) -> AssetName:
        return ASSET_PREFIX + self.hook, ASSET_PREFIX + self.hook

    def validate(self) -> None:
        hook: Any = self.hook  # DAG authors write anything here
        templated = isinstance(hook, str) and ("{{" in hook or "{%" in hook)
        if not isinstance(hook, str) or not (templated or NAME.fullmatch(hook)):
            raise InvalidEventError(
                f"Webhook: no hook can be called {hook!r}; names are of letters, digits, '.', '_' and '-', begin with "
                f"a letter or a digit, and have up to 100 characters"
            )
