"""A service and its uploads: admitted and received within limits, stored for the time of a request, classified."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import prometheus_client as prometheus
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from groundglass.errors import ServiceError
from groundglass.files import usable_cores
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import FileFormat, FileSource, MemorySource, identify
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction
from groundglass.serving.problems import Problem
from groundglass.serving.results import KeptSlice, Results
from groundglass.serving.settings import MIB, Settings

_PREFIX = "groundglass-serve-"
_ABANDONED = 60.0
"""Seconds after which a directory that no process has locked was left behind, and is not just being made."""
_LARGE = 16 * MIB
"""Bytes above which a file is opened beside few others: it may be held in memory whole."""
_PART_BYTES = 1024
"""What the form may add to each file: its boundary and headers."""
_LONGEST_NAME, _LONGEST_PART = 1000, 200
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@contextmanager
def upload_directory(parent: Path | None) -> Iterator[Path]:
    """A private directory of one service, locked as long as its process lives, and removed when the block ends.

    What a killed service left behind in the ``parent`` directory, which is the system's temporary one unless given,
    is removed first.

    Raises:
        ServiceError: nothing can be written there.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, ModuleNotFoundError):
            if time.time() - left.lstat().st_mtime > _ABANDONED:
                with _locked(left):
                    shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
            path = Path(stack.enter_context(made))
        except OSError as error:
            raise ServiceError(f"{parent}: uploads cannot be stored there ({error.strerror})") from None
        with suppress(OSError, ModuleNotFoundError):
            stack.enter_context(_locked(path))
        yield path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process.

    Raises:
        OSError: another process holds it, it is a link, or the file system knows no locks.
        ModuleNotFoundError: the system knows none (Windows).
    """
    import fcntl  # noqa: PLC0415 - not on Windows

    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def upload_size(request: Request, settings: Settings) -> int:
    """Bytes that a request's body may have: as many as it says, or where it does not as any may.

    Raises:
        Problem: it says more than any may.
    """
    most = min(settings.upload_bytes + _PART_BYTES * settings.files, settings.uploads_bytes)
    length = request.headers.get("content-length", "")
    return _within(int(length), most, settings) if length.isdecimal() else most


def _within(size: int, most: int, settings: Settings) -> int:
    if size > most:
        detail = f"The upload is larger than the {settings.upload_bytes:,} bytes of one request."
        raise Problem("upload-too-large", detail)
    return size


async def _body(request: Request, size: int, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The bytes of a request, as they come."""
    received, more, deadline = 0, True, time.monotonic() + settings.seconds
    while more:
        wait = min(settings.idle_seconds, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(request.receive(), wait)
        except asyncio.TimeoutError:
            limits = f"for {settings.idle_seconds:g} seconds, or took more than {settings.seconds:g} in all."
            raise Problem("upload-too-slow", f"The upload stopped {limits}", Connection="close") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content, more = message.get("body", b""), message.get("more_body", False)
        received = _within(received + len(content), size, settings)
        yield content


class _StoredFile(UploadFile):
    async def seek(self, offset: int) -> None:
        """Called when the file is complete, and closes it: of many files only one is open at a time."""
        self.file.close()


class _Parser(MultiPartParser):
    """Takes files and nothing else, under names that stay below the directory of their request."""

    def __init__(self, request: Request, size: int, directory: Path, settings: Settings) -> None:
        super().__init__(request.headers, _body(request, size, settings), max_files=settings.files)
        # Writing a file costs more than all else that is done to receive one slice.
        self.in_memory = size <= MIB
        self._directory = directory
        self.files: dict[str, UploadFile] = {}
        self.complete = False

    def on_headers_finished(self) -> None:
        if len(self.files) >= self.max_files:
            detail = f"More than {self.max_files:,} files in one request; send fewer, or a zip."
            raise Problem("too-many-files", detail)
        super().on_headers_finished()
        file = self._current_part.file
        if file is None:
            detail = "A part of the request is no file (it has no file name); options belong in the address."
            raise Problem("invalid-request", detail)
        name = _checked_name(file.filename or "", len(self.files) + 1)
        if not self.in_memory:
            file = self._current_part.file = _StoredFile(_create(self._directory, name))
        elif name in self.files:
            raise Problem("invalid-request", f"Two files of the request are named {name}.")
        self.files[name] = file

    def on_end(self) -> None:
        self.complete = True


def _checked_name(name: str, number: int) -> str:
    """The name of the file of that number as a relative path; one that leads out of its folder is a problem."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    outside = not parts or ".." in parts or "" in parts or ":" in parts[0]
    too_long = len(name) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in parts)
    if outside or too_long or not name.isprintable():
        detail = f"The name of file {number} of the request is empty, too long, leads out of its folder, or cannot "
        raise Problem("invalid-request", f"{detail}be printed; send a plain name, or a relative path.")
    return "/".join(parts)


def _create(directory: Path, name: str) -> BinaryIO:
    """A new file; where another one has its name, or that of its folder, it is a problem."""
    path = directory / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        detail = f"Two files of the request are named {name}; send them with their folders, as a/{name}."
        raise Problem("invalid-request", detail) from None


class Upload(NamedTuple):
    """The files of one request."""

    files: list[MemorySource | Path]  # on disk or, where there is only a small one, in memory
    directory: Path  # that those on disk lie in
    heavy: bool  # reading them may take much memory


async def receive_files(request: Request, size: int, directory: Path, settings: Settings) -> Upload:
    """Take a request's files in, of ``size`` bytes at most.

    Raises:
        Problem: no form, a damaged one, one without images, larger than allowed, or too slow.
        ClientDisconnect: the connection was closed.
    """
    if parse_options_header(request.headers.get("content-type", ""))[0] != b"multipart/form-data":
        raise Problem("unsupported-media-type", "Send the files as multipart/form-data.")
    parser = _Parser(request, size, directory, settings)
    try:
        await parser.parse()
        if not parser.complete:
            raise Problem("bad-request", "The multipart form is damaged: it ends before its last boundary.")
        if not parser.files:
            raise Problem("invalid-request", "The request holds no file; send one or more, each with a name.")
        return await run_sync(_store, parser, directory)
    except MultiPartException as error:
        raise Problem("bad-request", f"The multipart form is damaged: {error.message}") from None
    except OSError:
        detail = "The service has no space for the upload; try again later."
        raise Problem("busy", detail, Retry_After=30) from None
    finally:
        for file in parser.files.values():
            file.file.close()


def _store(parser: _Parser, directory: Path) -> Upload:
    """What was received, on disk where it is an archive or another file may refer to it."""
    files: list[MemorySource | Path] = []
    formats, large, alone = set[FileFormat | None](), False, len(parser.files) == 1
    for name, received in parser.files.items():
        path = directory / name
        source = MemorySource(name, received.file.read()) if parser.in_memory else FileSource(path)
        file_format = identify(source.head())
        formats.add(file_format)
        large |= source.size > _LARGE
        if isinstance(source, MemorySource) and alone and file_format is not FileFormat.ZIP:
            files.append(source)
            continue
        if isinstance(source, MemorySource):
            with _create(directory, name) as target:
                target.write(source.content)
        files.append(path)
    if formats == {None}:
        what = "The file is not" if alone else f"None of the {len(files):,} files is"
        known = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage or zip"
        raise Problem("unsupported-media-type", f"{what} an image that can be read: {known}.")
    return Upload(files, directory, large or not formats.isdisjoint({FileFormat.ZIP, FileFormat.GZIP}))


class Service:
    """What one running service holds, for one event loop; ``uploads`` is where its uploads in flight lie."""

    def __init__(self, bundle: Bundle, settings: Settings, uploads: Path) -> None:
        self.bundle, self.settings, self.uploads = bundle, settings, uploads
        self.classifier = Classifier(bundle, 1, settings.reading)  # each worker runs it by itself
        self.results = Results(settings)
        self.threads = settings.workers or usable_cores()
        self.workers = ThreadPoolExecutor(self.threads, "groundglass-worker")  # which read and classify
        self.heavy = asyncio.Semaphore(self.threads)  # of requests that may each hold a volume in memory
        self.drawing, self.reporting = CapacityLimiter(2), CapacityLimiter(1)
        self.draining = False  # a signal has come to end it, and still answers
        self.upload_bytes = 0
        self._of_client = Counter[str]()
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        named = partial(prometheus.Counter, namespace="groundglass", registry=registry)
        self.requests = named("requests", "Requests answered.", ("method", "route", "status"))
        self.received = named("received_bytes", "Bytes of request bodies.")
        self.predictions = named("predictions", "Predictions made.", ("status", "label"))
        self.latency = prometheus.Histogram(
            "groundglass_request_seconds", "Of an answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        for name, value in {
            "uploads_in_flight": lambda: self.in_flight,
            "upload_bytes": lambda: self.upload_bytes,
            "kept_results": lambda: len(self.results),
            "kept_bytes": lambda: self.results.size,
            "ready": lambda: not self.draining,
        }.items():
            described = f"{name.replace('_', ' ').capitalize()}, now."
            prometheus.Gauge(f"groundglass_{name}", described, registry=registry).set_function(value)

    @property
    def in_flight(self) -> int:
        """Uploads that are received or worked on."""
        return self._of_client.total()

    @contextmanager
    def admit(self, client: str, size: int) -> Iterator[Path]:
        """Take on an upload of a client's address while the block lasts; gives its directory, which is removed then.

        Raises:
            Problem: there are as many as there may be, or they hold as many bytes.
        """
        limits, of_client = self.settings, self.settings.client_requests
        if of_client is not None and self._of_client[client] >= of_client:
            detail = f"{of_client} uploads of this client are in flight, as many as one may have."
            raise Problem("too-many-requests", detail, Retry_After=2)
        if self.in_flight >= limits.requests:
            detail = f"{limits.requests} uploads are in flight, as many as there may be."
            raise Problem("busy", detail, Retry_After=2)
        if self.upload_bytes + size > limits.uploads_bytes:
            raise Problem("busy", "The uploads in flight fill the space set aside for them.", Retry_After=10)
        self._of_client[client] += 1
        self.upload_bytes += size
        directory = self.uploads / secrets.token_hex(8)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            self.upload_bytes -= size
            self._of_client -= Counter((client,))  # which drops zeros

    async def classify(
        self, upload: Upload, *, keep: bool
    ) -> AsyncGenerator[tuple[Prediction, KeptSlice | None], None]:
        """The prediction of each slice, in the order of reading, as soon as it is known; with what to ``keep`` of it.

        Reading a slice and classifying it are tasks for threads that all requests share, and each waits behind
        those of other requests: so reading overlaps with classifying, and no large request holds up a small one.
        When the generator is closed or cancelled, no thread has anything of the upload in hand any more.

        Raises:
            Problem: there are too many slices.
        """
        prefix = f"{upload.directory}{os.sep}"
        slices = self.classifier.read_files(upload.files)

        def classify(item: CTSlice | Prediction) -> tuple[Prediction, KeptSlice | None]:
            made = self.classifier.classify(item, evidence=keep)
            # The client's name for a file is its path below the directory.
            reason = made.reason and made.reason.replace(prefix, "")
            named = replace(made, file=made.file.removeprefix(prefix), reason=reason, evidence=None)
            return named, None if made.evidence is None else KeptSlice.of(made.evidence)

        reading: Future[Any] = Future()
        made = deque[Future[Any]]()
        try:
            for number in count():
                reading = self.workers.submit(next, slices, None)
                item = await asyncio.wrap_future(reading)
                if item is not None and number >= self.settings.slices:
                    detail = f"The files hold more than {self.settings.slices:,} slices; send fewer."
                    raise Problem("too-many-slices", detail)
                if item is not None:
                    made.append(self.workers.submit(classify, item))
                while made and (item is None or made[0].done() or len(made) > self.threads):
                    yield await asyncio.wrap_future(made[0])
                    made.popleft()
                if item is None:
                    break
        finally:
            left = [asyncio.wrap_future(task) for task in (reading, *made) if not task.cancel()]
            if left:
                await asyncio.wait(left)
            with suppress(Exception):  # as it has nothing to say about predictions that were made
                slices.close()
