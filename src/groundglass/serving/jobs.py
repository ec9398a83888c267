"""One upload on its way to predictions: received within limits, stored for the time of its request, classified."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from anyio.to_thread import run_sync
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import HEAD_BYTES, FileFormat, MemorySource, identify
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction
from groundglass.serving.results import Classified, KeptSlice, heat_map_uri
from groundglass.serving.schemas import HeatMaps, Problem
from groundglass.serving.settings import MIB, Settings

_PREFIX = "groundglass-serve-"
_ABANDONED = 60.0
"""Seconds after which a directory that no process has locked was left behind, and is not just being made."""
_LARGE = 16 * MIB
"""Bytes above which a file is opened beside few others: it may be held in memory whole."""
_LONGEST_NAME, _LONGEST_PART = 1000, 200


class UploadDirectory:
    """A private directory of one service, with one of each request in it; used within ``with``.

    It is locked as long as the process lives. What a killed service left behind in the ``parent`` directory, which
    is the system's temporary one unless given, is removed by the next one that starts there.
    """

    def __init__(self, parent: Path | None, limit: int) -> None:
        self._parent = Path(tempfile.gettempdir()) if parent is None else parent
        self._limit = limit
        self.used = 0

    def __enter__(self) -> UploadDirectory:
        for left in self._parent.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if left.is_symlink() or time.time() - left.stat().st_mtime < _ABANDONED:
                    continue
                lock = _locked(left)
                if lock is not None:
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(lock)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        self._lock = _locked(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    @contextmanager
    def request(self) -> Iterator[RequestDirectory]:
        """The directory of one request, removed with all that is in it when the block ends."""
        directory = RequestDirectory(self)
        try:
            yield directory
        finally:
            shutil.rmtree(directory.path, ignore_errors=True)
            self.used -= directory.used

    def reserve(self, count: int) -> None:
        """Set bytes aside.

        Raises:
            Problem: all requests together would hold more than the limit.
        """
        if self.used + count > self._limit:
            detail = "The uploads in flight fill the space set aside for them; try again."
            raise Problem("busy", detail, retry_after=10)
        self.used += count


class RequestDirectory:
    """Where the files of one request lie; made for its first file that does not stay in memory.

    Attributes:
        path: of the directory.
        used: bytes set aside for the request.
    """

    def __init__(self, parent: UploadDirectory) -> None:
        self._parent, self.used = parent, 0
        self.path = parent.path / secrets.token_hex(8)

    def reserve(self, count: int) -> None:
        """Set bytes aside as long as the request lasts."""
        self._parent.reserve(count)
        self.used += count

    def open(self, name: str) -> BinaryIO:
        """A new file.

        Raises:
            Problem: another file of the request has its name or that of its folder, or the disk is full.
        """
        path = self.path / name
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb+")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            detail = f"Two files of the request are named {name}; send them with their folders, as a/{name}."
            raise Problem("invalid-request", detail) from None


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process has it, or there are no locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@dataclass(frozen=True)
class UploadedFile:
    """One file of a request."""

    source: MemorySource | Path
    file_format: FileFormat | None  # by its first bytes; None for no image
    size: int

    @property
    def heavy(self) -> bool:
        """Whether reading it may take much memory."""
        return self.size > _LARGE or self.file_format in {FileFormat.ZIP, FileFormat.GZIP}


class _Parser(MultiPartParser):
    """Takes files and nothing else, under names that stay below the directory of their request."""

    def __init__(self, request: Request, directory: RequestDirectory, settings: Settings) -> None:
        super().__init__(request.headers, _body(request, directory, settings), max_files=settings.files)
        # Writing a file costs more than all else that is done to receive one slice.
        self.in_memory = _length(request, MIB + 1) <= MIB
        self._directory, self._most = directory, settings.files
        self.files: dict[str, UploadFile] = {}
        self.complete = False

    def on_part_begin(self) -> None:
        if len(self.files) >= self._most:
            detail = f"More than {self._most:,} files in one request; send fewer, or a zip."
            raise Problem("too-many-files", detail)
        self._directory.reserve(1024)  # so that many empty files are not for free
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        file = self._current_part.file
        if file is None:
            detail = "A part of the request is no file (it has no file name); options belong in the address."
            raise Problem("invalid-request", detail)
        name = _checked_name(file.filename or "", len(self.files) + 1)
        if not self.in_memory:
            file = self._current_part.file = UploadFile(self._directory.open(name))
        elif name in self.files:
            raise Problem("invalid-request", f"Two files of the request are named {name}.")
        self.files[name] = file

    def on_end(self) -> None:
        self.complete = True


async def receive_files(
    request: Request, directory: RequestDirectory, settings: Settings
) -> list[UploadedFile]:
    """The files of a request, on disk or, where it is small and has only one, in memory.

    Raises:
        Problem: no form, a damaged one, one without images, larger than allowed, or too slow.
        ClientDisconnect: the connection was closed.
    """
    if parse_options_header(request.headers.get("content-type", ""))[0] != b"multipart/form-data":
        raise Problem("unsupported-media-type", "Send the files as multipart/form-data.")
    if _length(request, 0) > settings.upload_bytes:
        raise _too_large(settings)
    parser = _Parser(request, directory, settings)
    try:
        await parser.parse()
        if not parser.complete:
            raise Problem("bad-request", "The multipart form is damaged: it ends before its last boundary.")
        if not parser.files:
            raise Problem("invalid-request", "The request holds no file; send one or more, each with a name.")
        files = await run_sync(lambda: [_stored(*each, parser, directory) for each in parser.files.items()])
    except MultiPartException as error:
        raise Problem("bad-request", f"The multipart form is damaged: {error.message}") from None
    except OSError:
        detail = "The service has no space for the upload; try again later."
        raise Problem("busy", detail, retry_after=30) from None
    finally:
        for file in parser.files.values():
            file.file.close()
    if all(file.file_format is None for file in files):
        what = "The file is not" if len(files) == 1 else f"None of the {len(files):,} files is"
        known = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage or zip"
        raise Problem("unsupported-media-type", f"{what} an image that can be read: {known}.")
    return files


def _length(request: Request, unknown: int) -> int:
    """Bytes of the body as the request says."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else unknown


async def _body(
    request: Request, directory: RequestDirectory, settings: Settings
) -> AsyncGenerator[bytes, None]:
    """The bytes of a request, as they come."""
    deadline, received, more = time.monotonic() + settings.seconds, 0, True
    while more:
        wait = min(settings.idle_seconds, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(request.receive(), wait)
        except asyncio.TimeoutError:
            limits = f"for {settings.idle_seconds:g} seconds, or took more than {settings.seconds:g} in all."
            headers = {"Connection": "close"}
            raise Problem("upload-too-slow", f"The upload stopped {limits}", headers=headers) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content, more = message.get("body", b""), message.get("more_body", False)
        received += len(content)
        if received > settings.upload_bytes:
            raise _too_large(settings)
        directory.reserve(len(content))
        yield content


def _too_large(settings: Settings) -> Problem:
    detail = f"The upload is larger than the {settings.upload_bytes:,} bytes of one request."
    return Problem("upload-too-large", detail)


def _checked_name(name: str, number: int) -> str:
    """The name of the file of that number as a relative path; one that leads out of its folder is a problem."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    outside = not parts or ".." in parts or "" in parts or ":" in parts[0]
    too_long = len(name) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in parts)
    if outside or too_long or not name.isprintable():
        detail = f"The name of file {number} of the request is empty, too long, leads out of its folder, or cannot "
        raise Problem("invalid-request", f"{detail}be printed; send a plain name, or a relative path.")
    return "/".join(parts)


def _stored(name: str, file: UploadFile, parser: _Parser, directory: RequestDirectory) -> UploadedFile:
    """A file that was received, on disk where it is an archive or another one may refer to it."""
    stream = file.file
    stream.seek(0)
    file_format = identify(stream.read(HEAD_BYTES))
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if not parser.in_memory:
        stream.close()
    elif len(parser.files) == 1 and file_format is not FileFormat.ZIP:
        return UploadedFile(MemorySource(name, stream.read()), file_format, size)
    else:
        with directory.open(name) as target:
            shutil.copyfileobj(stream, target)
    return UploadedFile(directory.path / name, file_format, size)


class Job:
    """The files of one request on their way to predictions, in threads that all requests share.

    A thread draws one slice, puts the next one behind those of other requests, and classifies it: so reading
    overlaps with classifying, all threads are busy with one request or with many, no large request holds up a
    small one, and each thread holds one slice.
    """

    def __init__(
        self,
        classifier: Classifier,
        files: list[UploadedFile],
        directory: Path,
        heat_maps: HeatMaps,
        most: int,
    ) -> None:
        self._classifier, self._heat_maps, self._most = classifier, heat_maps, most
        self._prefix = f"{directory}{os.sep}"
        items = classifier.read_files([file.source for file in files])
        self._items = cast("Generator[CTSlice | Prediction, None, None]", items)
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._ready: dict[int, Classified | None] = {}
        self._done, self._total = 0, -1
        self._error: BaseException | None = None
        self._stopped = False

    async def predictions(self, workers: ThreadPoolExecutor) -> AsyncGenerator[Classified, None]:
        """The prediction of each slice, in the order of reading, as soon as it is known.

        When the generator is closed or cancelled, no worker has anything of the request in hand any more.

        Raises:
            Problem: there are too many slices.
        """
        workers.submit(self._step, workers, 0)
        number = 0
        try:
            while number != self._total:
                while (classified := self._ready.pop(number, None)) is not None:
                    yield classified
                    number += 1
                if self._done == self._total:
                    break
                await self._wait()
            if self._error is not None:
                raise self._error
        finally:
            self._stopped = True
            while self._done != self._total:
                await self._wait()

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _step(self, workers: ThreadPoolExecutor, number: int) -> None:
        """In a worker: draw a slice and classify it, unless the request has ended."""
        item = classified = None
        try:
            item = None if self._stopped else next(self._items, None)
            if item is not None and number >= self._most:
                detail = f"The files hold more than {self._most:,} slices; send fewer."
                raise Problem("too-many-slices", detail)
        except BaseException as error:  # noqa: BLE001 - raised where the predictions are awaited
            self._error, item = self._error or error, None
        if item is None:
            with suppress(Exception):  # as it has nothing to say about predictions that were made
                self._items.close()
            self._loop.call_soon_threadsafe(self._end, number)
            return
        workers.submit(self._step, workers, number + 1)
        try:
            classified = self._classify(item)
        except BaseException as error:  # noqa: BLE001 - raised where the predictions are awaited
            self._error, self._stopped = self._error or error, True
        self._loop.call_soon_threadsafe(self._take, number, classified)

    def _classify(self, item: CTSlice | Prediction) -> Classified:
        prediction = self._classifier.classify(item, evidence=self._heat_maps != "none")
        evidence, wanted = prediction.evidence, self._heat_maps
        kept = KeptSlice.of(evidence) if evidence is not None and wanted == "link" else None
        heat_map = heat_map_uri(evidence) if evidence is not None and wanted == "inline" else None
        # The client's name for a file is its path below the directory.
        reason = prediction.reason and prediction.reason.replace(self._prefix, "")
        file = prediction.file.removeprefix(self._prefix)
        return Classified(replace(prediction, file=file, reason=reason, evidence=None), kept, heat_map)

    def _take(self, number: int, classified: Classified | None) -> None:
        self._ready[number] = classified
        self._done += 1
        self._news.set()

    def _end(self, total: int) -> None:
        self._total = total
        self._news.set()
