"""Who may use the service, the headers that protect a browser's user, and logs that name no patient."""

from __future__ import annotations

import hmac
import json
import logging
import sys
import traceback
import warnings
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from groundglass.serving.schemas import Problem
from groundglass.serving.settings import Settings, is_loopback

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
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LOGGER = logging.getLogger("groundglass.serving")


def access_problem(settings: Settings, method: str, path: str, headers: Headers) -> Problem | None:
    """Why a request is rejected before anything of it is read; None where it is not."""
    host, origin = headers.get("host"), headers.get("origin")
    # Another site's name may be made to lead here (DNS rebinding), and its pages would count as our own.
    if settings.token is None and host is not None and not is_loopback(_split(f"//{host}")[0]):
        detail = "This service answers to localhost and 127.0.0.1 only, as it asks for no token."
        return Problem("misdirected-request", detail)
    if origin is not None and method in _CHANGING and _split(origin)[1] != host:
        return Problem("cross-site", "Pages of other sites may not use this service.")
    if settings.token is None or path in _PUBLIC or path.startswith(PAGE):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), settings.token.encode())
    if same and scheme.lower() == "bearer":
        return None
    detail = "Send the header Authorization: Bearer, followed by the service's token."
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def _split(url: str) -> tuple[str, str | None]:
    """Host name without port, and host with port; of what is no URL neither."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.netloc
    except ValueError:
        return "", None


class _JsonFormatter(logging.Formatter):
    """One line of JSON; of an exception its type and the places it came through, as its text may name a patient."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": time,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-8:]
            entry["error"] = type(record.exc_info[1]).__name__
            entry["through"] = [f"{_short(frame.filename)}:{frame.lineno}" for frame in frames]
        return json.dumps(entry)


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].rpartition("/src/")[2]


def configure_logs() -> None:
    """Log JSON lines to standard output, and silence other packages: they may quote a file's content.

    Standard error is no place for it: it is closed for moments while pictures are decoded, so that codecs
    cannot write there.
    """
    warnings.simplefilter("ignore")
    logging.getLogger().handlers = [logging.NullHandler()]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    for logger, level in ((_LOGGER, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Log an event; an error without its text."""
    level = logging.INFO if error is None else logging.ERROR
    _LOGGER.log(level, event, exc_info=error, extra={"fields": fields})
