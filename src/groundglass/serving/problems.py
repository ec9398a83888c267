"""What goes wrong with a request, as problem details (RFC 9457)."""

from __future__ import annotations

import json

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from groundglass.errors import GroundglassError

_STATUS = {
    "bad-request": 400, "unauthorized": 401, "cross-site": 403,
    "not-found": 404, "no-such-result": 404, "no-such-slice": 404, "no-such-layer": 404,
    "method-not-allowed": 405, "upload-too-slow": 408, "gone": 410,
    "upload-too-large": 413, "too-many-files": 413, "too-many-slices": 413,
    "unsupported-media-type": 415, "misdirected-request": 421, "invalid-request": 422, "too-many-requests": 429,
    "internal-error": 500, "busy": 503, "too-slow": 503, "not-ready": 503,
}  # fmt: skip


class Problem(GroundglassError):  # noqa: N818 - the name RFC 9457 gives it
    """A request that is not answered as it was meant to be.

    Args:
        kind: last part of the problem's ``type``.
        detail: what is wrong with this request and what to do.
        headers: of the answer, with ``_`` for ``-``, such as ``Retry_After=2`` (seconds).
    """

    def __init__(self, kind: str, detail: str, **headers: object) -> None:
        super().__init__(detail)
        self.kind = kind
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}

    def body(self) -> bytes:
        """The answer's content; text that UTF-8 cannot hold is escaped."""
        title = self.kind.replace("-", " ").capitalize()
        members = {"type": f"urn:groundglass:problem:{self.kind}", "title": title, "detail": str(self)}
        return json.dumps({**members, "status": _STATUS[self.kind]}).encode()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), _STATUS[self.kind], self.headers, "application/problem+json")


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to any error; of the service's own faults the client learns nothing."""
    if isinstance(error, RequestValidationError):
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        error = Problem("invalid-request", f"{'; '.join(wrong)}.")
    elif isinstance(error, HTTPException) and error.status_code == 405:
        detail = "This address does not take this method; see the header Allow."
        error = Problem("method-not-allowed", detail, **(error.headers or {}))
    elif isinstance(error, HTTPException) and request.url.path.startswith("/v1/"):
        error = Problem("gone", "Version 1 of this interface is gone; its successor is below /v2/.")
    elif isinstance(error, HTTPException):
        error = Problem("not-found", "There is nothing at this address; /openapi.json lists those there are.")
    elif not isinstance(error, Problem):
        detail = "The service failed on this request; its log says where, under the answer's X-Request-ID."
        error = Problem("internal-error", detail)
    return error.response()
