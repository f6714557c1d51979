"""The index that the hub asks: all patterns of a channel, over bodies and over messages."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from event_triggers.matching.decoding import decoded
from event_triggers.matching.envelope import envelopes, hinges_on_body
from event_triggers.matching.index import DocumentIndex
from event_triggers.matching.reference import objects
from event_triggers.matching.syntax import Pattern, parse_pattern
from event_triggers.message import UNDECODABLE, Message

__all__ = ["PatternIndex"]

Token = TypeVar("Token", bound=Hashable)
_decode: Any = msgspec.json.Decoder().decode


class PatternIndex(Generic[Token]):
    """Finds the tokens of all patterns that a document or a message matches.

    Adding, removing and looking up cost nothing that grows with the number of patterns; see
    :mod:`event_triggers.matching.index`. Patterns about the message (``$message``) are kept apart, so that the others
    cost the same with them and without. Not safe for threads.
    """

    def __init__(self) -> None:
        self._of_body: DocumentIndex[Token] = DocumentIndex()
        self._of_message: DocumentIndex[Token] = DocumentIndex()
        self._plain = True
        """Whether one look at the body finds each token once."""
        self.empty = True
        """Whether it has no pattern, so that no document need be looked at."""

    def __len__(self) -> int:
        return len(self._of_body) + len(self._of_message)

    def __contains__(self, token: object) -> bool:
        return token in self._of_body or token in self._of_message

    def add(self, pattern: Mapping[str, Any], token: Token) -> None:
        """Look for ``pattern`` from now on, under the name ``token``.

        :raises InvalidEventError: when it is no pattern.
        :raises KeyError: when the token is in use.
        """
        if token in self:
            raise KeyError(token)
        alternatives, about_message = parse_pattern(pattern)
        (self._of_message if about_message else self._of_body).add(alternatives, token)
        self._review()

    def remove(self, token: Token) -> None:
        """Forget the pattern of this token.

        :raises KeyError: when there is none.
        """
        (self._of_message if token in self._of_message else self._of_body).remove(token)
        self._review()

    def pattern(self, token: Token) -> Pattern:
        """The pattern of this token, as it was read.

        :raises KeyError: when there is none.
        """
        about_message = token in self._of_message
        return Pattern((self._of_message if about_message else self._of_body).alternatives(token), about_message)

    def _review(self) -> None:
        self._plain = not self._of_message and not self._of_body.several
        self.empty = not self._of_message and not self._of_body

    def matching(self, document: Any) -> list[Token]:
        """The tokens of all patterns that a message, or a document alone, matches, each once, in no order.

        :param document: decoded, of JSON's own types throughout as a decoder makes them, or as JSON text.
        """
        if self._plain:
            kind = document.__class__
            if kind is Message:
                body = document.document
            elif kind is bytes:
                # As decoded() does it, and here: each call counts where every document passes.
                try:
                    body = _decode(document)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    return []
            else:
                body = decoded(document)
            if body.__class__ is dict:
                return self._of_body.find(body)
        return list(dict.fromkeys(self._every(decoded(document))))

    def first_wanted(self, bodies: Sequence[bytes | None], begin: int, end: int) -> int:
        """The place of the first of these bodies that some pattern may match; ``end`` when none does.

        One that is no JSON object counts, and where patterns are about more than the body, so does every one.
        """
        if self.empty:
            return end
        if not self._plain:
            return begin
        find = self._of_body.find
        for place in range(begin, end):
            try:
                document = _decode(bodies[place])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
                return place
            if document.__class__ is not dict or find(document):
                return place
        return end

    def _every(self, document: Any) -> Iterator[Token]:
        body = document.document if isinstance(document, Message) else document
        if body is not UNDECODABLE:
            for one in objects(body):
                yield from self._of_body.find(one)
        if self._of_message:
            for one in envelopes(document):
                yield from self._of_message.find(one)

    def hinging_on_body(self, message: Message) -> list[Token]:
        """The tokens of the patterns that cannot be told for a message without looking into its body."""
        kept = self._of_message
        return [*self._of_body, *(token for token in kept if hinges_on_body(kept.alternatives(token), message))]
