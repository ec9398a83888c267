"""What every request passes: token, host and origin, a browser's headers, problem details, a log that names nobody."""

from __future__ import annotations

import hmac
import json
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from groundglass.errors import GroundglassError
from groundglass.serving.settings import is_loopback

PAGE = "/page/"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer that does not set them itself."""

PAGE_HEADERS = {
    # Trusted Types: nothing may turn text into markup or code, whatever a file is called.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of the page, which talks to this service and to nobody else."""

_PUBLIC = frozenset({"/", "/healthz", "/readyz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_STATUS = {
    "bad-request": 400, "unauthorized": 401, "cross-site": 403,
    "not-found": 404, "no-such-result": 404, "no-such-slice": 404, "no-such-layer": 404,
    "method-not-allowed": 405, "upload-too-slow": 408,
    "upload-too-large": 413, "too-many-files": 413, "too-many-slices": 413,
    "unsupported-media-type": 415, "misdirected-request": 421, "invalid-request": 422,
    "internal-error": 500, "busy": 503, "too-slow": 503, "not-ready": 503,
}  # fmt: skip


class Problem(GroundglassError):  # noqa: N818 - the name RFC 9457 gives it
    """A request that is not answered as it was meant to be; ``detail`` says why, and what to do.

    ``kind`` is the last part of its type; headers of the answer have ``_`` for ``-``, such as ``Retry_After=2``.
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


async def answer_error(_: Request, error: Exception) -> Response:
    """The answer to any error; of the service's own faults the client learns nothing."""
    if isinstance(error, RequestValidationError):
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        error = Problem("invalid-request", f"{'; '.join(wrong)}.")
    elif isinstance(error, HTTPException) and error.status_code == 405:
        detail = "This address does not take this method; see the header Allow."
        error = Problem("method-not-allowed", detail, **(error.headers or {}))
    elif isinstance(error, HTTPException):
        error = Problem("not-found", "There is nothing at this address; /openapi.json lists those there are.")
    elif not isinstance(error, Problem):
        detail = "The service failed on this request; its log says where, under the answer's X-Request-ID."
        error = Problem("internal-error", detail)
    return error.response()


def access_problem(token: str | None, scope: Scope) -> Problem | None:
    """Why a request is rejected before anything of it is read; None where it is not. Services may have no token."""
    headers, path = Headers(scope=scope), scope["path"]
    host, origin = headers.get("host"), headers.get("origin")
    # Another site's name may be made to lead here (DNS rebinding), and its pages would count as our own.
    if token is None and host is not None and not _leads_to_this_machine(host):
        detail = "This service answers to localhost and loopback addresses only, as it asks for no token."
        return Problem("misdirected-request", detail)
    if origin is not None and scope["method"] not in _READING and origin.partition("://")[2] != host:
        return Problem("cross-site", "Pages of other sites may not use this service.")
    if "upgrade" in headers and scope["method"] == "POST":  # behind which the server reads no content
        detail = "Send the request without the header Upgrade, as HTTP/1.1; this service speaks nothing else."
        return Problem("bad-request", detail, Connection="close")
    if token is None or path in _PUBLIC or path.startswith(PAGE):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    if same and scheme.lower() == "bearer":
        return None
    detail = "Send the header Authorization: Bearer, followed by the service's token."
    return Problem("unauthorized", detail, WWW_Authenticate="Bearer")


def _leads_to_this_machine(host: str) -> bool:
    with suppress(ValueError):
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    return False


def log(event: str, error: BaseException | None = None, **fields: object) -> None:
    """Log an event as a line of JSON on standard output.

    Of an error it has the type and the places it came through, as its text may name a patient.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": "info" if error is None else "error", "event": event, **fields}
    if error is not None:
        entry["error"] = type(error).__name__
        entry["through"] = [
            f"{frame.filename.rpartition('site-packages/')[2].rpartition('/src/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
    with suppress(OSError, GroundglassError):  # a full disk is no reason not to answer
        print(json.dumps(entry), flush=True)  # noqa: T201 - the log
