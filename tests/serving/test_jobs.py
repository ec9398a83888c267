"""An upload's files on their way to predictions: stored, named as sent, in threads that requests share."""

from __future__ import annotations

import asyncio
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from groundglass.imaging.source import FileFormat
from groundglass.inference.prediction import Prediction, Status
from groundglass.serving.jobs import Job, UploadDirectory, UploadedFile
from groundglass.serving.schemas import Problem

PATIENCE = 60


class Reader:
    """Stands for a classifier: each file is a prediction by itself."""

    def __init__(self, work: Any = None, fails_at: int = -1) -> None:
        self.work, self.fails_at, self.closed = work, fails_at, False

    def read_files(self, files: list[Path]) -> Iterator[Prediction]:
        try:
            for number, file in enumerate(files):
                if number == self.fails_at:
                    raise RuntimeError("reading")
                yield Prediction(Status.FAILED, str(file), "bundle", reason=f"{file}: damaged")
        finally:
            self.closed = True

    def classify(self, item: Prediction, **_: Any) -> Prediction:
        if self.work is not None:
            self.work(item.file)
        return item


def job(reader: Reader, count: int, most: int = 100_000, folder: str = "/uploads/x") -> Job:
    files = [UploadedFile(Path(folder) / f"{number}.png", FileFormat.PNG, 1) for number in range(count)]
    return Job(reader, files, Path(folder), "none", most)  # type: ignore[arg-type]


async def names(work: Job, workers: ThreadPoolExecutor) -> list[str]:
    async with aclosing(work.predictions(workers)) as found:
        return [each.prediction.file async for each in found]


def test_many_files_keep_their_names_in_linear_time() -> None:
    """Each slice's file is found without a search through all files of the upload."""

    async def run() -> None:
        with ThreadPoolExecutor(2) as workers:
            started = time.perf_counter()
            assert await names(job(Reader(), 20_000), workers) == [
                f"{number}.png" for number in range(20_000)
            ]
            assert time.perf_counter() - started < 15, "a search for each slice takes minutes"
            async with aclosing(job(Reader(), 1).predictions(workers)) as found:
                (only,) = [each.prediction async for each in found]
            assert only.reason == "0.png: damaged"

    asyncio.run(run())


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    done: list[str] = []
    gate = threading.Event()

    def wait(_: str) -> None:
        gate.wait(PATIENCE)
        done.append("large")

    async def run() -> None:
        with ThreadPoolExecutor(1) as workers:
            large = asyncio.create_task(names(job(Reader(wait), 500), workers))
            small = asyncio.create_task(names(job(Reader(lambda _: done.append("small")), 2), workers))
            await asyncio.sleep(0.1)
            gate.set()
            await small
            large.cancel()
            await asyncio.wait({large})

    asyncio.run(run())
    last = len(done) - 1 - done[::-1].index("small")
    assert last < 6, "its turn comes between two slices of the other"


@pytest.mark.parametrize("place", ["reading", "classifying", "too many"])
def test_an_error_ends_its_own_request_alone(place: str) -> None:
    def fail(file: str) -> None:
        if file.endswith("/3.png"):
            raise RuntimeError("classifying")

    async def run() -> None:
        reader = Reader(fail if place == "classifying" else None, 3 if place == "reading" else -1)
        with ThreadPoolExecutor(2) as workers:
            with pytest.raises(
                Problem if place == "too many" else RuntimeError,
                match=place.replace("too many", "more than 3"),
            ):
                await names(job(reader, 10, 3 if place == "too many" else 100), workers)
            assert reader.closed
            assert len(await names(job(Reader(), 20), workers)) == 20

    asyncio.run(run())


def test_a_request_that_ends_early_leaves_nothing_running() -> None:
    running: set[int] = set()

    def work(_: str) -> None:
        running.add(threading.get_ident())
        time.sleep(0.05)
        running.discard(threading.get_ident())

    async def run() -> None:
        reader = Reader(work)
        with ThreadPoolExecutor(4) as workers:
            task = asyncio.create_task(names(job(reader, 1000), workers))
            await asyncio.sleep(0.2)
            assert running
            task.cancel()
            await asyncio.wait({task})
            assert not running
            assert reader.closed

    asyncio.run(run())


def test_a_folder_is_private_and_gone_in_the_end(tmp_path: Path) -> None:
    with UploadDirectory(tmp_path, 100) as uploads:
        with uploads.request() as folder:
            folder.open("a").close()
            assert (
                stat.S_IMODE(folder.path.stat().st_mode) == stat.S_IMODE(uploads.path.stat().st_mode) == 0o700
            )
        assert list(uploads.path.iterdir()) == []
        with pytest.raises(Problem), uploads.request() as folder:
            folder.reserve(101)
        assert list(uploads.path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_requests_in_flight_share_their_room(tmp_path: Path) -> None:
    with UploadDirectory(tmp_path, 100) as uploads, uploads.request() as first:
        first.reserve(60)
        with uploads.request() as second:
            second.reserve(40)
            with pytest.raises(Problem) as refused:
                second.reserve(1)
            assert refused.value.status == 503
            assert int(refused.value.headers["Retry-After"]) > 0
        with uploads.request() as third:
            third.reserve(40)
        assert uploads.used == 60
    assert uploads.used == 0
