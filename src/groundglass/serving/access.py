"""Who may ask: the bearer token, and pages of other sites that a browser would let ask in its user's name."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from groundglass.serving.problems import Problem
from groundglass.serving.settings import Settings, is_loopback

PAGE_FILES = "/page/"
"""Where the files of the web page are found."""

PUBLIC = frozenset({"/", "/healthz", "/readyz"})
"""Addresses that need no token, as do the page's files: they tell nothing."""

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def refusal(settings: Settings, method: str, path: str, headers: Headers) -> Problem | None:
    """Why a request is refused before anybody looks at it; None where it is not."""
    return _of_host(settings, headers) or _of_origin(method, headers) or _of_token(settings, path, headers)


def _of_host(settings: Settings, headers: Headers) -> Problem | None:
    """Without a token, only names of this machine answer.

    Another site's name may be made to lead here (DNS rebinding), and its pages would count as our own.
    """
    host = headers.get("host")
    if not settings.is_local or host is None or is_loopback(_name(host)):
        return None
    return Problem(
        HTTPStatus.MISDIRECTED_REQUEST,
        "misdirected-request",
        "This service answers to localhost and 127.0.0.1 only, as it asks for no token.",
    )


def _of_origin(method: str, headers: Headers) -> Problem | None:
    """Pages of other sites may not send anything: a browser would send it for them."""
    origin = headers.get("origin")
    if origin is None or method not in _CHANGING or _netloc(origin) == headers.get("host"):
        return None
    return Problem(HTTPStatus.FORBIDDEN, "foreign-origin", "Pages of other sites may not use this service.")


def _of_token(settings: Settings, path: str, headers: Headers) -> Problem | None:
    if settings.token is None or path in PUBLIC or path.startswith(PAGE_FILES):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), settings.token.encode())
    if same and scheme.lower() == "bearer":
        return None
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "Send the header Authorization: Bearer, followed by the service's token.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _name(host: str) -> str:
    """A host's name without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
