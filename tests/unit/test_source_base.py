"""The contract of sources: what a declaration becomes on its way, and what the base classes do by themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

import pytest

from event_triggers.clock import SystemClock
from event_triggers.errors import ConfigurationError, InvalidEventError
from event_triggers.message import Message
from event_triggers.sources.base import (
    BrokerConnection,
    LogStream,
    Opening,
    Outcome,
    Position,
    Settlement,
    Source,
    Stream,
    load_source,
)


@dataclass(frozen=True)
class Pigeon(Source):
    """A source as a user would write one."""

    loft: str
    rings: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seen: int = field(default=0, init=False, compare=False)

    kind: ClassVar[str] = "pigeon"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rings", tuple(self.rings))

    @property
    def name(self) -> str:
        return self.loft

    def key(self, group: str) -> Hashable:
        return (self.kind, self.loft)

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        raise NotImplementedError


@dataclass(frozen=True)
class Nicknamed(Pigeon):
    """One that compares less than it declares."""

    nickname: str = field(default="", compare=False)


class Undeclared(Pigeon):
    """Not a dataclass of its own, but it inherits one's fields."""


class Bare(Source):
    """No dataclass at all."""

    kind: ClassVar[str] = "bare"
    name = "bare"

    def key(self, group: str) -> Hashable:
        return self.kind

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        raise NotImplementedError


class Silent(Stream):
    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        nothing: tuple[list[Message], ...] = ()
        for batch in nothing:
            yield batch


class SilentLog(Silent, LogStream):
    def position(self) -> Position:
        return {}

    async def locate(self, since: datetime) -> Position:
        return {}


def message(**fields: Any) -> Message:
    return Message(source="pigeon", stream="north", position="1", id="1", body=b"", **fields)


def test_serialized_form_is_json_and_comes_back_equal() -> None:
    source = Pigeon("north", rings=("a", "b"), options={"speed": 3})
    data = source.serialize()
    assert data == {
        "type": f"{__name__}.Pigeon",
        "loft": "north",
        "rings": ["a", "b"],
        "options": {"speed": 3},
    }
    again = load_source(json.loads(json.dumps(data)))
    assert again == source
    assert isinstance(again, Pigeon)
    assert again.rings == ("a", "b")


def test_sources_that_are_the_same_are_loaded_as_one_object() -> None:
    first = load_source(Nicknamed("north", nickname="a").serialize())
    assert load_source(Nicknamed("north", nickname="a").serialize()) is first


def test_equal_sources_keep_what_their_class_does_not_compare() -> None:
    first, second = Nicknamed("north", nickname="a"), Nicknamed("north", nickname="b")
    assert first == second
    loaded = [load_source(one.serialize()) for one in (first, second)]
    assert [one.serialize() for one in loaded] == [first.serialize(), second.serialize()]


def test_loading_leaves_the_data_alone() -> None:
    data = Pigeon("north").serialize()
    copy = dict(data)
    load_source(data)
    assert data == copy


def test_templates_pass_through() -> None:
    source = Pigeon("loft-{{ ds }}", rings=("{{ params.ring }}",))
    assert load_source(source.serialize()) == source


def test_subclass_keeps_its_class() -> None:
    assert type(load_source(Undeclared("north").serialize())) is Undeclared


def test_source_that_is_no_dataclass_must_serialize_itself() -> None:
    with pytest.raises(InvalidEventError, match=r"Bare must be a dataclass, or define serialize\(\) itself"):
        Bare().serialize()


@pytest.mark.parametrize("path", ["no_such_package.Pigeon", f"{__name__}.Dove", "", "Pigeon", "json."])
def test_class_that_cannot_be_imported(path: str) -> None:
    with pytest.raises(InvalidEventError, match=r"cannot be imported here.*restart the triggerer") as caught:
        load_source({"type": path, "loft": "north"})
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["json.dumps", "json.JSONEncoder", f"{__name__}.Silent"])
def test_class_that_is_no_source_is_never_called(path: str) -> None:
    with pytest.raises(InvalidEventError, match="is not a subclass of"):
        load_source({"type": path})


@pytest.mark.parametrize("fields", [{}, {"loft": "north", "wings": 2}])
def test_fields_that_do_not_fit(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidEventError, match="does not take the fields"):
        load_source({"type": f"{__name__}.Pigeon", **fields})


async def test_what_a_source_need_not_define() -> None:
    source = Pigeon("north")
    assert source.label == "pigeon north"
    assert source.replayable is False
    assert source.routes(message())
    source.validate()
    await source.forget(Opening())


async def test_what_a_stream_need_not_define() -> None:
    stream = Silent()
    await stream.watch(Pigeon("north"))
    await stream.unwatch(Pigeon("north"))
    await stream.settle([Settlement(message(), Outcome.ACCEPTED)])


def test_a_log_counts_its_offsets_by_one() -> None:
    assert SilentLog().after(message(partition="0", offset=41)) == 42


def test_secrets_stay_out_of_sight() -> None:
    connection = BrokerConnection(
        "broker", "pigeon", "host", 1883, "user", "pass-word-1", "schema", {"sasl.password": "pass-word-2"}
    )
    assert "pass-word" not in repr(connection)
    assert "pass-word" not in str(connection)
    assert "'broker'" in repr(connection)


async def test_an_opening_without_connections_says_so() -> None:
    opening = Opening()
    assert opening.start is None
    assert isinstance(opening.clock, SystemClock)
    with pytest.raises(ConfigurationError, match="'kafka_default'"):
        await opening.connection("kafka_default")


def test_abstract_parts_must_be_there() -> None:
    class Half(Source):
        kind: ClassVar[str] = "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
