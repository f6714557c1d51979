"""Refusals as problem documents (RFC 9457): what happened, and what the caller may do about it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

__all__ = ["MEDIA_TYPE", "Problem", "ProblemDocument", "responses"]

MEDIA_TYPE: Final = "application/problem+json"


class ProblemDocument(BaseModel):
    """A refusal."""

    type: str = Field("about:blank", description="There is no further document about it.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened, and what to do.")


class Problem(Exception):
    """A request is refused.

    :param status: the HTTP status.
    :param detail: what happened and what to do, for a caller that need not be known: no secrets.
    :param retry_after: seconds after which another try makes sense.
    :param headers: more headers of the answer.
    """

    def __init__(
        self, status: int, detail: str, *, retry_after: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def response(self) -> JSONResponse:
        """The answer."""
        document = ProblemDocument(
            type="about:blank", title=HTTPStatus(self.status).phrase, status=self.status, detail=self.detail
        )
        return JSONResponse(document.model_dump(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def responses(descriptions: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for its OpenAPI description."""
    return {
        status: {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in (429, 503) else {}),
        }
        for status, description in descriptions.items()
    }


_RETRY_AFTER: Final = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
