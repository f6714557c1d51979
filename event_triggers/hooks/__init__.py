"""Hooks: what Airflow's user interface needs to know of this provider's own connection types."""

from __future__ import annotations

__all__: list[str] = []
