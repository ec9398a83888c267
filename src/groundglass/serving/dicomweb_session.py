"""HTTP to a DICOMweb server: credentials from the environment, answers of bounded size, faults told apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from groundglass.errors import PacsError, PacsRefusedError

TOKEN, USER, PASSWORD = "GROUNDGLASS_PACS_TOKEN", "GROUNDGLASS_PACS_USER", "GROUNDGLASS_PACS_PASSWORD"
"""Environment variables that hold the credentials; without them the netrc file is asked."""

CREDENTIALS_ADVICE = (
    f"set {TOKEN}, or {USER} and {PASSWORD}, in the environment, or name the host in ~/.netrc"
)
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes of an answer."""

_LARGEST_LISTING = 256 * 2**20


class TooLargeError(PacsRefusedError):
    """An answer is larger than the limit."""


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Bounded:
    """The body of an answer, which ends in an error where it is larger than the limit, decompressed."""

    def __init__(self, raw: Any, limit: int) -> None:
        self._raw = raw
        self._limit = limit

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """Chunks of the body, as ``urllib3`` gives them."""
        size = 0
        for chunk in self._raw.stream(amount, decode_content=decode_content):
            size += len(chunk)
            if size > self._limit:
                raise TooLargeError(f"the archive's answer is larger than the limit of {self._limit:,} bytes")
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class _Adapter(HTTPAdapter):
    """Bounds every answer.

    Args:
        limit: bytes of an image.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with the Host header that belongs to it; dicomweb-client's lacks the port."""
        request.headers.pop("Host", None)
        response = super().send(request, *args, **kwargs)
        is_image = "dicom" in kind(response) and "json" not in kind(response)
        response.raw = _Bounded(response.raw, self._limit if is_image else _LARGEST_LISTING)
        return response


def open_session(image_bytes: int, environment: Mapping[str, str] = os.environ) -> requests.Session:
    """A session with the credentials that the environment holds.

    Args:
        image_bytes: the largest image that is taken.
        environment: see :data:`TOKEN`, :data:`USER` and :data:`PASSWORD`.

    Raises:
        PacsError: the credentials are incomplete.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(image_bytes))
    token, user, password = (environment.get(name) for name in (TOKEN, USER, PASSWORD))
    if token:
        session.auth = _Bearer(token)
    elif user and password is not None:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    elif user or password:
        raise PacsError(f"{USER} and {PASSWORD} belong together; one of them is not set")
    return session


def kind(response: requests.Response) -> str:
    """The Content-Type of an answer in lower case."""
    return str(response.headers.get("Content-Type", "")).lower()
