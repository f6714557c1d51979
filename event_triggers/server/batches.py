"""Many marks of many runs, in short transactions, each mark answered whatever becomes of the others.

Flow: who asks must be allowed to; payloads that Airflow reserves are refused; then the runs are written one after the
other, first those that nobody has locked. The others are waited for together, and written in one transaction. One that
lost against another is repeated. One that fails over something in it is repeated run by run, then mark by mark, so that
only the mark that is to blame is refused.

Invariants: between two transactions the thread holds no lock and no connection, and lets the other requests of this
API server go first. What is answered with status 200 is committed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.dag import DagModel
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from event_triggers.marks import Answer, Mark, RunMarks
from event_triggers.server.conflicts import lost_against_another
from event_triggers.server.refusals import reserved_key_in
from event_triggers.server.writing import Author, Busy, can_wait, write_run, write_runs_when_free
from event_triggers.text import plain_logger, shown, text_of

__all__ = ["DatabaseAway", "write_batch"]

log = plain_logger(__name__)

_Written = TypeVar("_Written")

_NEEDED: tuple[tuple[Any, DagAccessEntity], ...] = (
    ("PUT", DagAccessEntity.TASK_INSTANCE),
    ("GET", DagAccessEntity.XCOM),
    ("POST", DagAccessEntity.XCOM),
    ("PUT", DagAccessEntity.XCOM),
)
"""What the public routes that do the same ask for."""
_SWITCH = 0.0005
"""Seconds that this thread keeps Python's lock from others."""
_BREATH = 0.001
"""Seconds between two transactions, for whoever else wants this process."""
_LONGEST_WAIT = 5.0
"""Seconds to wait for somebody's lock. A scheduler at work holds 20 runs for less than one, and then begins again."""
_WAIT_ALONE = 1.0
"""Seconds for each by itself, where one of them was held for longer."""
_MOST_TOGETHER = 20
"""So many runs that somebody has locked are written in one transaction."""
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0)
"""Seconds before each try at one that somebody has locked, where the database cannot wait in bounded time."""
_MOST_TRIES = 5
_FIRST_PAUSE = 0.02


class DatabaseAway(Exception):
    """Airflow's database does not answer; whoever asks is to ask again."""


def write_batch(runs: Sequence[RunMarks], user: Any) -> list[list[Answer]]:
    """Make these marks as this user of Airflow's.

    :raises DatabaseAway: when the database cannot be reached; some runs may have been written.
    """
    author = Author(str(user.get_id()), str(user.get_name()))
    try:
        with _giving_way():
            return _write_all(runs, user, author)
    except (OperationalError, PoolTimeout) as error:
        raise DatabaseAway(text_of(error)) from error


def _write_all(runs: Sequence[RunMarks], user: Any, author: Author) -> list[list[Answer]]:
    answers: list[list[Answer]] = [[] for _ in runs]
    allowed: dict[str, bool] = {}
    later: list[int] = []
    for number, run in enumerate(runs):
        if run.dag_id not in allowed:
            allowed[run.dag_id] = _may_mark(run.dag_id, user)
        if not allowed[run.dag_id]:
            detail = f"Forbidden: edit task instances and read, create and edit XComs of DAG {run.dag_id!r}"
            answers[number] = [Answer(status=403, detail=detail) for _ in run.marks]
            continue
        try:
            answers[number] = _write(run, author)
        except Busy:
            later.append(number)
        time.sleep(_BREATH)
    for begin in range(0, len(later), _MOST_TOGETHER):
        some = later[begin : begin + _MOST_TOGETHER]
        for number, answer in zip(some, _write_when_free([runs[one] for one in some], author), strict=True):
            answers[number] = answer
    return answers


@contextmanager
def _giving_way() -> Iterator[None]:
    """Let the other threads of this process have Python's lock sooner than its usual 5 ms.

    A request passes between event loop and threads several times, and would wait so long for us each time.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, _SWITCH))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _may_mark(dag_id: str, user: Any) -> bool:
    manager = get_auth_manager()
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    return all(
        manager.is_authorized_dag(method=method, access_entity=entity, details=details, user=user)
        for method, entity in _NEEDED
    )


def _write_when_free(runs: Sequence[RunMarks], author: Author) -> list[list[Answer]]:
    """Write runs that somebody has locked, as soon as they are free; nobody else is to wait for that for ever."""
    if not can_wait():
        return [_write_some_time(run, author) for run in runs]
    split = [_split(run) for run in runs]
    written = _write_together([run for run, _ in split], author, _LONGEST_WAIT)
    return [_joined(one, refusals) for one, (_, refusals) in zip(written, split, strict=True)]


def _write_together(runs: Sequence[RunMarks], author: Author, within: float) -> list[list[Answer]]:
    try:
        return _repeatedly(lambda: write_runs_when_free(runs, author, within=within))
    except Busy:
        if len(runs) > 1:
            return [_write_together([run], author, _WAIT_ALONE)[0] for run in runs]
        return [_locked(run) for run in runs]
    except (OperationalError, PoolTimeout):
        raise
    except Exception as error:
        if len(runs) > 1:
            return [_write_together([run], author, within)[0] for run in runs]
        (run,) = runs
        if len(run.marks) == 1:
            return [[_refusal(run, error)]]
    return [[_write_together([one], author, within)[0][0] for one in _apart(run)]]


def _write_some_time(run: RunMarks, author: Author) -> list[Answer]:
    for pause in _PAUSES:
        try:
            return _write(run, author)
        except Busy:
            time.sleep(pause)
    return _locked(run)


def _locked(run: RunMarks) -> list[Answer]:
    return [Answer(status=503, detail="the run is locked by somebody else, and was so for seconds") for _ in run.marks]


def _write(run: RunMarks, author: Author) -> list[Answer]:
    free, refusals = _split(run)
    return _joined(_write_well(free, author) if free.marks else [], refusals)


def _split(run: RunMarks) -> tuple[RunMarks, list[Answer | None]]:
    """A run with the marks that can be made, and for each of all the refusal if it cannot."""
    refusals = [_reserved(mark) for mark in run.marks]
    marks = [mark for mark, refusal in zip(run.marks, refusals, strict=True) if refusal is None]
    return RunMarks(run.dag_id, run.run_id, marks), refusals


def _joined(written: Sequence[Answer], refusals: Sequence[Answer | None]) -> list[Answer]:
    answers = iter(written)
    return [next(answers) if refusal is None else refusal for refusal in refusals]


def _reserved(mark: Mark) -> Answer | None:
    for number, message in enumerate(mark.messages or ()):
        key = reserved_key_in(message.payload)
        if key is not None:
            detail = f"XCom value contains reserved serialization keys: {key}"
            return Answer(status=422, detail=detail, payload=number)
    return None


def _write_well(run: RunMarks, author: Author) -> list[Answer]:
    try:
        return _repeatedly(lambda: write_run(run, author))
    except (Busy, OperationalError, PoolTimeout):
        raise
    except Exception as error:
        if len(run.marks) == 1:
            return [_refusal(run, error)]
    return [answer for one in _apart(run) for answer in _write_well(one, author)]


def _apart(run: RunMarks) -> list[RunMarks]:
    return [RunMarks(run.dag_id, run.run_id, [mark]) for mark in run.marks]


def _refusal(run: RunMarks, error: Exception) -> Answer:
    (mark,) = run.marks
    log.error("%s of %s/%s could not be marked: %s", mark.task_id, run.dag_id, run.run_id, text_of(error))
    payload = 0 if mark.messages and len(mark.messages) == 1 else None
    return Answer(status=500, detail=shown(text_of(error), 500), payload=payload)


def _repeatedly(write: Callable[[], _Written]) -> _Written:
    for tries in range(_MOST_TRIES):
        try:
            return write()
        except DBAPIError as error:
            if tries + 1 == _MOST_TRIES or not lost_against_another(error):
                raise
        time.sleep(_FIRST_PAUSE * 2**tries)
    raise AssertionError("unreachable")
