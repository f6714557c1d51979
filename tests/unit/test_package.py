"""The package as a whole: what it says of itself, and what it needs to be imported."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import event_triggers
from event_triggers.provider_info import get_provider_info
from tests.support import missing

ROOT = Path(event_triggers.__file__).parent

SDKS = {
    "aiokafka": "kafka",
    "confluent_kafka": "kafka",
    "aiobotocore": "sqs",
    "boto3": "sqs",
    "botocore": "sqs",
    "aiomqtt": "mqtt",
    "paho": "mqtt",
    "aio_pika": "amqp",
    "aiormq": "amqp",
    "redis": "redis",
    "nats": "nats",
    "nkeys": "nats",
}
"""The kind of source that each broker's client library belongs to."""


# What Airflow is told


def test_the_provider_info_is_what_airflow_asks_for() -> None:
    schema = json.loads((files("airflow") / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_finds_the_provider() -> None:
    providers = importlib.import_module("airflow.providers_manager").ProvidersManager().providers
    if "airflow-event-triggers" not in providers:
        missing("the package is not installed, so it has no entry point (pip install -e .)")
    assert providers["airflow-event-triggers"].version == event_triggers.__version__


def test_every_connection_type_has_its_hook() -> None:
    for connection in get_provider_info()["connection-types"]:
        module, _, name = connection["hook-class-name"].rpartition(".")
        hook = getattr(importlib.import_module(module), name)
        assert hook.conn_type == connection["connection-type"]
        assert hook.hook_name == connection["hook-name"]


def test_every_option_that_is_read_is_described() -> None:
    options: dict[str, dict[str, Any]] = get_provider_info()["config"]["event_triggers"]["options"]
    read = {option for tree in _trees().values() for option in _options_read(tree)}
    assert read == set(options)


def _options_read(tree: ast.Module) -> Iterator[str]:
    """The names in calls like ``conf.getint("event_triggers", "name", ...)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("get"):
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(values) == 2 and values[0] == "event_triggers":
                yield str(values[1])


def test_the_distribution_says_the_same_as_the_package() -> None:
    try:
        about = metadata.metadata("airflow-event-triggers")
    except metadata.PackageNotFoundError:
        missing("the package is not installed, so it has no metadata (pip install -e .)")
    assert about["Version"] == event_triggers.__version__
    assert {"all", "amqp", "dev", "kafka", "mqtt", "nats", "redis", "sqs"} <= set(about.get_all("Provides-Extra") or ())
    assert (ROOT / "py.typed").is_file()


# Who imports what


def _trees() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _imported(tree: ast.AST) -> Iterator[str]:
    """The top-level modules that are imported anywhere in a file, in functions too; not those for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        yield from _imported(node)


def test_a_broker_s_sdk_is_imported_by_its_own_source_only() -> None:
    for path, tree in _trees().items():
        for module in set(_imported(tree)) & set(SDKS):
            kind = SDKS[module]
            own = path == f"sources/{kind}.py" or path.startswith(f"sources/_{kind}_")
            assert own, f"{path} imports {module}, which is for the {kind} source alone"


def test_everything_imports_without_any_extra() -> None:
    modules = [
        info.name
        for info in pkgutil.walk_packages([str(ROOT)], "event_triggers.")
        # The tests' own part needs pytest; files behind a source are what it imports lazily.
        if ".testing.conformance" not in info.name and not info.name.rpartition(".")[2].startswith("_")
    ]
    done = _python(
        "import importlib, sys",
        f"sys.meta_path.insert(0, type('Without', (), {{'find_spec': staticmethod(_find_spec({sorted(SDKS)!r}))}}))",
        f"[importlib.import_module(name) for name in {modules!r}]",
        "import event_triggers",
        "[getattr(event_triggers, name) for name in event_triggers.__all__]",
    )
    assert done.returncode == 0, done.stderr


def test_looking_at_the_package_imports_next_to_nothing() -> None:
    done = _python("import event_triggers.provider_info, sys", "print(sorted(m for m in sys.modules if '.' not in m))")
    assert done.returncode == 0, done.stderr
    assert not {"airflow", "httpx", "msgspec", *SDKS} & set(ast.literal_eval(done.stdout))


def _python(*lines: str) -> subprocess.CompletedProcess[str]:
    prelude = """
def _find_spec(missing):
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return find_spec
"""
    program = "\n".join([prelude, *lines])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT.parent, check=False, capture_output=True, text=True
    )


# The plugin


@pytest.mark.filterwarnings("ignore")  # the routes import Airflow's own, and those warn of what they import
def test_airflow_finds_the_plugin() -> None:
    found = {point.name: point.value for point in metadata.entry_points(group="airflow.plugins")}
    if "event_triggers" not in found:
        missing("the package is not installed, so it has no entry point (pip install -e .)")
    plugins = importlib.import_module("airflow.plugins_manager")
    assert "event_triggers" in {plugin["name"] for plugin in plugins.get_plugin_info(["fastapi_apps"])}


def test_who_is_no_api_server_loads_no_application() -> None:
    code = "import sys, event_triggers.plugin; sys.exit('event_triggers.server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
