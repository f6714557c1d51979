r"""Wildcards: ``*`` stands for any characters, also none; ``\*`` and ``\\`` for the characters themselves.

A wildcard is a list of literal pieces that must follow each other. They are searched for from left to right, the first
place each; that finds a way whenever there is one, so no text can make it try again and again.
"""

from __future__ import annotations

__all__ = ["WildcardError", "pieces_match", "wildcard_pieces"]


class WildcardError(ValueError):
    """A wildcard is written wrongly; its text says what is wrong."""


def wildcard_pieces(text: str) -> tuple[str, ...]:
    r"""The literal pieces between the ``*`` of a wildcard; one piece when it has none.

    :raises WildcardError: for ``**``, and for a backslash before anything but ``*`` and ``\``.
    """
    pieces, piece = [], ""
    characters = iter(enumerate(text))
    starred = False
    for place, character in characters:
        if character == "*":
            if starred:
                raise WildcardError(f"'**' at character {place + 1}; one '*' stands for any characters already")
            pieces.append(piece)
            piece, starred = "", True
            continue
        starred = False
        if character == "\\":
            _, character = next(characters, (place, ""))
            if character not in ("*", "\\"):
                raise WildcardError(f"'\\' at character {place + 1} must stand before '*' or another '\\'")
        piece += character
    return (*pieces, piece)


def pieces_match(pieces: tuple[str, ...], text: str) -> bool:
    """Whether a text is made of these pieces, with anything between them."""
    if len(pieces) == 1:
        return text == pieces[0]
    first, last = pieces[0], pieces[-1]
    place, end = len(first), len(text) - len(last)
    if place > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in pieces[1:-1]:
        found = text.find(piece, place, end)
        if found < 0:
            return False
        place = found + len(piece)
    return True
