"""The errors of this package: one root, one flat family, each saying what happened, to which thing, and what to do."""

from __future__ import annotations

from event_triggers.text import one_line

__all__ = [
    "AirflowApiError",
    "ConfigurationError",
    "ConnectionMissingError",
    "EventTriggersError",
    "InvalidEventError",
    "MessageDecodeError",
    "MissingExtraError",
    "StreamError",
]


class EventTriggersError(Exception):
    """Root of every error this package raises on purpose.

    Its text is one line of printable characters, whatever a broker or a message has put into it.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


class InvalidEventError(EventTriggersError, ValueError):
    """A group, an event, a source or a pattern is declared wrongly. Raised while the DAG file is parsed."""


class ConfigurationError(EventTriggersError):
    """A connection or an option is wrong in a way that waiting cannot mend. It ends the wait at once."""


class ConnectionMissingError(ConfigurationError, LookupError):
    """An Airflow connection is not defined."""

    def __init__(self, conn_id: str) -> None:
        super().__init__(f"the Airflow connection {conn_id!r} is not defined; create it, or name another with conn_id=")
        self.conn_id = conn_id


class MissingExtraError(ConfigurationError, ImportError):
    """A source needs a client library that is not installed.

    :param feature: what was to be used, for example ``"KafkaTopic"``.
    :param module: the top-level module that could not be imported.
    :param extra: the extra of this distribution that brings it.
    """

    def __init__(self, feature: str, module: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the Python package {module!r}, which is not installed here; "
            f"install it with: pip install 'airflow-event-triggers[{extra}]'"
        )


class StreamError(EventTriggersError):
    """A broker connection broke or was refused. The hub opens the stream again, with growing pauses."""


class MessageDecodeError(EventTriggersError, ValueError):
    """A message's body is not the JSON document that was asked of it."""


class AirflowApiError(EventTriggersError):
    """Airflow's REST API refused a request for good, or could not be reached.

    :param status: the HTTP status, or ``None`` when no answer came.
    """

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
