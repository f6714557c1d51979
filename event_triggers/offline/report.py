"""What a replay has shown, as text: what each message did, why it did not, and what is missing in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from event_triggers.clock import parse_datetime
from event_triggers.correlation import NoValueError, value_of
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event, load_callable
from event_triggers.matching import explain
from event_triggers.message import Message
from event_triggers.offline.dagfile import Group
from event_triggers.offline.replaying import Replayed, Step
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.terms import since_of
from event_triggers.text import shown
from event_triggers.verdict import Status

__all__ = ["report"]


def report(replayed: Replayed, word: str = "line") -> Iterator[str]:
    """The report, line by line.

    :param word: what a message is called: by the line of a file, or by its place in a list.
    """
    group = replayed.group
    yield f"DAG {group.dag_id}, group {group.task_id}: {_terms(replayed)}"
    for step in replayed.steps:
        yield f"{word} {step.line.number}, {step.line.place}, {_moment(step)}"
        for text in _of_step(replayed, step):
            yield f"  {text}"
    yield from _end(replayed)


def _terms(replayed: Replayed) -> str:
    terms, deadline = replayed.group.terms, replayed.timeline.deadline
    begins = replayed.group.run.run_after.isoformat(timespec="seconds")
    return f"condition {terms.condition!r}, from {begins} until {deadline.isoformat(timespec='seconds')}"


def _moment(step: Step) -> str:
    return step.at.isoformat(timespec="seconds")


def _of_step(replayed: Replayed, step: Step) -> Iterator[str]:
    events = replayed.group.events
    if not step.messages:
        sources = ", ".join(dict.fromkeys(event.source.label for event in events.values()))
        yield f"no event of the group listens there; its sources are {sources}"
        return
    for name, event in events.items():
        message = step.messages.get(event.source)
        if message is None:
            continue
        took = replayed.took[name]
        if step.line.number in took:
            number = f" ({took.index(step.line.number) + 1} of {event.count})" if event.count > 1 else ""
            yield f"{name}: counts{number}"
        else:
            yield f"{name}: does not count: {_why_not(replayed, step, name, event, message)}"


def _why_not(replayed: Replayed, step: Step, name: str, event: Event, message: Message) -> str:
    reason = _own_reason(event, message, replayed.group)
    if reason is not None:
        return reason
    if step.over:
        return "the group was over"
    before = step.before[name]
    if before == "success":
        return f"{name} had come already"
    if before is not None:
        return f"the time of {name} was up"
    return _reason_of_others(replayed.group, name, event, message)


def _own_reason(event: Event, message: Message, group: Group) -> str | None:
    """What of the event itself keeps this message from counting."""
    source = event.source
    if not source.routes(message):
        if isinstance(source, KafkaTopic):
            key = None if message.key is None else shown(message.key.decode(errors="replace"))
            return f"its key is {key!r}, wanted {source.message_key!r}"
        return f"it is not for {source.label}"
    since = since_of(event, group.terms.timezone)
    if since is not None and message.timestamp is not None and message.timestamp < since:
        return f"it is stamped {message.timestamp.isoformat()}, before {since.isoformat()}"
    if event.until is not None and message.timestamp is not None and message.timestamp > parse_datetime(event.until):
        return f"it is stamped {message.timestamp.isoformat()}, after {event.until}"
    if isinstance(event.match, Mapping):
        mismatch = explain(event.match, message)
        return None if mismatch is None else str(mismatch)
    return None if event.match is None else _refused(str(event.match), message)


def _refused(path: str, message: Message) -> str | None:
    try:
        agreed = load_callable(path)(message)
    except InvalidEventError:
        raise
    except Exception as error:  # a function of the author's
        return f"{path} raised {type(error).__name__}: {error}"
    return None if agreed else f"{path} says no"


def _reason_of_others(group: Group, name: str, event: Event, message: Message) -> str:
    """Why it does not go together with the others."""
    terms, reasons = group.terms, []
    if terms.sequence and event.required:
        reasons.append("not in its place of the sequence")
    if terms.correlate:
        path = terms.correlate[name]
        try:
            reasons.append(f"no complete set of messages has {path}={value_of(message, path)!r}")
        except NoValueError as error:
            return str(error)
    if terms.within is not None:
        reasons.append(f"no complete set of messages lies within {terms.within:g} s of it")
    return ", or ".join(reasons) or f"{name} had come already"


def _end(replayed: Replayed) -> Iterator[str]:
    if replayed.warned is not None:
        at, missing = replayed.warned
        yield f"at {at.isoformat(timespec='seconds')} somebody is told that this is missing: {', '.join(missing)}"
    verdict = replayed.verdict
    for name, state in replayed.states.items():
        if state in ("skipped", "failed"):
            why = "the group was complete without it" if state == "skipped" else "its own time was up"
            yield f"{name}: {state}, {why}"
    if verdict is None:
        deadline = replayed.timeline.deadline.isoformat(timespec="seconds")
        yield f"NOT COMPLETE, waits for: {', '.join(replayed.missing)}; the time is up at {deadline}"
    elif verdict.status is Status.COMPLETE:
        yield "COMPLETE"
    elif verdict.status is Status.TIMEOUT:
        yield f"NOT COMPLETE, the time was up; these have not come: {', '.join(verdict.missing)}"
    else:
        yield f"NOT COMPLETE, {verdict.text}"
