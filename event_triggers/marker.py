"""EventMarker: the dummy task that shows one event of a group. EventJoin: the one behind them all."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator

__all__ = ["EventJoin", "EventMarker"]


class EventMarker(EmptyOperator):
    """Stands for one awaited event behind an :class:`~event_triggers.EventGroupSensor`.

    It never runs. The group's trigger makes it ``success`` when its event has come; its XCom is then the message's
    payload (a list of payloads for an event with ``count``), its note says where the message came from, and its XCom
    ``event`` holds the facts (position, timestamp, received-at). When the sensor fails, a marker still open becomes
    ``upstream_failed``.

    When a person makes it ``success`` or ``skipped``, the group waits for it no longer; ``failed`` fails the group.
    When a person makes the *sensor* ``success``, the markers still open become ``success`` too, without a payload.
    """

    ui_color = "#d9f2e3"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @property
    def task_type(self) -> str:
        """By this name the group finds its markers in Airflow, subclasses too."""
        return EventMarker.__name__


class EventJoin(EmptyOperator):
    """The last task of a group that can be complete before all its events have come.

    It never runs. The group's trigger makes it ``success`` when the condition holds, before the markers of the other
    events are skipped; so what stands behind it needs no trigger rule. It is ``upstream_failed`` or ``skipped`` when
    the group is.
    """

    ui_color = "#cfe8fc"
