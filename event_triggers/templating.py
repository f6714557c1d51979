"""Rendering the templates of many waits.

A group of 20 events has about a hundred strings, of which few are templates, and the groups of one DAG have the same
ones. Jinja would compile each string for each group, which took four fifths of the time in which many groups start. So
what is no template is left as it is, and what is one is compiled once in a process.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import lru_cache
from types import CodeType
from typing import Any

import jinja2
from jinja2.nativetypes import NativeEnvironment

__all__ = ["is_plain", "quick"]

_MOST_KEPT = 1000
_MOST_SORTS = 100
_compiled: dict[tuple[str, int], CodeType] = {}
_kinds: dict[Any, Any] = {}
_sorts: dict[Hashable, int] = {}
"""Of each sort of environment, a number."""


def is_plain(text: str, env: jinja2.Environment) -> bool:
    """Whether rendering would leave this as it is."""
    if isinstance(env, NativeEnvironment):
        return False  # it makes numbers and lists of what looks like some
    return not _special(
        env.variable_start_string,
        env.block_start_string,
        env.comment_start_string,
        env.line_statement_prefix,
        env.line_comment_prefix,
    ).search(text)


@lru_cache(maxsize=16)
def _special(*marks: str | None) -> re.Pattern[str]:
    # Jinja takes off a newline at the end, and makes all newlines alike.
    return re.compile("|".join(map(re.escape, filter(None, (*marks, "\n", "\r")))))


def quick(env: jinja2.Environment) -> jinja2.Environment:
    """The environment, which compiles nothing that an equal one has compiled before."""
    key = _sort_of(env)
    if key not in _sorts and len(_sorts) >= _MOST_SORTS:
        return env  # each has functions of its own, so nothing would ever be found again
    sort = _sorts.setdefault(key, len(_sorts))
    # By its class, since a method of its own would refer to it: it would live until the garbage collector comes.
    quickened: Any = env
    kind = type(env)
    if kind not in _kinds:
        _kinds[kind] = _quick_kind(kind)
    quickened.__class__, quickened.sort = _kinds[kind], sort
    return env


def _quick_kind(kind: Any) -> Any:
    if hasattr(kind, "sort"):
        return kind

    def compile_once(self: Any, source: Any, *more: Any, **options: Any) -> Any:
        if more or options or not isinstance(source, str):
            return kind.compile(self, source, *more, **options)
        key = source, self.sort
        code = _compiled.get(key)
        if code is None:
            code = kind.compile(self, source)
            while len(_compiled) >= _MOST_KEPT:
                del _compiled[next(iter(_compiled))]
            _compiled[key] = code
        return code

    return type(kind.__name__, (kind,), {"compile": compile_once, "sort": 0})


def _sort_of(env: jinja2.Environment) -> Hashable:
    """What compiling depends on, beside the source: constant expressions are worked out with these functions."""
    options = (
        env.block_start_string,
        env.block_end_string,
        env.variable_start_string,
        env.variable_end_string,
        env.comment_start_string,
        env.comment_end_string,
        env.line_statement_prefix,
        env.line_comment_prefix,
        env.trim_blocks,
        env.lstrip_blocks,
        env.newline_sequence,
        env.keep_trailing_newline,
        env.optimized,
        env.finalize,
        env.autoescape,
        env.undefined,
    )
    # The functions themselves: they live as long as what they were compiled into.
    functions = (tuple((name, of[name]) for name in sorted(of)) for of in (env.filters, env.tests))
    return (type(env), *options, *functions, tuple(sorted(env.extensions)))
