"""The application that the plugin mounts in Airflow's API server."""

from __future__ import annotations

from fastapi import FastAPI

from event_triggers import __version__

__all__ = ["create_app"]


def create_app() -> FastAPI:
    """The application with all its routes; paths are below the prefix of the plugin."""
    app = FastAPI(title="event_triggers", version=__version__, description="Routes of event_triggers in Airflow.")

    @app.get("/version", tags=["about"])
    def version() -> dict[str, str]:
        """The release of event_triggers that this API server runs."""
        return {"version": __version__}

    return app
