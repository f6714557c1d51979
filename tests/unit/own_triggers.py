"""Triggers that a test moves by hand. What they did is noted in :data:`RUNS`, by their name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

__all__ = [
    "RUNS",
    "Deaf",
    "Endless",
    "NeverFires",
    "NoGenerator",
    "Once",
    "Ready",
    "Run",
    "StoneDeaf",
    "TellsOfFailure",
    "TellsOfSuccess",
]


@dataclass
class Run:
    """What the triggers of one name have done."""

    made: int = 0
    started: int = 0
    cancelled: int = 0
    put_in_order: int = 0
    cleaned: int = 0
    killed: int = 0
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


RUNS: dict[str, Run] = {}


class Endless(BaseTrigger):
    """Fires what the test puts into its queue; an exception there is raised."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name
        self.more = more
        self.done = RUNS.setdefault(name, Run())
        self.done.made += 1

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"name": self.name, **self.more}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        self.done.started += 1
        try:
            while True:
                yield await self._next()
        except asyncio.CancelledError:
            self.done.cancelled += 1
            # As a trigger does that ends something elsewhere when it is cancelled.
            await asyncio.sleep(0.001)
            self.done.put_in_order += 1
            raise

    async def _next(self) -> TriggerEvent:
        payload = await self.done.events.get()
        if isinstance(payload, Exception):
            raise payload
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def cleanup(self) -> None:
        self.done.cleaned += 1

    async def on_kill(self) -> None:
        self.done.killed += 1


class Once(Endless):
    """Fires one event, and ends."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        self.done.started += 1
        yield await self._next()


class Ready(Endless):
    """Finds at once what it waits for, each time it is run."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        self.done.started += 1
        yield TriggerEvent("there")  # type: ignore[no-untyped-call]


class Deaf(Endless):
    """Loses the first cancellation, as a client library may."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        self.done.started += 1
        for _ in range(2):
            try:
                yield await self._next()
            except asyncio.CancelledError:
                self.done.cancelled += 1
                if self.done.cancelled > 1:
                    raise


class StoneDeaf(Endless):
    """Loses every cancellation until it has fired once more."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        self.done.started += 1
        while True:
            try:
                event = await self._next()
            except asyncio.CancelledError:
                self.done.cancelled += 1
                continue
            yield event


class NeverFires(Endless):
    """Ends without an event."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        nothing: tuple[TriggerEvent, ...] = ()
        for event in nothing:
            yield event


class TellsOfSuccess(Endless):
    """Ends its task."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TaskSuccessEvent(xcoms={"return_value": {"n": 1}})
        await asyncio.sleep(3600)


class TellsOfFailure(Endless):
    """Fails its task."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow.triggers.base import TaskFailedEvent

        yield TaskFailedEvent()


class NoGenerator(Endless):
    """Returns its event."""

    async def run(self) -> Any:  # type: ignore[override]
        return TriggerEvent(1)  # type: ignore[no-untyped-call]
