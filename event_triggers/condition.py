"""Conditions over the events of a group: which of them must have come.

A condition is written in the words ``all`` and ``any``, as :func:`at_least`, or as an expression over event names::

    all                            every required event (the default of a group)
    any                            one of the required events
    at_least(2)                    two of the required events
    (orders and stock) or override
    orders and any(stock, shifts)  all(...), any(...) and at_least(n, ...) take names and expressions

``and`` binds tighter than ``or``. The words are known in any case (``AND``); event names are not. An event that is
named like one of the words is written in quotes: ``'all' or orders``.

Invariants: each part of a condition is one thing, *so many of these parts hold*, and never a negation. So a condition
is monotone: what has come can only bring it nearer, never undo it. And as no part asks for more than it has, every
condition holds when all its events have come; one that could never hold cannot be made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import NoReturn

from event_triggers.condition_parts import WORDS, Part, holds, make_parts, names_of, rest_of, written
from event_triggers.errors import InvalidEventError

__all__ = ["Condition", "at_least"]

_LISTS = frozenset({"all", "any", "at_least"})
# A parser that calls itself must not be led into Python's recursion limit by what somebody writes.
_MOST_NESTED = 50
_LONGEST = 20_000
_TOKEN = re.compile(r"\s*(?:(?P<name>[\w.\-]+)|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<sign>[(),]))")
_SIGNS = {"&": "'and'", "|": "'or'", "+": "'and'", ";": "','"}


def at_least(n: int) -> str:
    """The condition that ``n`` of the group's required events have come: ``condition=at_least(2)``.

    :raises InvalidEventError: when ``n`` is no whole number from 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise InvalidEventError(f"at_least takes a whole number from 1, got {n!r}")
    return f"at_least({n})"


@dataclass(frozen=True, slots=True)
class Condition:
    """Which events must have come. Immutable; made by :meth:`parse`."""

    text: str
    """As it was written."""
    names: frozenset[str]
    """The events that it looks at: the required ones."""
    is_all: bool
    """Whether it needs every event of the group, so that nothing can be left over when it holds."""
    no_choice: bool
    """Whether it needs each of :attr:`names`. So it may be while the group has optional events besides."""
    _root: Part = field(repr=False)

    @classmethod
    def parse(cls, text: str, events: Mapping[str, bool]) -> Condition:
        """Read a condition. The same one over the same events, as in each run of a DAG, is read once.

        :param text: see the module.
        :param events: the group's events in their order, each with whether it is required.
        :raises InvalidEventError: in one sentence with the position, when it cannot be read, names an event that is
            unknown or optional, leaves out a required one, or asks for more events than there are.
        """
        if not isinstance(text, str):
            raise InvalidEventError(f"condition must be a string such as 'all' or 'a or b', got {text!r}")
        return cls._parse(text, tuple(events.items()))

    @classmethod
    @lru_cache(maxsize=1024)
    def _parse(cls, text: str, declared: tuple[tuple[str, bool], ...]) -> Condition:
        events = dict(declared)
        required = tuple(name for name, needed in events.items() if needed)
        if not required:
            raise InvalidEventError(
                f"condition {_shown(text)} has nothing to wait for: "
                + ("all events of the group are required=False" if events else "the group has no events")
            )
        root = _Parser(text, events, required).parse()
        named = set(names_of(root))
        missing = [name for name in required if name not in named]
        if missing:
            raise InvalidEventError(
                f"condition {_shown(text)} does not name the event {missing[0]!r}, which would never be waited for; "
                f"name it, or say required=False"
            )
        names = frozenset(required)
        no_choice = not any(holds(root, names - {name}) for name in names)
        return cls(text, names, no_choice and len(names) == len(events), no_choice, root)

    def holds(self, come: Collection[str]) -> bool:
        """Whether it is satisfied when these events have come."""
        return holds(self._root, _as_set(come))

    def can_hold(self, lost: Collection[str]) -> bool:
        """Whether it can be satisfied at all when these events never come."""
        return holds(self._root, self.names.difference(lost))

    def needed(self, come: Collection[str], lost: Collection[str] = ()) -> str:
        """What is still lacking, as a condition for people to read: ``orders and (stock or override)``.

        :param come: the events that have come.
        :param lost: those that can never come; they are left out as long as it can hold without them.
        :returns: the empty string when nothing is lacking.
        """
        rest = rest_of(self._root, _as_set(come), _as_set(lost) - _as_set(come))
        if rest is False:  # it can hold no more, so what is lost is what is lacking
            rest = rest_of(self._root, _as_set(come), frozenset())
        return "" if isinstance(rest, bool) else written(rest)


def _as_set(names: Collection[str]) -> Set[str]:
    return names if isinstance(names, Set) else frozenset(names)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    at: int
    quoted: bool = False

    @property
    def word(self) -> str:
        """The word or sign that it is; the empty string for an event's name and for the end."""
        lower = self.text.lower()
        return lower if not self.quoted and (lower in WORDS or lower in {"(", ")", ","}) else ""

    @property
    def is_name(self) -> bool:
        return not self.word and bool(self.text or self.quoted)


class _Parser:
    """Reads one condition, from left to right."""

    def __init__(self, text: str, events: Mapping[str, bool], required: tuple[str, ...]) -> None:
        self._text = text
        self._events = events
        self._required = required
        self._depth = 0
        self._tokens = list(self._split())
        self._next = 0

    def _fail(self, what: str) -> NoReturn:
        raise InvalidEventError(f"condition {_shown(self._text)}: {what}")

    def _split(self) -> Iterator[_Token]:
        if len(self._text) > _LONGEST:
            self._fail(f"it is longer than {_LONGEST} characters")
        text, at = self._text.rstrip(), 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                while text[at].isspace():
                    at += 1
                sign = text[at]
                hint = f"; write {_SIGNS[sign]}" if sign in _SIGNS else ""
                what = "the quote is not closed" if sign in "'\"" else f"{sign!r} is no part of a condition{hint}"
                self._fail(_NO_NOT if sign in "!~" else f"{what}, at position {at + 1}")
            kind = str(found.lastgroup)
            quoted = kind in {"single", "double"}
            yield _Token(found[kind], found.start(kind) + (0 if quoted else 1), quoted)
            at = found.end()
        yield _Token("", len(text) + 1)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _expect(self, word: str, where: str) -> None:
        if self._token.word != word:
            self._unexpected(f"{word!r} {where}")
        self._take()

    def _unexpected(self, wanted: str) -> NoReturn:
        token = self._token
        if token.word == "not":
            self._fail(_NO_NOT)
        if token.text or token.quoted:
            self._fail(f"expected {wanted} at position {token.at}, found {token.text!r}")
        self._fail(f"expected {wanted} at its end, position {token.at}")

    def parse(self) -> Part:
        if len(self._tokens) == 1:
            self._fail(
                f"it is empty; write 'all', 'any', at_least(2), or an expression such as {_example(self._required)}"
            )
        part = self._bare() or self._either()
        if self._token.word or self._token.is_name:
            self._unexpected("'and', 'or' or the end")
        return part

    def _bare(self) -> Part | None:
        """``all``, ``any`` and ``at_least(n)`` by themselves, which speak of all required events."""
        words = [token.word for token in self._tokens]
        if words[:-1] == ["all"]:
            n = len(self._required)
        elif words[:-1] == ["any"]:
            n = 1
        elif words[:-1] == ["at_least", "(", "", ")"]:
            self._next = 2
            n = self._number(len(self._required), f"the group has {_so_many(len(self._required), 'required event')}")
        else:
            return None
        self._next = len(self._tokens) - 1
        return make_parts(n, self._required)

    def _number(self, most: int, why: str) -> int:
        token = self._token
        if token.quoted or not re.fullmatch("[0-9]+", token.text):
            self._unexpected("a whole number, how many must come,")
        self._take()
        # Python reads no number of thousands of digits, and none is needed.
        n = int(token.text) if len(token.text) <= 9 else 10**9
        if n < 1:
            self._fail(f"at_least({token.text}) at position {token.at} asks for nothing; the number begins at 1")
        if n > most:
            self._fail(f"at_least({token.text[:20]}) at position {token.at} can never hold, {why}")
        return n

    def _either(self) -> Part:
        return self._chain("or", self._both, lambda parts: 1)

    def _both(self) -> Part:
        return self._chain("and", self._single, len)

    def _chain(self, word: str, inner: Callable[[], Part], number: Callable[[list[Part]], int]) -> Part:
        parts = [inner()]
        while self._token.word == word:
            self._take()
            parts.append(inner())
        return make_parts(number(parts), parts)

    def _single(self) -> Part:
        if self._token.is_name:
            return self._name()
        if self._token.word in _LISTS:
            return self._list()
        if self._token.word != "(":
            self._unexpected("an event's name or '('")
        self._take()
        self._deeper()
        part = self._either()
        self._depth -= 1
        self._expect(")", "to close the bracket")
        return part

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self._fail(f"more than {_MOST_NESTED} brackets inside each other")

    def _name(self) -> str:
        token = self._take()
        if token.text in self._events:
            if not self._events[token.text]:
                self._fail(
                    f"the event {token.text!r} at position {token.at} is required=False, so nothing can wait for it; "
                    f"take that away, or leave it out here"
                )
            return token.text
        near = get_close_matches(token.text, self._required, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the group has {', '.join(map(repr, self._required))}"
        self._fail(f"the group has no event {token.text!r} (position {token.at}); {hint}")

    def _list(self) -> Part:
        token = self._take()
        if self._token.word != "(":
            self._alone(token)
        self._take()
        self._deeper()
        counted = token.word == "at_least"
        asked = self._token
        if counted:
            self._number(10**8, "no group has so many events")
            if self._token.word == ")":
                self._alone(token)
            self._expect(",", f"and the events after the number of {token.text}")
        parts = [self._either()]
        while self._token.word == ",":
            self._take()
            parts.append(self._either())
        self._depth -= 1
        self._expect(")", f"or ',' in the list of {token.text}")
        if not counted:
            return make_parts(len(parts) if token.word == "all" else 1, parts)
        if len(set(parts)) < len(parts):
            self._fail(f"the list of {token.text} at position {token.at} holds the same thing twice; count it once")
        if int(asked.text) > len(parts):
            self._fail(
                f"at_least({asked.text}, ...) at position {token.at} can never hold, "
                f"it lists {_so_many(len(parts), 'event')}"
            )
        return make_parts(int(asked.text), parts)

    def _alone(self, token: _Token) -> NoReturn:
        """``all``, ``any`` or ``at_least(n)`` inside an expression: which events does it mean?"""
        inner = "2, " if token.word == "at_least" else ""
        meant = [name for name in self._events if name.lower() == token.word]
        quote = f", or write '{meant[0]}' in quotes for the event of that name" if meant else ""
        self._fail(
            f"{token.text!r} at position {token.at} stands for the whole group and cannot be part of an expression; "
            f"list its events: {token.word}({inner}{_example(self._required, ', ')}){quote}"
        )


_NO_NOT = (
    "a condition can only ask for events that come, so there is no 'not'; nothing tells that an event will not come"
)


def _example(names: Sequence[str], between: str = " or ") -> str:
    shown = [written(name) for name in names[:3]]
    return between.join(shown)


def _so_many(n: int, what: str) -> str:
    return f"only {n} {what}{'' if n == 1 else 's'}"
