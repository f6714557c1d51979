"""The hook of the connection type ``webhook``: its form, and the button that tests a connection.

The API server does not use it: it reads the connection itself.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from event_triggers.errors import ConfigurationError
from event_triggers.hook_settings import HookSettings, read_hook_settings
from event_triggers.hooks._forms import behaviour, widgets
from event_triggers.hooks.webhook_form import BEHAVIOUR, FIELDS

__all__ = ["WebhookHook"]


class WebhookHook(BaseHook):
    """What may call one hook.

    :param webhook_conn_id: the id of an Airflow connection of type ``webhook``: ``webhook_<name of the hook>``.
    """

    conn_name_attr = "webhook_conn_id"
    default_conn_name = "webhook_default"
    conn_type = "webhook"
    hook_name = "Webhook"

    def __init__(self, webhook_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.webhook_conn_id = webhook_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for Airflow before 3.2."""
        return widgets(FIELDS)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What is hidden and shown of the common fields, for Airflow before 3.2."""
        return behaviour(BEHAVIOUR)

    def get_settings(self) -> HookSettings:
        """The connection, read.

        :raises ConfigurationError: naming the option that is wrong.
        """
        connection = self.get_connection(self.webhook_conn_id)
        extra = connection.extra_dejson if connection.extra else {}
        return read_hook_settings(self.webhook_conn_id, connection.password or None, extra)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the hook would take requests, and of whom."""
        try:
            settings = self.get_settings()
        except ConfigurationError as error:
            return False, str(error)
        many = f"{len(settings.secrets)} secrets" if len(settings.secrets) > 1 else "one secret"
        who = {"open": "anybody", "proxy": "whom the proxy has verified"}.get(settings.scheme, many)
        return True, f"Requests are taken by scheme {settings.scheme!r}: {who}"
