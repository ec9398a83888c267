"""Where uploads lie while they are worked on: a private folder that is gone when the request is."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from groundglass.serving.problems import busy

_PREFIX = "groundglass-serve-"
_SETTLED = 60.0
"""Seconds after which a folder that nobody has locked was left behind and is not just being made."""


class Scratch:
    """A folder of one service, and in it one of each request; used within ``with``.

    The folder is locked as long as the process lives. What a killed service left behind is removed by the
    next one that starts in the same place.

    Args:
        parent: where it is made; the system's temporary folder unless given.
        limit: bytes of all requests together.
    """

    def __init__(self, parent: Path | None, limit: int) -> None:
        self._parent = Path(tempfile.gettempdir()) if parent is None else parent
        self._limit = limit
        self.used = 0

    def __enter__(self) -> Scratch:
        self._sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        self._lock = _locked(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    @contextmanager
    def folder(self) -> Iterator[RequestFolder]:
        """A folder of its own, removed with all that is in it when the block ends."""
        folder = RequestFolder(self)
        try:
            yield folder
        finally:
            folder.remove()
            self.used -= folder.used

    def take(self, count: int) -> None:
        """Set bytes aside.

        Raises:
            Problem: all requests together would hold more than the limit.
        """
        if self.used + count > self._limit:
            raise busy("The uploads in flight fill the space set aside for them; try again.", retry_after=10)
        self.used += count

    def _sweep(self) -> None:
        for left in self._parent.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if left.is_symlink() or time.time() - left.stat().st_mtime < _SETTLED:
                    continue
                lock = _locked(left)
                if lock is not None:
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(lock)


class RequestFolder:
    """The folder of one request, made when it is first asked for.

    Attributes:
        used: bytes set aside for the request.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.used = 0
        self._scratch = scratch
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """Of the folder.

        Raises:
            OSError: it cannot be made.
        """
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(dir=self._scratch.path))
        return self._path

    def remove(self) -> None:
        """Remove the folder, where there is one, with all that is in it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)

    def take(self, count: int) -> None:
        """Set bytes aside as long as the request lasts.

        Raises:
            Problem: all requests together would hold more than the limit.
        """
        self._scratch.take(count)
        self.used += count


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process has it, or there are no locks."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
