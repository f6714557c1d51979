"""What Airflow's plugin manager loads: the routes that this package adds to the API server, under ``/event-triggers``.

Every component of Airflow loads plugins, but only the API server asks for applications: they are made then, so that
nobody else imports them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from airflow.plugins_manager import AirflowPlugin

__all__ = ["URL_PREFIX", "EventTriggersPlugin"]

URL_PREFIX = "/event-triggers"


@cache
def _apps() -> list[dict[str, Any]]:
    from event_triggers.server.app import create_app

    return [{"name": "event_triggers", "url_prefix": URL_PREFIX, "app": create_app()}]


class _WhenAskedFor:
    def __get__(self, instance: object, owner: type) -> list[dict[str, Any]]:
        return _apps()


class EventTriggersPlugin(AirflowPlugin):
    """The plugin, by its entry point ``airflow.plugins``."""

    name = "event_triggers"
    fastapi_apps = _WhenAskedFor()
