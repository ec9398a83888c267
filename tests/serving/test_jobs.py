"""An upload's files on their way to predictions: stored, named as sent, in threads that requests share."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import PATIENCE

from groundglass.inference.prediction import Prediction, Status
from groundglass.serving.jobs import Upload, classify_files, upload_directory
from groundglass.serving.problems import Problem


class Reader:
    """Stands for a classifier: each file is a prediction by itself."""

    def __init__(self, work: Callable[[str], Any] = str, fails_at: int = -1) -> None:
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
        self.work(item.file)
        return item


async def predicted(reader: Reader, count: int, workers: ThreadPoolExecutor, most: int = 10_000) -> list[str]:
    """Names of the files that were classified."""
    folder = Path("/uploads/x")
    upload = Upload([folder / f"{number}.png" for number in range(count)], folder, heavy=False)
    made = classify_files(upload, reader, workers, keep=False, most=most, ahead=2)  # type: ignore[arg-type]
    async with aclosing(made) as found:
        return [prediction.file async for prediction, _ in found]


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    done: list[str] = []
    gate = threading.Event()

    def wait(_: str) -> None:
        gate.wait(PATIENCE)
        done.append("large")

    async def run() -> None:
        with ThreadPoolExecutor(1) as workers:
            large = asyncio.create_task(predicted(Reader(wait), 500, workers))
            small = asyncio.create_task(predicted(Reader(lambda _: done.append("small")), 2, workers))
            await asyncio.sleep(0.1)
            gate.set()
            await small
            large.cancel()
            await asyncio.wait({large})

    asyncio.run(run())
    last = len(done) - 1 - done[::-1].index("small")
    assert last < 6, "its turn comes between two slices of the other"


@pytest.mark.parametrize("place", ["reading", "classifying", "more than 3"])
def test_an_error_ends_its_own_request_alone(place: str) -> None:
    def fail(file: str) -> None:
        if place == "classifying" and file.endswith("/3.png"):
            raise RuntimeError(place)

    async def run() -> None:
        reader = Reader(fail, 3 if place == "reading" else -1)
        with ThreadPoolExecutor(2) as workers:
            with pytest.raises((Problem, RuntimeError), match=place):
                await predicted(reader, 10, workers, 3 if place == "more than 3" else 100)
            assert reader.closed
            assert await predicted(Reader(), 20, workers) == [f"{number}.png" for number in range(20)]

    asyncio.run(run())


def test_a_request_that_ends_early_leaves_nothing_running() -> None:
    running: set[int] = set()
    begun, gate = threading.Event(), threading.Event()

    def work(_: str) -> None:
        running.add(threading.get_ident())
        begun.set()
        gate.wait(PATIENCE)
        running.discard(threading.get_ident())

    async def run() -> None:
        reader = Reader(work)
        with ThreadPoolExecutor(4) as workers:
            task = asyncio.create_task(predicted(reader, 1000, workers))
            await asyncio.to_thread(begun.wait, PATIENCE)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=0.1)
            assert not done, "it waits for the slice that is being classified"
            gate.set()
            await asyncio.wait({task})
            assert not running
            assert reader.closed

    asyncio.run(run())


def test_the_directory_is_private_and_what_is_not_the_services_own_is_left_alone(tmp_path: Path) -> None:
    for name in ("elsewhere", "groundglass-serve-new", "groundglass-serve-old"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    link = tmp_path / "groundglass-serve-link"
    link.symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "groundglass-serve-old", tmp_path / "elsewhere", link):
        os.utime(path, (0, 0), follow_symlinks=False)
    with upload_directory(tmp_path) as uploads:
        assert stat.S_IMODE(uploads.stat().st_mode) == 0o700
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["elsewhere", "elsewhere/file", "groundglass-serve-link", "groundglass-serve-new"]
