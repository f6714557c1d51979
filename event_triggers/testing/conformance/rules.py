"""The rules of the contract, as the suite's failures name them."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

__all__ = ["ContractBrokenError", "rule"]

F = TypeVar("F", bound=Callable[..., Awaitable[None]])


class ContractBrokenError(AssertionError):
    """A source does not keep a rule of the contract.

    :param rule: the rule.
    :param mend: where to look for the mistake.
    :param seen: what went wrong in the test; it is also the error's cause.
    """

    def __init__(self, rule: str, mend: str, seen: BaseException) -> None:
        what = str(seen) or "nothing came in time"
        super().__init__(
            f"the source breaks a rule of the contract.\n"
            f"  Rule: {rule}\n"
            f"  Seen: {type(seen).__name__}: {what}\n"
            f"  To mend it: {mend}"
        )
        self.rule = rule


def rule(text: str, *, mend: str) -> Callable[[F], F]:
    """Let a test of the suite say which rule it holds a source to.

    :param text: the rule, in a sentence.
    :param mend: where to look when it is broken.
    """

    def decorate(test: F) -> F:
        @functools.wraps(test)
        async def checked(*args: Any, **kwargs: Any) -> None:
            try:
                await test(*args, **kwargs)
            except NotImplementedError:
                raise  # the harness lacks something, not the source
            except Exception as error:
                raise ContractBrokenError(text, mend, error) from error

        checked.rule = text  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate
