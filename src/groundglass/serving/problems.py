"""Every error as problem details (RFC 9457): what is wrong, in which words, and when to try again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from groundglass.errors import GroundglassError

MEDIA_TYPE = "application/problem+json"
_KIND = "urn:groundglass:problem:"


class Problem(GroundglassError):  # noqa: N818 - the name RFC 9457 gives it
    """A request that is not answered as it was meant to be.

    Args:
        status: of HTTP.
        kind: which problem, in words joined by hyphens; the last part of its ``type``.
        detail: what is wrong with this request and what to do.
        retry_after: seconds after which the same request may succeed.
        headers: of the answer.
        members: further members of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def document(self) -> dict[str, Any]:
        """The members of the answer."""
        return {
            "type": _KIND + self.kind,
            "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }

    def body(self) -> bytes:
        """The answer's content; text that UTF-8 cannot hold is escaped."""
        return json.dumps(self.document()).encode()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status, self.headers, MEDIA_TYPE)


def too_large(kind: str, detail: str) -> Problem:
    """A request that asks for more than the service gives one request."""
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, kind, detail)


def busy(detail: str, *, kind: str = "busy", retry_after: int = 2) -> Problem:
    """A request that may well succeed a little later."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, kind, detail, retry_after=retry_after)


def internal() -> Problem:
    """The service's own fault, of which the client learns nothing."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal-error",
        "The service failed on this request; its log says where, under the answer's X-Request-ID.",
    )


async def answer_problem(_: Request, error: Exception) -> Response:
    """The answer to a :class:`Problem`."""
    return error.response() if isinstance(error, Problem) else internal().response()


async def answer_http_error(_: Request, error: Exception) -> Response:
    """The answer to what the framework refuses: an unknown address, a method that does not fit."""
    if not isinstance(error, HTTPException):
        return internal().response()
    status = HTTPStatus(error.status_code)
    kind = status.phrase.lower().replace(" ", "-")
    detail = _DETAILS.get(status, f"{status.description or status.phrase}.")
    return Problem(error.status_code, kind, detail, headers=error.headers).response()


async def answer_invalid(_: Request, error: Exception) -> Response:
    """The answer to a parameter that is not what it should be."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    errors = [{"parameter": ".".join(map(str, each["loc"])), "reason": each["msg"]} for each in found]
    told = "; ".join(f"{each['parameter']}: {each['reason']}" for each in errors)
    return invalid(f"{told}." if told else "A parameter is not what it should be.", errors).response()


def invalid(detail: str, errors: list[dict[str, str]] | None = None) -> Problem:
    """A request that is understood and cannot be followed."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-request",
        detail,
        members=None if errors is None else {"errors": errors},
    )


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address; /openapi.json lists those there are.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; see the header Allow.",
}
