"""The web page: files that lie beside this module, and the policy that ties them to this service alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from groundglass.serving.access import PAGE_FILES

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Nothing may turn text into markup or code, whatever a file is called.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Content-Security-Policy of the page: it asks this service and nobody else."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_INDEX = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page.

    Attributes:
        content: its bytes.
        media_type: of them.
    """

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """The page's files by name: the only ones that can be asked for."""
    found = {}
    for entry in (files("groundglass.serving") / "page").iterdir():
        media_type = _MEDIA_TYPES.get(PurePath(entry.name).suffix)
        if media_type is not None:
            found[entry.name] = PageFile(entry.read_bytes(), media_type)
    return found


def page_router() -> APIRouter:
    """Addresses of the page; they are no part of the API's description."""
    router, known = APIRouter(include_in_schema=False), page_files()

    def answer(name: str) -> Response:
        if name not in known:
            raise HTTPException(404)
        return Response(known[name].content, media_type=known[name].media_type, headers=_HEADERS)

    @router.get("/")
    async def index() -> Response:
        """The page."""
        return answer(_INDEX)

    @router.get(PAGE_FILES + "{name}")
    async def part(name: str) -> Response:
        """What the page is made of."""
        return answer(name)

    return router
