"""Threads that work on many requests: all of them busy, none of the requests forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from groundglass.serving.workers import FairWorkers, Steps

PATIENCE = 60


class Finished:
    """Waits for tasks."""

    def __init__(self, count: int) -> None:
        self.errors: list[BaseException | None] = []
        self._left = threading.Semaphore(0)
        self._count = count

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self._left.release()

    def wait(self) -> None:
        for _ in range(self._count):
            assert self._left.acquire(timeout=PATIENCE)


def calls(call: Callable[[int], None], count: int) -> Steps:
    for number in range(count):
        yield lambda number=number: call(number)


def test_a_small_task_does_not_wait_for_a_large_one() -> None:
    done: list[str] = []
    finished = Finished(2)
    gate = threading.Event()

    def large(number: int) -> None:
        gate.wait(PATIENCE)
        done.append(f"large {number}")

    with FairWorkers(1) as workers:
        workers.submit(calls(large, 50), finished, heavy=True)
        workers.submit(calls(lambda number: done.append(f"small {number}"), 2), finished, heavy=False)
        gate.set()
        finished.wait()
    assert done.index("small 1") < 6
    assert len(done) == 52


def test_one_task_keeps_all_threads_busy() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)
    finished = Finished(1)
    with FairWorkers(3) as workers:
        workers.submit(calls(lambda _: together.wait() and None, 3), finished, heavy=True)
        finished.wait()
    assert finished.errors == [None]


@pytest.mark.parametrize("place", ["drawing", "running"])
def test_an_error_ends_its_own_task_alone(place: str) -> None:
    closed = threading.Event()

    def failing() -> Steps:
        try:
            for number in range(1000):
                if place == "drawing" and number == 3:
                    raise ValueError(place)
                yield lambda number=number: None if place == "drawing" or number < 3 else _fail(place)
        finally:
            closed.set()

    bad, good = Finished(1), Finished(1)
    with FairWorkers(2) as workers:
        workers.submit(failing(), bad, heavy=False)
        workers.submit(calls(lambda _: None, 20), good, heavy=False)
        bad.wait()
        good.wait()
        assert workers.alive
    assert [str(error) for error in bad.errors] == [place]
    assert good.errors == [None]
    assert closed.is_set()


def _fail(text: str) -> None:
    raise ValueError(text)


def test_few_heavy_tasks_are_open_at_a_time() -> None:
    lock, open_now, most = threading.Lock(), 0, 0

    def heavy() -> Steps:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        for _ in range(5):
            yield lambda: time.sleep(0.001)
        with lock:
            open_now -= 1

    finished = Finished(12)
    with FairWorkers(2) as workers:
        for _ in range(12):
            workers.submit(heavy(), finished, heavy=True)
        finished.wait()
    assert most <= 2
    assert finished.errors == [None] * 12


def test_who_waits_is_told_only_when_nothing_runs_any_more() -> None:
    running = 0
    lock = threading.Lock()
    seen: list[int] = []
    told = threading.Event()

    def step(_: int) -> None:
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.002)
        with lock:
            running -= 1

    def done(_: BaseException | None) -> None:
        seen.append(running)
        told.set()

    with FairWorkers(4) as workers:
        workers.submit(calls(step, 40), done, heavy=False)
        assert told.wait(PATIENCE)
    assert seen == [0]
