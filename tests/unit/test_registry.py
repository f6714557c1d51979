"""Sources by name: those of this package, and those that another distribution registers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from event_triggers import KafkaTopic
from event_triggers.cli import main
from event_triggers.errors import InvalidEventError
from event_triggers.sources import find, registered
from event_triggers.sources.base import load_source

MODULE = """
from contextlib import asynccontextmanager
from dataclasses import dataclass
from event_triggers import Source

@dataclass(frozen=True)
class Pigeons(Source):
    '''Letters that pigeons bring.'''
    loft: str
    kind = "pigeon"
    conn_type = "loft"
    client = "no_such_client"
    install = "pigeons[client]"

    def key(self, group):
        return (self.kind, self.loft)

    @property
    def name(self):
        return self.loft

    @asynccontextmanager
    async def open(self, opening):
        raise NotImplementedError

class OtherKind(Pigeons):
    kind = "dove"

no_source = 3
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a distribution with these entry points, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pigeons.py").write_text(MODULE)
    (tmp_path / "torn.py").write_text("raise RuntimeError('torn apart')")

    def make(distribution: str = "pigeons", **points: str) -> None:
        folder = tmp_path / f"{distribution}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[event_triggers.sources]", *lines, ""]))
        importlib.invalidate_caches()

    yield make
    sys.modules.pop("pigeons", None)


def test_ours_are_registered_like_any_other() -> None:
    assert find("kafka") is KafkaTopic
    ours = {"amqp", "asset", "kafka", "mqtt", "nats", "redis", "sqs", "webhook"}
    assert ours <= {one.kind for one in registered()}
    assert [one.error for one in registered()] == [None] * len(registered())


def test_source_of_another_package_is_found_and_loaded_by_its_name(install: Install) -> None:
    install(pigeon="pigeons:Pigeons")
    pigeons = find("pigeon")
    source = load_source({"type": "pigeon", "loft": "north"})
    assert type(source) is pigeons
    assert source.name == "north"
    assert load_source(source.serialize()) == source


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(InvalidEventError, match=r"'kafak'; did you mean 'kafka'\? There are: .*kafka, .*sqs"):
        find("kafak")
    with pytest.raises(InvalidEventError, match="no source is registered by the name 'zzz'"):
        load_source({"type": "zzz"})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("torn:Pigeons", r"source 'pigeon' \(torn:Pigeons, of pigeons 1.2\) cannot be imported: RuntimeError: torn"),
        ("nowhere:Pigeons", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("pigeons:Nobody", "cannot be imported: AttributeError"),
        ("pigeons:no_source", "is not a subclass of event_triggers.Source"),
        ("pigeons:OtherKind", "has the kind 'dove'; name the entry point like the kind"),
    ],
)
def test_broken_entry_point_is_told_and_harms_no_other(install: Install, value: str, error: str) -> None:
    install(pigeon=value)
    with pytest.raises(InvalidEventError, match=error):
        find("pigeon")
    assert find("kafka") is KafkaTopic
    assert [one.kind for one in registered() if one.error] == ["pigeon"]


def test_name_given_twice_is_refused(install: Install) -> None:
    install(pigeon="pigeons:Pigeons")
    install("doves", pigeon="pigeons:OtherKind")
    expected = r"registered more than once, by doves 1.2 \(pigeons:OtherKind\) and pigeons 1.2 \(pigeons:Pigeons\)"
    with pytest.raises(InvalidEventError, match=expected):
        find("pigeon")


def test_same_entry_point_on_two_paths_is_one(install: Install) -> None:
    install(pigeon="pigeons:Pigeons")
    install("pigeons-again", pigeon="pigeons:Pigeons")
    assert find("pigeon").__name__ == "Pigeons"


def test_the_command_lists_what_is_there_and_what_is_missing(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(pigeon="pigeons:Pigeons", torn="torn:Pigeons")
    assert main(["sources"]) == 1
    said = capsys.readouterr().out
    assert "kafka: KafkaTopic of airflow-event-triggers" in said
    assert (
        "pigeon: Pigeons of pigeons 1.2, queue, connection type loft, "
        "MISSING Python package no_such_client: pip install 'pigeons[client]'\n"
    ) in said
    assert "torn: BROKEN, source 'torn' (torn:Pigeons, of pigeons 1.2) cannot be imported: RuntimeError" in said


def test_the_command_shows_one(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "kafka"]) == 0
    said = capsys.readouterr().out
    assert "  from event_triggers.sources.kafka import KafkaTopic\n" in said
    assert "KafkaTopic(topic:" in said
    assert main(["sources", "zzz"]) == 2
    assert "no source is registered by the name 'zzz'" in capsys.readouterr().err
