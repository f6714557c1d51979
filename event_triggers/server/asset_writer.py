"""Events of hooks' assets, written as Airflow's own asset manager writes them.

The last event of an asset in a transaction goes through ``register_asset_change``, which also queues the DAGs that the
asset schedules. That is what it would do for each of them, and once is as good: a DAG is queued for an asset, not for
an event, and its run is given all events since its last one. The events before it are plain rows, in one statement.
Where somebody would notice the difference (listeners, an asset manager of one's own), each goes the long way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from airflow.assets.manager import AssetManager, asset_manager
from airflow.listeners.listener import get_listener_manager
from airflow.models.asset import AssetActive, AssetEvent, AssetModel

from event_triggers.sources._webhook_wire import ASSET_PREFIX, Received, to_extra

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["write_events"]


def write_events(session: Session, received: Sequence[tuple[str, Received]]) -> None:
    """Write one asset event for each of these requests to hooks, in their order; the caller commits.

    :param received: the hook's name, and what came.
    :raises IntegrityError: when another process makes the same asset at this moment; try again.
    """
    by_hook: dict[str, list[dict[str, Any]]] = {}
    for hook, one in received:
        by_hook.setdefault(hook, []).append(to_extra(one))
    # In one order everywhere, so that two processes do not wait for each other.
    for hook, extras in sorted(by_hook.items()):
        asset = _asset(session, ASSET_PREFIX + hook)
        if _each_counts():
            for extra in extras:
                _register(session, asset, extra)
            continue
        if len(extras) > 1:
            session.execute(sa.insert(AssetEvent), [{"asset_id": asset.id, "extra": extra} for extra in extras[:-1]])
        _register(session, asset, extras[-1])


def _each_counts() -> bool:
    return type(asset_manager) is not AssetManager or get_listener_manager().has_listeners


def _register(session: Session, asset: AssetModel, extra: dict[str, Any]) -> None:
    # Airflow before 3.2 takes the last argument for nothing, as it does all that it does not know.
    asset_manager.register_asset_change(asset=asset, extra=extra, session=session, source_is_api=True)


def _asset(session: Session, name: str) -> AssetModel:
    asset = session.scalar(sa.select(AssetModel).where(AssetModel.name == name, AssetModel.uri == name))
    if asset is None:
        asset = AssetModel(name=name, uri=name, group="webhook")
        session.add(asset)
        session.flush()
    if session.scalar(sa.select(sa.literal(1)).where(AssetActive.name == name)) is None:
        # The scheduler takes it off the page of assets again, after a while, where no DAG names it.
        taken = session.scalar(sa.select(sa.literal(1)).where(AssetActive.uri == name))
        if taken is None:
            session.add(AssetActive.for_asset(asset))
            session.flush()
    return asset
