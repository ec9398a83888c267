"""Progress of an audit on stderr: a bar for each of its stages."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_TITLES = {"reading": "Reading", "comparing": "Comparing", "fitting": "Shortcuts"}


class AuditProgress:
    """Shows how far each stage is, as long as the block lasts; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> AuditProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def advance(self, stage: str, steps: int, total: int | None) -> None:
        """``steps`` more of a stage are done, of ``total`` if that is known."""
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(_TITLES[stage], total=total)
        self._display.update(self._tasks[stage], advance=steps, total=total)
