"""What pytest loads wherever this package is installed: it serves the conformance suite, and imports nothing for it.

The suite's tests are coroutines. Where pytest-asyncio is installed it runs them, in whichever mode, and fixtures may be
asynchronous; elsewhere this plugin runs them, and the ``harness`` fixture must be an ordinary one.
"""

from __future__ import annotations

import asyncio
import inspect

import pytest

__all__: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Let failures inside the suite show their values, as in any test module."""
    pytest.register_assert_rewrite("event_triggers.testing.conformance")
    if not _has_asyncio(config):
        config.addinivalue_line("markers", "asyncio: a coroutine of a conformance suite of event_triggers.")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test of the suite where nobody else does."""
    ours = getattr(pyfuncitem.cls, "event_triggers_conformance", False)
    if not ours or _has_asyncio(pyfuncitem.config):
        return None
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(function(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _has_asyncio(config: pytest.Config) -> bool:
    """Whether pytest-asyncio is there, by its entry point or by ``-p``."""
    return any(config.pluginmanager.hasplugin(name) for name in ("asyncio", "pytest_asyncio", "pytest_asyncio.plugin"))
