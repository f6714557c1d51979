"""What a trigger of Airflow is outside of Airflow's triggerer: its arguments as JSON, an instance of it, its events.

The only module of the sources that knows Airflow's triggers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import msgspec

from event_triggers.errors import ConfigurationError, InvalidEventError
from event_triggers.text import text_of

__all__ = [
    "body_of",
    "class_named",
    "described",
    "encoded",
    "json_of",
    "let_it_block",
    "made",
    "refuse_secrets",
    "tells_of_failure",
]

_SECRET = re.compile(
    r"passw(or)?d|passphrase|secret|token|api_?key|private_key|authorization|credential", re.IGNORECASE
)


# ---------------------------------------------------------------------- arguments


def described(trigger: object) -> tuple[str, dict[str, Any]]:
    """The class and the arguments of a trigger, as its own ``serialize()`` gives them.

    :raises InvalidEventError: when it is no trigger, or does not serialise itself.
    """
    from airflow.triggers.base import BaseTrigger

    if not isinstance(trigger, BaseTrigger):
        raise InvalidEventError(
            f"FromTrigger takes one of Airflow's triggers, or the dotted path of its class with kwargs; got "
            f"{type(trigger).__name__}"
        )
    try:
        path, kwargs = trigger.serialize()
    except Exception as error:
        raise InvalidEventError(
            f"FromTrigger: {type(trigger).__qualname__}.serialize() raised {type(error).__name__}: {text_of(error)}"
        ) from error
    return path, dict(kwargs)


def encoded(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments as plain JSON, and apart from them what of it stands for something else.

    Strings stay where they are, so that templates in them are rendered. What a template is rendered to can never be
    taken for an object of another type, since those are named in the second part.

    :raises InvalidEventError: naming an argument that Airflow itself could not store.
    """
    kinds: dict[str, str] = {}
    return {str(name): _encode(value, (str(name),), kinds) for name, value in kwargs.items()}, kinds


def _encode(value: Any, path: tuple[str | int, ...], kinds: dict[str, str]) -> Any:
    if value is None or type(value) in (bool, int, float, str) or hasattr(value, "resolve"):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(one, (*path, key), kinds) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        if not isinstance(value, list):
            kinds[json.dumps(path)] = "tuple" if isinstance(value, tuple) else "set"
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_encode(one, (*path, number), kinds) for number, one in enumerate(items)]
    kinds[json.dumps(path)] = _by_airflow(value, path)
    return None


def _by_airflow(value: Any, path: tuple[str | int, ...]) -> str:
    from airflow.serialization.serialized_objects import BaseSerialization

    try:
        return json.dumps(BaseSerialization.serialize(value, strict=True), sort_keys=True)
    except Exception as error:
        where = ".".join(map(str, path))
        raise InvalidEventError(
            f"FromTrigger: the argument {where!r} is a {type(value).__name__}, which Airflow cannot store ({error})"
        ) from error


def _decode(value: Any, path: tuple[str | int, ...], kinds: Mapping[str, str]) -> Any:
    kind = kinds.get(json.dumps(path))
    if isinstance(value, dict):
        return {key: _decode(one, (*path, key), kinds) for key, one in value.items()}
    if isinstance(value, list):
        items = [_decode(one, (*path, number), kinds) for number, one in enumerate(value)]
        return tuple(items) if kind == "tuple" else set(items) if kind == "set" else items
    if kind is None or value is not None:
        return value
    from airflow.serialization.serialized_objects import BaseSerialization

    return BaseSerialization.deserialize(json.loads(kind))


def refuse_secrets(path: str, kwargs: Any, where: tuple[str, ...] = ()) -> None:
    """Refuse a secret that is written down: it would be stored with the DAG, where everyone can read it.

    Airflow encrypts the arguments of a trigger that is running. But a DAG and the rendered fields of a task are stored
    and shown as they are.

    :raises InvalidEventError: naming the argument.
    """
    if isinstance(kwargs, Mapping):
        for name, value in kwargs.items():
            refuse_secrets(path, value, (*where, str(name)))
    elif isinstance(kwargs, list):
        for value in kwargs:
            refuse_secrets(path, value, where)
    elif isinstance(kwargs, str) and kwargs and where and _SECRET.search(where[-1]) and "{{" not in kwargs:
        raise InvalidEventError(
            f"FromTrigger({path}): the argument {'.'.join(where)!r} looks like a secret, and would be stored with the "
            f"DAG in plain text; give a template, such as '{{{{ conn.my_connection.password }}}}', or a connection id"
        )


# ---------------------------------------------------------------------- instances


def class_named(path: str) -> Callable[..., Any]:
    """The trigger class at a dotted path.

    :raises ConfigurationError: when there is none here.
    """
    module_name, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module_name), name)
    except Exception as error:  # importing runs the module, which may raise anything
        raise ConfigurationError(
            f"the trigger class {path!r} cannot be imported here ({type(error).__name__}: {text_of(error)}); install "
            f"the provider that brings it in the triggerer too, and restart the triggerer"
        ) from error
    if not isinstance(cls, type) or not hasattr(cls, "run"):
        raise ConfigurationError(f"{path!r} is no class of triggers")
    return cls


def made(path: str, kwargs: Mapping[str, Any], kinds: Mapping[str, str]) -> Any:
    """An instance of a trigger, as Airflow's triggerer makes it, except that it belongs to no task.

    :raises ConfigurationError: when its class cannot be imported, or does not take these arguments.
    """
    cls = class_named(path)
    try:
        trigger = cls(**{name: _decode(value, (name,), kinds) for name, value in kwargs.items()})
    except Exception as error:
        raise ConfigurationError(
            f"the trigger {path} does not take its arguments {sorted(kwargs)}: {type(error).__name__}: {text_of(error)}"
        ) from error
    # Not every trigger calls the constructor of its base class, which sets them.
    for name in ("trigger_id", "triggerer_job_id", "timeout_after", "asset_state_store"):
        if not hasattr(trigger, name):
            setattr(trigger, name, None)
    return trigger


async def let_it_block() -> None:
    """Let the code of this task ask Airflow in the way of threads: a hook that looks a connection up does."""
    if os.environ.get("AIRFLOW_DISABLE_GREENBACK_PORTAL", "").lower() == "true":
        return
    try:
        import greenback
    except ImportError:
        return  # an Airflow that does not need it
    await greenback.ensure_portal()


# ---------------------------------------------------------------------- events


def tells_of_failure(event: Any) -> bool:
    """Whether a trigger says with this event that its task is to fail."""
    state = getattr(event, "task_instance_state", None)
    return state is not None and str(getattr(state, "value", state)) == "failed"


def body_of(event: Any, path: str) -> bytes:
    """What an event carries, as the body of a message.

    :param path: the dotted path of the body in the payload, or empty. Text and bytes there are taken as they are.
    """
    payload = getattr(event, "payload", event)
    state = getattr(event, "task_instance_state", None)
    if state is not None:
        payload = {"state": str(getattr(state, "value", state)), "xcoms": getattr(event, "xcoms", None)}
    if path:
        found, value = _at(payload, path)
        if found and isinstance(value, str | bytes):
            return value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
        payload = value if found else payload
    return json_of(payload)


def _at(value: Any, path: str) -> tuple[bool, Any]:
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return False, None
    return True, value


def json_of(value: Any) -> bytes:
    """A value as JSON: as Airflow serialises what JSON does not know, and what it does not either as text."""
    # Half a surrogate pair, a loop: whatever a trigger hands out, that it has fired is what counts.
    for encode in (_compact, _tolerant):
        with suppress(Exception):
            return encode(value)
    return msgspec.json.encode(_text_of(value).encode("utf-8", "backslashreplace").decode())


def _compact(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_serialised, order="deterministic")


def _tolerant(value: Any) -> bytes:
    return json.dumps(value, default=_serialised).encode()


def _serialised(value: Any) -> Any:
    if isinstance(value, dict | list | tuple | set | frozenset):
        return dict(value) if isinstance(value, dict) else list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()  # a moment of pendulum's, which Airflow would serialise for itself alone
    try:
        from airflow.sdk import serde
    except ImportError:
        from airflow.serialization import serde  # type: ignore[no-redef,attr-defined]  # before Airflow 3.2
    try:
        return serde.serialize(value)
    except Exception:
        return _text_of(value)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as problem:
        return f"(a {type(value).__name__}, whose text cannot be had: {type(problem).__name__})"
