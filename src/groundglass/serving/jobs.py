"""A service and its uploads: admitted and received within limits, stored for the time of a request, classified."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from email.message import Message
from email.utils import collapse_rfc2231_value
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from unicodedata import category, normalize

import prometheus_client as prometheus
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from groundglass.errors import ServiceError
from groundglass.files import locked, usable_cores
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import FileFormat, FileSource, MemorySource, identify, is_junk
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.inputs import expand
from groundglass.inference.prediction import Prediction
from groundglass.serving.results import KeptSlice, Results
from groundglass.serving.security import Problem
from groundglass.serving.settings import MIB, Settings

_PREFIX = "groundglass-serve-"
_ABANDONED = 60.0  # seconds after which a directory that no process has locked is not just being made
_LARGE = 16 * MIB  # a file above it is opened beside few others: it may be held in memory whole
_PART_BYTES = 1024  # what a form may add to each file
# Bytes of a name and of each of its parts, as file systems bound them, how many parts it has, and parameters beside it.
_LONGEST_NAME, _LONGEST_PART, _DEEPEST, _MOST_PARAMETERS = 2000, 255, 8, 100
_SLOW = re.compile(rb"=\s*\"?(punycode|idna)'", re.IGNORECASE)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_Packed = TypeVar("_Packed")


@contextmanager
def upload_directory(parent: Path | None) -> Iterator[Path]:
    """A private directory of one service, locked while its process lives; what killed services left goes first.

    Raises:
        ServiceError: nothing can be written there.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, ModuleNotFoundError):
            if time.time() - left.lstat().st_mtime > _ABANDONED:
                with locked(left):
                    shutil.rmtree(left, ignore_errors=True)
    try:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ServiceError(f"{parent}: uploads cannot be stored there ({error.strerror})") from None
    with made as name, ExitStack() as lock:
        with suppress(OSError, ModuleNotFoundError):
            lock.enter_context(locked(Path(name)))
        lock.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = name  # of the copies that readers make
        yield Path(name)


def upload_size(request: Request, settings: Settings) -> int:
    """Bytes that a request's body may have: as many as it says, or where it does not as any may.

    Raises:
        Problem: it says more than any may.
    """
    most = min(settings.upload_mib * MIB + _PART_BYTES * settings.files, settings.uploads_mib * MIB)
    length = request.headers.get("content-length", "").lstrip("0")
    return _within(int(length), most, settings) if length.isdecimal() else most


def _within(size: int, most: int, settings: Settings) -> int:
    if size > most:
        most = min(settings.upload_mib, settings.uploads_mib) * MIB
        detail = f"The upload is larger than the {most:,} bytes of one request."
        raise Problem("upload-too-large", detail)
    return size


async def _body(request: Request, size: int, settings: Settings) -> AsyncGenerator[bytes, None]:
    """A form as it comes."""
    chunks, received, deadline = request.stream(), 0, time.monotonic() + settings.seconds
    content = None
    while content != b"":  # with which the stream ends
        try:
            wait = min(settings.idle_seconds, deadline - time.monotonic())
            content = await asyncio.wait_for(anext(chunks), wait)
        except TimeoutError:
            limits = f"for {settings.idle_seconds:g} seconds, or took more than {settings.seconds:g} in all."
            raise Problem("upload-too-slow", f"The upload stopped {limits}", Connection="close") from None
        received = _within(received + len(content), size, settings)
        yield content


class _StoredFile(UploadFile):
    async def seek(self, offset: int) -> None:
        """Called when the file is complete, and closes it: of many files only one is open at a time."""
        self.file.close()


class _Form(MultiPartParser):
    """Takes every part as a file, under a name of its own that stays below the directory of its request."""

    def __init__(self, request: Request, size: int, directory: Path, settings: Settings) -> None:
        super().__init__(request.headers, _body(request, size, settings), max_files=settings.files)
        # Writing a file costs more than all else that is done to receive one slice.
        self.in_memory = size <= MIB
        self._directory = directory
        self.received: dict[str, UploadFile] = {}
        self._paths: dict[str, bool] = {}  # of files and their folders; whether it is a folder
        self._folders: dict[str, str] = {}  # what a folder is called here, so that its files stay together
        self.complete = False

    def on_headers_finished(self) -> None:
        if len(self.received) >= self.max_files:
            raise Problem("too-many-files", f"More than {self.max_files:,} files in one request; send fewer, or a zip.")
        name = self._free(_plain_parts(_sent_name(self._current_part.content_disposition or b"")))
        self._current_part.file = self.received[name] = (
            UploadFile(cast("BinaryIO", tempfile.SpooledTemporaryFile(MIB)))  # noqa: SIM115
            if self.in_memory
            else _StoredFile(_create(self._directory / name))
        )

    def _free(self, parts: list[str]) -> str:
        """The name with a number in it where another file has it, or is called as one of its folders."""
        for depth, part in enumerate(parts, start=1):
            suffix = PurePosixPath(part).suffix if len(part) < _LONGEST_PART // 8 else ""
            folder, number, asked = depth < len(parts), len(self.received), "/".join(parts[:depth])
            if folder:
                parts[depth - 1] = self._folders.get(asked, part)
            # Some file systems know neither case nor how an accent is written.
            while (path := normalize("NFC", "/".join(parts[:depth])).casefold()) in self._paths and not (
                folder and self._paths[path]
            ):
                number += 1
                parts[depth - 1] = _shortened(f"{part.removesuffix(suffix)}-{number}{suffix}")
            self._paths[path] = folder
            if folder:
                self._folders[asked] = parts[depth - 1]
        return "/".join(parts)

    def on_end(self) -> None:
        self.complete = True


def _sent_name(disposition: bytes) -> str:
    """What a part of a form calls its file; else, as it may be a file all the same, what it calls itself."""
    # Of which the parser, or the character set, takes the square in time.
    if disposition.count(b";") > _MOST_PARAMETERS or _SLOW.search(disposition):
        return ""
    header = Message()  # which knows of filename*, and of filename*0
    try:
        header["Content-Disposition"] = disposition.decode()
    except UnicodeDecodeError:
        header["Content-Disposition"] = disposition.decode("latin-1")
    for said in (header.get_filename, partial(header.get_param, "name", None, "content-disposition")):
        with suppress(ValueError, TypeError):  # no such character set, or pieces of a name in no order
            if name := said():
                return collapse_rfc2231_value(name)
    return ""


def _plain_parts(name: str) -> list[str]:
    """The folders and the file of a name that stays below its directory and can be printed."""
    plain = "".join(map(_plain, name.replace("\\", "/")))
    parts = [_shortened(part.strip()) for part in plain.split("/") if part.strip(". ")]
    while len(parts) > _DEEPEST or len("/".join(parts).encode()) > _LONGEST_NAME:
        del parts[0]
    return parts or ["file"]


def _plain(character: str) -> str:
    if character.isspace():
        return " "
    if category(character) == "Cf":  # such as marks of direction, and joiners
        return ""
    return character if character.isprintable() and character not in ":!" else "_"


def _shortened(part: str) -> str:
    content = part.encode()
    if len(content) <= _LONGEST_PART:
        return part
    return f"{content[:180].decode(errors='ignore')}…{content[-60:].decode(errors='ignore')}"


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


class Upload(NamedTuple):
    """The files of one request."""

    received: int
    files: list[MemorySource | Path]  # with folders; on disk or, where there is only a small one, in memory
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
    form = _Form(request, size, directory, settings)
    try:
        await form.parse()
        if not form.complete:
            raise Problem("bad-request", "The multipart form is damaged: it ends before its last boundary.")
        if not form.received:
            raise Problem("invalid-request", "The request holds no file; send one or more.")
        return await run_sync(_store, form, directory)
    except MultiPartException as error:
        raise Problem("bad-request", f"The multipart form is damaged: {error.message}") from None
    except OSError:
        raise Problem("busy", "The service has no space for the upload; try again later.", Retry_After=30) from None
    finally:
        for file in form.received.values():
            file.file.close()


def _store(form: _Form, directory: Path) -> Upload:
    """What was received, on disk where it is an archive or another file may refer to it."""
    # In their order; what has a folder's name is read as a folder.
    files: dict[MemorySource | Path, None] = {}
    formats, large, alone = set[FileFormat | None](), False, len(form.received) == 1
    for name, received in form.received.items():
        path = directory / name
        source = MemorySource(name, received.file.read()) if form.in_memory else FileSource(path)
        file_format = identify(source.head())
        formats.add(None if "/" in name and is_junk(PurePosixPath(name)) else file_format)
        large |= source.size > _LARGE
        if isinstance(source, MemorySource):
            if alone and file_format != "zip":
                files[source] = None
                continue
            with _create(path) as target:
                target.write(source.content)
        files[directory / name.partition("/")[0]] = None
    if formats == {None}:
        what = "The file is not" if alone else f"None of the {len(form.received):,} files is"
        known = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage, NRRD or zip"
        raise Problem("unsupported-media-type", f"{what} an image that can be read: {known}.")
    heavy = large or not formats.isdisjoint({"zip", "gzip"})
    return Upload(len(form.received), list(files) if alone else [*expand(list(map(str, files)))], directory, heavy)


class Service:
    """What one running service holds, for one event loop; ``uploads`` is where its uploads in flight lie."""

    def __init__(self, bundle: Bundle, settings: Settings, uploads: Path) -> None:
        self.bundle, self.settings, self.uploads = bundle, settings, uploads
        self.classifier = Classifier(bundle, settings.reading)
        self.results = Results(settings)
        self.threads = settings.workers or usable_cores()
        self.workers = ThreadPoolExecutor(self.threads, "groundglass-worker")  # which read and classify
        self.heavy = asyncio.Semaphore(self.threads)  # of requests that may each hold a volume in memory
        self.drawing, self._packing = CapacityLimiter(2), CapacityLimiter(1)
        self.draining = False  # a signal has come to end it, and still answers
        self.in_flight = self._upload_bytes = 0  # uploads that are received or worked on
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        named = partial(prometheus.Counter, namespace="groundglass", registry=self.registry)
        self.requests = named("requests", "Requests answered.", ("method", "route", "status"))
        self.received = named("received_bytes", "Bytes of request bodies.")
        self.predictions = named("predictions", "Predictions made.", ("status", "label"))
        self.latency = prometheus.Histogram(
            "groundglass_request_seconds", "Of an answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        for name, value in {
            "uploads_in_flight": lambda: self.in_flight,
            "upload_bytes": lambda: self._upload_bytes,
            "kept_results": lambda: len(self.results),
            "kept_bytes": lambda: self.results.size,
            "ready": lambda: not self.draining,
        }.items():
            described = f"{name.replace('_', ' ').capitalize()}, now."
            prometheus.Gauge(f"groundglass_{name}", described, registry=self.registry).set_function(value)

    @contextmanager
    def admit(self, size: int) -> Iterator[Path]:
        """Take on an upload while the block lasts; gives its directory, which is removed then.

        Raises:
            Problem: there are as many as there may be, or they hold as many bytes.
        """
        limits = self.settings
        if self.in_flight >= limits.requests:
            raise Problem("busy", f"{limits.requests} uploads are in flight, as many as there may be.", Retry_After=2)
        if self._upload_bytes + size > limits.uploads_mib * MIB:
            raise Problem("busy", "The uploads in flight fill the space set aside for them.", Retry_After=10)
        self.in_flight += 1
        self._upload_bytes += size
        directory = self.uploads / secrets.token_hex(8)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            self._upload_bytes -= size
            self.in_flight -= 1

    async def pack(self, make: Callable[[], _Packed]) -> _Packed:
        """What a thread makes, one at a time.

        Raises:
            Problem: as many wait for it as may.
        """
        if self._packing.statistics().tasks_waiting >= self.settings.requests:
            raise Problem("busy", "As many archives are being made as there may be.", Retry_After=30)
        return await run_sync(make, limiter=self._packing)

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
        slices, prefix = self.classifier.read_files(upload.files), f"{upload.directory}{os.sep}"

        def classify(item: CTSlice | Prediction) -> tuple[Prediction, KeptSlice | None]:
            made = self.classifier.classify(item, evidence=keep)
            # The client's name for a file is its path below the directory.
            reason = made.reason and made.reason.replace(prefix, "")
            named = replace(made, file=made.file.removeprefix(prefix), reason=reason, evidence=None)
            return named, None if made.evidence is None else KeptSlice.of(made.evidence)

        reading, made = Future[Any](), deque[Future[Any]]()
        try:
            for number in count():
                reading = self.workers.submit(next, slices, None)
                item = await asyncio.wrap_future(reading)
                if item is not None:
                    if number >= self.settings.slices:
                        detail = f"The files hold more than {self.settings.slices:,} slices; send fewer."
                        raise Problem("too-many-slices", detail)
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
