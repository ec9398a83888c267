"""Who may use the service and what is told of it: token, host, origin, a browser's headers, a log that names nobody."""

from __future__ import annotations

import hmac
import json
import traceback
from contextlib import suppress
from datetime import datetime, timezone
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from groundglass.errors import GroundglassError
from groundglass.serving.problems import Problem

TOKEN_VARIABLE = "GROUNDGLASS_TOKEN"  # noqa: S105 - the name of a variable, not its value
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


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine alone; of names only ``localhost`` does."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_problem(token: str | None, scope: Scope) -> Problem | None:
    """Why a request is rejected before anything of it is read; None where it is not.

    Args:
        token: of the service; None where it asks for none.
        scope: of the request.
    """
    headers, path = Headers(scope=scope), scope["path"]
    host, origin = headers.get("host"), headers.get("origin")
    # Another site's name may be made to lead here (DNS rebinding), and its pages would count as our own.
    if token is None and host is not None and not _leads_to_this_machine(host):
        detail = "This service answers to localhost and 127.0.0.1 only, as it asks for no token."
        return Problem("misdirected-request", detail)
    if origin is not None and scope["method"] not in _READING and origin.partition("://")[2] != host:
        return Problem("cross-site", "Pages of other sites may not use this service.")
    if token is None or path in _PUBLIC or path.startswith(PAGE):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    if same and scheme.lower() == "bearer":
        return None
    detail = "Send the header Authorization: Bearer, followed by the service's token."
    return Problem("unauthorized", detail, WWW_Authenticate="Bearer")


def _leads_to_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def log(event: str, error: BaseException | None = None, **fields: object) -> None:
    """Log an event as a line of JSON on standard output.

    Of an error it has the type and the places it came through, as its text may name a patient.

    Standard error is no place for it: it is closed for moments while pictures are decoded, so that codecs
    cannot write there.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": "info" if error is None else "error", "event": event, **fields}
    if error is not None:
        entry["error"] = type(error).__name__
        entry["through"] = [
            f"{frame.filename.rpartition('site-packages/')[2].rpartition('/src/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
    with suppress(OSError, GroundglassError):  # a full disk is no reason not to answer
        print(json.dumps(entry), flush=True)  # noqa: T201 - the log
