"""An iterator that works ahead in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from queue import Full, Queue
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

_PATIENCE = 0.1
"""Seconds after which a thread that waits for room looks whether it is still wanted."""


def in_background(items: Iterator[_Item], ahead: int) -> Generator[_Item, None, None]:
    """Draw items in a thread, at most ``ahead`` before they are asked for; in the same order.

    What the items raise is raised here. Closing the generator ends the thread, which closes ``items``.
    """
    worker = _Worker(items, ahead)
    try:
        yield from iter(worker.take, None)
    finally:
        worker.stop()


class _Worker(Generic[_Item]):
    def __init__(self, items: Iterator[_Item], ahead: int) -> None:
        self._items = items
        self._queue: Queue[_Item | BaseException | None] = Queue(maxsize=ahead)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="groundglass-reader", daemon=True)
        self._thread.start()

    def take(self) -> _Item | None:
        """The next item, None after the last."""
        entry = self._queue.get()
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._unwanted.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            if isinstance(self._items, Generator):
                with closing(self._items):
                    self._draw()
            else:
                self._draw()
        except BaseException as error:  # noqa: BLE001 - raised where the items are asked for
            self._put(error)
        else:
            self._put(None)

    def _draw(self) -> None:
        for item in self._items:
            self._put(item)
            if self._unwanted.is_set():
                return

    def _put(self, entry: _Item | BaseException | None) -> None:
        while not self._unwanted.is_set():
            try:
                self._queue.put(entry, timeout=_PATIENCE)
            except Full:
                continue
            return
