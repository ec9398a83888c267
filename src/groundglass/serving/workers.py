"""A fixed number of threads that share their time fairly among requests, one slice of each in turn."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue

Step = Callable[[], None]
Steps = Generator[Step, None, None]
Done = Callable[[BaseException | None], None]


@dataclass
class _Task:
    """A request's work.

    Attributes:
        steps: drawn by one thread at a time; what they give is run by any, beside others.
        heavy: opened beside few others.
        done: told once that nothing of it runs any more, and what it failed of.
        running: steps that were drawn and have not ended.
        drawn: whether there are no more.
        error: the first one.
    """

    steps: Steps
    heavy: bool
    done: Done
    running: int = 0
    drawn: bool = False
    error: BaseException | None = None


class FairWorkers:
    """Threads that work on many tasks at once; used within ``with``, whose end stops them.

    Each task is a generator whose items are calls. A thread draws one item of the task that has waited
    longest, puts the task behind the others, and runs the call: so drawing (reading a file) and running
    (asking the network) overlap within a task and between tasks, all threads are busy with one task or with
    many, no large task holds up a small one, and each thread holds one slice.

    Of heavy tasks no more than there are threads are begun at a time: each may hold a volume in memory.

    Args:
        count: of threads.
    """

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        self._most_heavy = count
        self._heavy = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"groundglass-worker-{number}", daemon=True)
            for number in range(count)
        ]

    def __enter__(self) -> FairWorkers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def alive(self) -> bool:
        """Whether all threads work."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, steps: Steps, done: Done, *, heavy: bool) -> None:
        """Take a task on.

        Args:
            steps: its calls; closed when the task ends, also by an error.
            done: called once, in a thread of its own choosing, when nothing of the task runs any more.
            heavy: it may hold much memory.
        """
        task = _Task(steps, heavy, done)
        with self._lock:
            if heavy and self._heavy >= self._most_heavy:
                self._waiting.append(task)
                return
            self._heavy += heavy
        self._queue.put(task)

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            step = self._draw(task)
            if step is not None:
                self._queue.put(task)  # before the call, so that others go on with it meanwhile
                self._call(task, step)
            self._finish(task, drawn=step is None)

    def _draw(self, task: _Task) -> Step | None:
        """The next call, which counts as running from now on; None at the end or after an error."""
        with self._lock:
            failed = task.error is not None
        step = None
        try:
            if failed:
                task.steps.close()
            else:
                step = next(task.steps, None)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the task
            self._fail(task, error)
        with self._lock:
            task.running += step is not None
        return step

    def _call(self, task: _Task, step: Step) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the task
            self._fail(task, error)

    def _fail(self, task: _Task, error: BaseException) -> None:
        with self._lock:
            task.error = task.error or error

    def _finish(self, task: _Task, *, drawn: bool) -> None:
        """After a call, or after the end of the task was found."""
        following = None
        with self._lock:
            if drawn:
                task.drawn = True
            else:
                task.running -= 1
            if not task.drawn or task.running:
                return
            if task.heavy:
                following = self._waiting.popleft() if self._waiting else None
                self._heavy -= following is None
        if following is not None:
            self._queue.put(following)
        try:
            task.done(task.error)
        except Exception as error:  # noqa: BLE001 - a thread must outlive whom it tells
            logging.getLogger(__name__).error("whoever waits for a task failed: %s", type(error).__name__)
