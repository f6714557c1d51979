"""The application that the plugin mounts in Airflow's API server."""

from __future__ import annotations

from fastapi import FastAPI

from event_triggers import __version__
from event_triggers.server import asset_events, hooks
from event_triggers.server.asset_log import Bell
from event_triggers.server.marks import router as marks

__all__ = ["create_app"]


def create_app() -> FastAPI:
    """The application with all its routes; paths are below the prefix of the plugin."""
    app = FastAPI(title="event_triggers", version=__version__, description="Routes of event_triggers in Airflow.")

    @app.get("/version", tags=["about"])
    def version() -> dict[str, str]:
        """The release of event_triggers that this API server runs."""
        return {"version": __version__}

    bell = Bell()
    app.include_router(hooks.make_router(bell))
    app.include_router(asset_events.make_router(bell))
    app.include_router(marks)
    return app
