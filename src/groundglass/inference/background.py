"""An iterator that works ahead in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from queue import Full, Queue
from typing import Generic, NoReturn, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PATIENCE = 0.1
"""Seconds after which a thread that waits for room looks whether it is still wanted."""


def in_background(
    items: Iterator[_Item], ahead: int, work: Callable[[_Item], _Result]
) -> Generator[_Result, None, None]:
    """Draw items in a thread, at most ``ahead`` before they are asked for, and work on each; in their order.

    The work is done by whichever thread has time for it: the drawing one while at least half of ``ahead``
    items wait, else the one that asks for the result. So both are busy, whichever has more to do.

    What the items or the work raise is raised here. Closing the generator ends the thread, which closes
    ``items``.
    """
    worker = _Worker(items, ahead, work)
    try:
        for finish in iter(worker.take, None):
            yield finish()
    finally:
        worker.stop()


class _Worker(Generic[_Item, _Result]):
    """The thread, and a queue of calls that give the results; None stands after the last."""

    def __init__(self, items: Iterator[_Item], ahead: int, work: Callable[[_Item], _Result]) -> None:
        self._items = items
        self._enough = ahead // 2
        self._work = work
        self._queue: Queue[Callable[[], _Result] | None] = Queue(maxsize=ahead)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="groundglass-reader", daemon=True)
        self._thread.start()

    def take(self) -> Callable[[], _Result] | None:
        """The call that gives the next result, None after the last."""
        return self._queue.get()

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._unwanted.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            if isinstance(self._items, Generator):
                with closing(self._items):
                    self._draw()
            else:
                self._draw()
        except BaseException as error:  # noqa: BLE001 - raised where the items are asked for
            self._put(partial(_raise, error))
        else:
            self._put(None)

    def _draw(self) -> None:
        for item in self._items:
            if self._queue.qsize() >= self._enough:
                self._put(partial(_same, self._work(item)))
            else:
                self._put(partial(self._work, item))
            if self._unwanted.is_set():
                return

    def _put(self, call: Callable[[], _Result] | None) -> None:
        while not self._unwanted.is_set():
            try:
                self._queue.put(call, timeout=_PATIENCE)
            except Full:
                continue
            return


def _same(result: _Result) -> _Result:
    return result


def _raise(error: BaseException) -> NoReturn:
    raise error
