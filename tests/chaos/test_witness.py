"""The witness notices each sort of fault that it is asked about."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.chaos.witness import compare

ONE = {"id": "a1", "run": "x-1"}
MANY = [{"id": f"b{number}", "run": "x-1"} for number in range(3)]
SENT: list[dict[str, Any]] = [
    {"run": "x-1", "event": "one", "body": ONE},
    *({"run": "x-1", "event": "many", "body": body} for body in MANY),
    {"run": "x-1", "event": None, "body": {"id": "c1"}},
]
WAIT, ONE_TASK, MANY_TASK = ("x-1", "inputs.wait"), ("x-1", "inputs.one"), ("x-1", "inputs.many")


def facts(count: int) -> dict[str, Any]:
    return {"messages": [{"id": str(number), "position": f"place {number}"} for number in range(count)]}


GOOD: dict[str, Any] = {
    "runs": {"x-1": "success"},
    "states": dict.fromkeys((WAIT, ONE_TASK, MANY_TASK), "success"),
    "notes": {ONE_TASK: "kafka ... a1", MANY_TASK: "mqtt ... b2"},
    "xcoms": {
        (*ONE_TASK, "return_value"): ONE,
        (*ONE_TASK, "event"): facts(1),
        (*MANY_TASK, "return_value"): [MANY[1], MANY[0], MANY[2]],
        (*MANY_TASK, "event"): facts(3),
    },
    "marked": dict.fromkeys((WAIT, ONE_TASK, MANY_TASK), 1),
}


@pytest.mark.parametrize("note", ["mqtt ... b2", "mqtt ... place 2"])
def test_nothing_to_complain_of(note: str) -> None:
    report = compare(SENT, {**GOOD, "notes": {**GOOD["notes"], MANY_TASK: note}})
    assert report == {
        "awaited": 4,
        "unwanted": 1,
        "markers": 2,
        "lost": [],
        "doubled": [],
        "wrong": [],
        "unfinished": [],
    }


@pytest.mark.parametrize(
    ("where", "key", "value", "findings"),
    [
        ("xcoms", (*MANY_TASK, "return_value"), MANY[:2], {"lost"}),
        ("xcoms", (*MANY_TASK, "return_value"), [*MANY, MANY[0]], {"doubled"}),
        ("xcoms", (*MANY_TASK, "return_value"), [*MANY[:2], ONE], {"lost", "wrong"}),
        ("xcoms", (*MANY_TASK, "return_value"), [*MANY, {"id": "c1"}], {"wrong"}),
        ("xcoms", (*ONE_TASK, "return_value"), None, {"lost", "wrong"}),
        ("xcoms", (*ONE_TASK, "return_value"), [ONE], {"wrong"}),
        ("xcoms", (*ONE_TASK, "return_value"), {**ONE, "run": "x-2"}, {"wrong"}),
        ("xcoms", (*MANY_TASK, "event"), facts(2), {"wrong"}),
        ("xcoms", (*MANY_TASK, "event"), {"messages": [{"id": "0"}] * 3}, {"wrong"}),
        ("notes", ONE_TASK, "kafka ... a2", {"wrong"}),
        ("marked", ONE_TASK, 2, {"doubled"}),
        ("states", ONE_TASK, None, {"unfinished"}),
        ("states", WAIT, "failed", {"unfinished"}),
        ("runs", "x-1", "running", {"unfinished"}),
    ],
)
def test_a_fault(where: str, key: object, value: object, findings: set[str]) -> None:
    airflow = copy.deepcopy(GOOD)
    airflow[where][key] = value
    report = compare(SENT, airflow)
    assert {name for name in ("lost", "doubled", "wrong", "unfinished") if report[name]} == findings
