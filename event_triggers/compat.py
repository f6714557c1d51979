"""The few names that moved between the Airflow versions this package supports, from wherever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow import __version__ as airflow_version

if TYPE_CHECKING:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
    )
else:
    try:
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
        )
    except ImportError:  # before Airflow 3.2
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
        )

__all__ = [
    "STARTS_FROM_TRIGGER",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
]

STARTS_FROM_TRIGGER = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)
"""Whether this Airflow can start a task in the triggerer. Older ones ignore the request, and the worker defers at once."""
