"""``python -m benchmarks.bench_matching``: what finding the patterns of a document costs, as ratios against targets.

Everything is measured in one run, in turns and many times, and the quickest turn counts: a ratio of two such times says
the same on a fast and on a busy machine. Documents are decoded from JSON text each time, as messages are.
Exits 1 when a target is missed.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from benchmarks.targets import Target
from event_triggers.matching import PatternIndex, matches

__all__ = ["main"]

FEW, MANY = 10, 100_000
ONE_BY_ONE = 1_000
PER_TURN = 250
TURNS = 120
CHANGES = 3_000

decode = msgspec.json.Decoder().decode
Index = PatternIndex[int]


def pattern(number: int) -> dict[str, Any]:
    """Two exact fields; every tenth has an operator, too."""
    made: dict[str, Any] = {
        "table": [f"table_{number:06}"],
        "date": [f"2026-{number % 12 + 1:02}-{number % 28 + 1:02}"],
    }
    if number % 10 == 0:
        made["rows"] = [{"numeric": [">", number % 1000]}]
    return made


def document(number: int, fields: int) -> bytes:
    """A document that one of the patterns matches."""
    made = {
        "id": f"0f8fad5b-d9cb-469f-a165-{number:012}",
        "table": f"table_{number:06}",
        "date": f"2026-{number % 12 + 1:02}-{number % 28 + 1:02}",
        "status": "COMPLETE",
        "rows": 12345,
        "source": {"system": "erp", "region": "eu-west-1"},
        "tags": ["daily", "final"],
        "ok": True,
        "started": "2026-11-22T10:15:30Z",
        "finished": "2026-11-22T10:25:30Z",
        **{f"field_{place}": f"the value of field {place}" for place in range(fields)},
    }
    return json.dumps(made).encode()


def index_of(count: int) -> Index:
    """An index of so many patterns."""
    index = Index()
    for number in range(count):
        index.add(pattern(number), number)
    return index


def quickest(
    works: dict[str, tuple[Callable[[bytes], object], Sequence[bytes]]], turns: int = TURNS
) -> dict[str, float]:
    """Seconds for one document, of each kind of work: of its quickest turn."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(turns):
        for name, (work, documents) in works.items():
            start = turn * PER_TURN % len(documents)
            mine = documents[start : start + PER_TURN]
            begin = time.perf_counter()
            for one in mine:
                work(one)
            best[name] = min(best[name], (time.perf_counter() - begin) / len(mine))
    return best


def costs(few: Index, many: Index, fields: int) -> list[Target]:
    """The targets about documents of one size."""
    draw = random.Random(1)
    for_many = [document(draw.randrange(MANY), fields) for _ in range(PER_TURN * 40)]
    for_few = [document(draw.randrange(FEW), fields) for _ in range(PER_TURN * 40)]
    assert all(len(many.matching(decode(one))) == 1 for one in for_many)
    assert all(len(few.matching(decode(one))) == 1 for one in for_few)
    times = quickest(
        {
            "decode": (partial(_only_decode, many), for_many),
            "few": (partial(_look_up, few), for_few),
            "many": (partial(_look_up, many), for_many),
        }
    )
    # By itself, since it needs the same places in the processor's caches.
    times |= quickest(
        {
            "dict, few": (partial(_look_up_plainly, _dict_of(FEW)), for_few),
            "dict, many": (partial(_look_up_plainly, _dict_of(MANY)), for_many),
        }
    )
    patterns = [pattern(number) for number in range(ONE_BY_ONE)]
    begin = time.perf_counter()
    for one in for_many[:3]:
        read = decode(one)
        assert sum(matches(each, read) for each in patterns) <= 1
    one_by_one = (time.perf_counter() - begin) / 3
    size = len(for_many[0])
    print(
        f"documents of {size} bytes: decoding {times['decode'] * 1e6:.2f} us; decoding and looking up in {FEW} "
        f"patterns {times['few'] * 1e6:.2f} us, in {MANY} {times['many'] * 1e6:.2f} us; {ONE_BY_ONE} one by one "
        f"{one_by_one * 1e6:.0f} us"
    )
    print(
        f"  for comparison, a dict of dicts from the two values to a number, the least that can be done in Python: "
        f"with {MANY} entries {times['dict, many'] / times['dict, few']:.2f} times the cost with {FEW}, from "
        f"{times['dict, few'] * 1e6:.2f} to {times['dict, many'] * 1e6:.2f} us. What grows is the way to memory."
    )
    return [
        Target(f"{size} bytes: {MANY} patterns against {FEW}", times["many"] / times["few"], 1.3),
        Target(f"{size} bytes: looking up against decoding", (times["many"] - times["decode"]) / times["decode"], 2),
        Target(
            f"{size} bytes: {ONE_BY_ONE} patterns one by one against looking up",
            one_by_one / times["many"],
            25,
            at_least=True,
        ),
    ]


def changes(index: Index) -> list[Target]:
    """The targets about adding and removing."""
    added, removed = [], []
    draw = random.Random(2)
    for number in draw.sample(range(MANY), CHANGES):
        begin = time.perf_counter()
        index.remove(number)
        removed.append(time.perf_counter() - begin)
        again = pattern(number)
        begin = time.perf_counter()
        index.add(again, number)
        added.append(time.perf_counter() - begin)
    return [
        Target(f"adding one of {MANY}, median", statistics.median(added) * 1e6, 50, "us"),
        Target(f"removing one of {MANY}, median", statistics.median(removed) * 1e6, 50, "us"),
    ]


def measured() -> tuple[Index, Target]:
    """The index of many patterns, and what it takes; the patterns themselves are not kept by it."""
    gc.collect()
    tracemalloc.start()
    index = index_of(MANY)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return index, Target(f"memory of each of {MANY} patterns", taken / MANY, 1024, "bytes")


def _address(number: int) -> str:
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"


OPERATORS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[int], object]]] = {
    "prefix": (lambda number: {"prefix": f"table_{number:06}"}, lambda number: f"table_{number:06}"),
    "suffix": (lambda number: {"suffix": f"_{number:06}"}, lambda number: f"table_{number:06}"),
    "equals-ignore-case": (lambda number: {"equals-ignore-case": f"T_{number:06}"}, lambda number: f"t_{number:06}"),
    "wildcard": (lambda number: {"wildcard": f"*le_{number:06}*"}, lambda number: f"table_{number:06}"),
    "numeric": (lambda number: {"numeric": [">=", number, "<", number + 0.5]}, lambda number: number),
    "cidr": (lambda number: {"cidr": f"{_address(number)}/32"}, _address),
}


def operators_alone() -> list[Target]:
    """Patterns that differ in nothing but one operator cost no scan either."""
    targets = []
    for name, (operator, value) in OPERATORS.items():
        works: dict[str, tuple[Callable[[bytes], object], Sequence[bytes]]] = {}
        for count in (FEW, MANY // 5):
            index = Index()
            for number in range(count):
                index.add({"kind": ["x"], "value": [operator(number)]}, number)
            documents = [
                json.dumps({"kind": "x", "value": value(number % count)}).encode() for number in range(PER_TURN)
            ]
            assert all(len(index.matching(decode(one))) == 1 for one in documents)
            works[str(count)] = (partial(_look_up, index), documents)
        times = quickest(works, 20)
        ratio = times[str(MANY // 5)] / times[str(FEW)]
        targets.append(Target(f"{name} alone: {MANY // 5} patterns against {FEW}", ratio, 3))
    return targets


def _look_up(index: Index, text: bytes) -> object:
    return index.matching(text)


def _dict_of(count: int) -> dict[str, dict[str, int]]:
    made: dict[str, dict[str, int]] = {}
    for number in range(count):
        values = pattern(number)
        made.setdefault(values["date"][0], {})[values["table"][0]] = number
    return made


def _look_up_plainly(known: dict[str, dict[str, int]], text: bytes) -> object:
    read = decode(text)
    inner = known.get(read.get("date"))
    found = None if inner is None else inner.get(read.get("table"))
    return [] if found is None else [found]


def _only_decode(index: Index, text: bytes) -> object:
    return decode(text)


def main() -> int:
    """Run it all and print the report."""
    few = index_of(FEW)
    many, memory = measured()
    targets = [*costs(few, many, 0), *costs(few, many, 17), *changes(many), memory, *operators_alone()]
    print(*targets, sep="\n")
    return 0 if all(target.met for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
