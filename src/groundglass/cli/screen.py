"""What a prediction shows while it runs: findings on standard output, and progress on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from groundglass.cli.findings_table import FindingsTable, Part, series_lines
from groundglass.inference.finding import Finding
from groundglass.inference.findings_file import FindingsWriter, Format, findings_writer
from groundglass.inference.study import Studies


class Screen:
    """Shows findings as they come, and holds none of them.

    The progress bar is drawn only where a terminal shows nothing else but the table, so that no output is
    disturbed by it.

    Args:
        printed: format on standard output; None for the table.
        quiet: show nothing but what was asked for by its format.
        keep_identifiers: findings say who is on a slice.
    """

    def __init__(
        self, printed: Format | None, *, quiet: bool = False, keep_identifiers: bool = False
    ) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        on_terminal = sys.stdout.isatty()
        self._quiet = quiet
        self._console = Console() if on_terminal else Console(stderr=True)
        self._width = self._console.width if on_terminal else None
        self._unicode = _holds_unicode(sys.stdout.encoding)
        self._table = None
        self._writer: FindingsWriter | None = None
        if printed is not None:
            self._writer = findings_writer(printed, sys.stdout.buffer, keep_identifiers=keep_identifiers)
        elif not quiet:
            self._table = FindingsTable(self._width, self._unicode)
        watched = self._console.is_terminal and not (printed is not None and on_terminal)
        self._progress = _progress(self._console) if watched and not quiet else None
        self._task = TaskID(0)
        self._file: str | None = None
        self._files = self._slices = 0
        self._start = time.monotonic()

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, count: Callable[[], int]) -> None:
        """Start the progress bar; ``count`` says for how many files, and is asked only where one is shown."""
        self._start = time.monotonic()
        if self._progress is not None:
            self._task = self._progress.add_task("Reading", total=count(), rate="")
            self._progress.start()

    def show(self, finding: Finding) -> None:
        """Show one finding."""
        if self._writer is not None:
            self._writer.write(finding)
            sys.stdout.buffer.flush()
        elif self._table is not None:
            if self._slices == 0:
                self._print(self._table.header(finding))
            for line in self._table.row(finding):
                self._print(line)
        self._slices += 1
        if self._progress is not None:
            self._advance(self._progress, finding)

    def finish(self, *, writing: bool) -> None:
        """All findings have come; ``writing`` says whether a report follows, which takes a while."""
        if self._writer is not None:
            self._writer.close()
            sys.stdout.buffer.flush()
        if self._progress is not None:
            words = "Writing the report" if writing else "Done"
            self._progress.update(self._task, description=words, completed=self._files, total=self._files)

    def conclude(self, studies: Studies, report: Path | None) -> None:
        """Show what all findings say together: below the table, else on standard error."""
        if self._progress is not None:
            self._progress.stop()
        if self._quiet:
            return
        total = f"{studies.counts.in_words()}. Research use only, no diagnosis."
        if self._table is None:
            sys.stderr.write(f"{total}\n")
            return
        if self._slices:
            self._print([])
        for summary in studies.summaries():
            for line in series_lines(summary, self._width, unicode=self._unicode):
                self._print([(line, "")])
        self._print([(total, "bold")])
        if report is not None:
            self._print([(f"Report: {report}", "")])

    def _advance(self, progress: Progress, finding: Finding) -> None:
        if finding.file != self._file:
            self._file, self._files = finding.file, self._files + 1
        seconds = max(time.monotonic() - self._start, 1e-3)
        progress.update(self._task, completed=self._files, rate=f"{self._slices / seconds:.1f} slices/s")

    def _print(self, line: Sequence[Part]) -> None:
        if self._width is None:
            sys.stdout.write("".join(text for text, _ in line).rstrip() + "\n")
            sys.stdout.flush()
        else:
            self._console.print(Text.assemble(*line), soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files {task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _holds_unicode(encoding: str | None) -> bool:
    try:
        "▁…".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
