"""The forms in which a payload is stored when it is refused as it came.

Airflow reserves some keys, its database may refuse a value, a proxy may limit sizes. The event has come all the same:
what is refused as it came is stored as text, and what is refused as text is left out. The group's log says so.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from event_triggers.errors import AirflowApiError
from event_triggers.ledger import Received, as_text
from event_triggers.patience import Patience
from event_triggers.text import shown

__all__ = ["PAYLOAD_REFUSED", "Fitting", "left_out", "say_refused"]

_TOO_LARGE, _FAILED_OVER = 413, 500
PAYLOAD_REFUSED = (400, _TOO_LARGE, 422, _FAILED_OVER)
"""How Airflow, or what stands before it, refuses a value for good; 500 when it fails over this request alone."""
_AS_TEXT, _LEFT_OUT = "as text", "left out"


class Fitting:
    """One message of an event, and the forms of its payload that have not been tried."""

    def __init__(self, event: str, one: Received, patience: Patience) -> None:
        self._event = event
        self._one = one
        self._patience = patience
        self._forms = [_AS_TEXT, _LEFT_OUT]

    def next(self, error: AirflowApiError) -> Received:
        """The message with its payload in the next form, since Airflow has answered ``error`` to the last.

        :raises AirflowApiError: when there is none, or this is no refusal of a payload: ``error`` itself.
        """
        if error.status not in PAYLOAD_REFUSED or not self._forms:
            raise error
        # Text is longer still, so it does not help what is too large.
        form = self._forms.pop(0) if error.status != _TOO_LARGE else self._forms.pop()
        is_left_out = form == _LEFT_OUT
        if is_left_out:
            self._forms.clear()
        say_refused(self._patience, self._event, self._one, error, left_out=is_left_out)
        reason = str(error)
        return replace(
            self._one, payload=left_out(self._one, reason) if is_left_out else as_text(self._one.payload, reason)
        )


def say_refused(patience: Patience, event: str, one: Received, error: AirflowApiError, *, left_out: bool) -> None:
    """Tell the group's log that a payload is stored in another form."""
    what = "left out" if left_out else "stored as text, not as it came"
    where = f"{one.source} {shown(one.stream)} {shown(one.position)}"
    loud = left_out or error.status == _FAILED_OVER
    text = f"event {event}: the payload of {where} is {what}, because {error}"
    patience.say(text, level=logging.ERROR if loud else logging.WARNING)


def left_out(one: Received, reason: str) -> dict[str, Any]:
    """What stands in place of a payload that cannot be stored at all."""
    return {"refused": reason[:500], "source": one.source, "stream": one.stream, "position": one.position}
