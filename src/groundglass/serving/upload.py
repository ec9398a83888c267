"""Files of a multipart request, taken in as they arrive; in memory no more than one small one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import closing
from http import HTTPStatus
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from groundglass.serving.problems import Problem, busy, invalid, too_large
from groundglass.serving.scratch import RequestFolder
from groundglass.serving.settings import Capacity
from groundglass.serving.spool import Spool, UploadedFile

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

KNOWN = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage or zip"
_FORM = b"multipart/form-data"
_OVERHEAD = 2**20
"""Bytes by which a request may be larger than its files: boundaries and headers."""
_PART_OVERHEAD = 1024
_LONGEST_NAME, _LONGEST_PART = 1000, 200
_MOST_HELD = 2**20
"""Bytes up to which the only file of a request stays in memory."""


class ClientGone(Exception):  # noqa: N818 - an outcome, no error
    """The client closed the connection; nobody waits for an answer."""


async def receive_files(
    headers: Headers, receive: Receive, folder: RequestFolder, capacity: Capacity
) -> list[UploadedFile]:
    """The files of a request.

    Raises:
        Problem: no form, a damaged one, one without files, of more than ``capacity`` allows, or too slow.
        ClientGone: the connection was closed.
    """
    boundary = _boundary(headers)
    _check_length(headers, capacity)
    with closing(_Form(boundary, folder, capacity)) as form:
        async for content in _body(receive, capacity):
            form.take(content)
        return form.finished()


def check_readable(files: list[UploadedFile]) -> None:
    """Refuse a request in which nothing is an image; one bad file among others gets a prediction instead.

    Raises:
        Problem: naming what can be read.
    """
    if all(file.kind is None for file in files):
        what = "The file is" if len(files) == 1 else f"None of the {len(files):,} files is"
        raise unsupported(f"{what} an image that can be read: {KNOWN}.")


def unsupported(detail: str) -> Problem:
    """Content of a kind that is not taken."""
    return Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)


def _boundary(headers: Headers) -> bytes:
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind != _FORM:
        raise unsupported("Send the files as multipart/form-data.")
    if not options.get(b"boundary"):
        raise _bad_form("the header Content-Type names no boundary")
    return options[b"boundary"]


def _check_length(headers: Headers, capacity: Capacity) -> None:
    """Refuse by what the header says, before a byte of it is read."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > capacity.upload_bytes + _OVERHEAD:
        raise _too_many_bytes(capacity)


async def _body(receive: Receive, capacity: Capacity) -> AsyncIterator[bytes]:
    """The bytes of a request, as they come."""
    deadline = time.monotonic() + capacity.seconds
    received, more = 0, True
    while more:
        patience = min(capacity.idle_seconds, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), patience)
        except asyncio.TimeoutError:
            raise _too_slow(capacity) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        content = message.get("body", b"")
        received += len(content)
        if received > capacity.upload_bytes + _OVERHEAD:
            raise _too_many_bytes(capacity)
        more = message.get("more_body", False)
        yield content


class _Form:
    """Turns a stream of bytes into files."""

    def __init__(self, boundary: bytes, folder: RequestFolder, capacity: Capacity) -> None:
        self._folder, self._capacity = folder, capacity
        self._spools: list[Spool] = []
        self._names: set[str] = set()
        self._open_spool: Spool | None = None
        self._header, self._value, self._disposition = b"", b"", ""
        self._total = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_part_data": self._write,
                    "on_part_end": self._close,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _bad_form(str(error)) from None

    def take(self, content: bytes) -> None:
        """Take the next bytes."""
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise _bad_form(str(error)) from None
        except OSError:
            raise _no_room() from None

    def close(self) -> None:
        """Close the file that was being written."""
        if self._open_spool is not None:
            self._open_spool.close()

    def finished(self) -> list[UploadedFile]:
        """All files, after the last byte."""
        if not self._ended:
            raise _bad_form("it ends before its last boundary")
        if not self._spools:
            raise invalid("The request holds no file; send one or more, each as a part with a file name.")
        try:
            return [spool.finished() for spool in self._spools]
        except OSError:
            raise _no_room() from None

    def _begin(self) -> None:
        if len(self._spools) >= self._capacity.files:
            raise too_large(
                "too-many-files",
                f"More than {self._capacity.files:,} files in one request; send fewer, or a zip.",
            )
        self._header, self._value, self._disposition = b"", b"", ""
        self._folder.take(_PART_OVERHEAD)

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            # As Latin-1 the bytes survive the parser; what they mean is UTF-8.
            self._disposition = self._value.decode("latin-1")
        self._header, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            raise invalid(
                "A part of the request is no file (it has no file name); options belong in the address."
            )
        name = checked_name(options[b"filename"].decode("utf-8", "replace"), len(self._spools) + 1)
        if name in self._names:
            raise _taken(name)
        self._names.add(name)
        spool = Spool(self._folder, name, _MOST_HELD)
        if self._spools:
            self._lay_down(spool)
        self._spools.append(spool)
        self._open_spool = spool

    def _lay_down(self, spool: Spool) -> None:
        """A second file has come: lay both down, so that each finds what it refers to."""
        self._spools[0].to_disk()
        self._spools[0].close()
        try:
            spool.to_disk()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _taken(spool.name) from None

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._open_spool is None:
            raise _bad_form("a part has no headers")
        self._total += end - start
        if self._total > self._capacity.upload_bytes:
            raise _too_many_bytes(self._capacity)
        self._folder.take(end - start)
        self._open_spool.write(memoryview(data)[start:end])

    def _close(self) -> None:
        if self._open_spool is None:
            raise _bad_form("a part has no headers")
        self._open_spool.close()
        self._open_spool = None

    def _end(self) -> None:
        self._ended = True


def checked_name(name: str, number: int) -> str:
    """A file's name, with the folders before it where it has any, fit to be a path below a folder.

    Args:
        name: as the client gave it.
        number: of the file in its request, from 1.

    Raises:
        Problem: it is empty, leads out of its folder, holds what cannot be printed, or is too long.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not name or parts[-1:] in ([], [""]):
        raise invalid(f"File {number} of the request has no name.")
    if ".." in parts or "" in parts or ":" in parts[0] or not name.isprintable():
        raise invalid(
            f"The name of file {number} of the request leads out of its folder, or cannot be printed; "
            "send a plain name, or a relative path."
        )
    if len(name) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in parts):
        raise invalid(f"The name of file {number} of the request is too long.")
    return "/".join(parts)


def _taken(name: str) -> Problem:
    return invalid(f"Two files of the request are named {name}; send them with their folders, as a/{name}.")


def _no_room() -> Problem:
    return busy("The service has no room for the upload; try again later.", retry_after=30)


def _bad_form(reason: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad-request", f"The multipart form is damaged: {reason}.")


def _too_many_bytes(capacity: Capacity) -> Problem:
    return too_large(
        "upload-too-large", f"The files are larger than the {capacity.upload_bytes:,} bytes of one request."
    )


def _too_slow(capacity: Capacity) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_TIMEOUT,
        "upload-too-slow",
        f"The upload stopped for {capacity.idle_seconds:g} seconds, or took more than "
        f"{capacity.seconds:g} in all.",
        headers={"Connection": "close"},
    )
