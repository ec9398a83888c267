"""Progress on stderr, so that a command's output stays clean."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class FileProgress:
    """A bar for one file's bytes.

    Attributes:
        total: bytes expected, 0 where the server does not say.
    """

    def __init__(self, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.total = 0
        self._display = Progress(*columns, console=Console(stderr=True))
        self._task = self._display.add_task(name, total=None)
        self._display.start()

    def update(self, count: int) -> None:
        """``count`` more bytes have come."""
        self._display.update(self._task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """Start at 0 again."""
        self._display.update(self._task, completed=0)

    def close(self) -> None:
        """Leave the finished bar standing."""
        self._display.stop()
