"""What ``groundglass predict`` shows: the table, the series, the sums and the progress; or the predictions as data."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from groundglass.files import one_line
from groundglass.inference.prediction import COPY, Prediction, Status
from groundglass.inference.series import SeriesSummary, Totals
from groundglass.inference.writers import PredictionsWriter

if TYPE_CHECKING:
    from rich.progress import Progress

_GAP = "  "
_WIDTHS = {"Position": 9, "Status": 7, "Prob.": 5, "Label": 9}  # of all columns but the first and the last
_FIXED = sum(_WIDTHS.values()) + 5 * len(_GAP)
_LEAST_FILE, _LEAST_NOTE = 12, 19
_STYLES = {"COVID": "bold dark_orange", "uncertain": "yellow", "refused": "magenta", "failed": "bold red"}
_LONGEST_REASON, _SERIES, _CURVE = 1000, 28, 40  # the last: most characters of a curve
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(f"…{_BLOCKS}", "~_.:-=+*#")  # of terminals without Unicode


class PredictionsTable:
    """Lays predictions out. On a terminal what was refused for a reason that was given before is summed up at the end.

    Args:
        width: columns of the terminal; None where the output is no terminal: then nothing is shortened or
            wrapped, and the first column is as wide as the longest name so far.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        notes = max(_LEAST_NOTE, round(0.4 * ((width or 0) - _FIXED)))
        self._file_width = 0 if width is None else max(_LEAST_FILE, width - _FIXED - notes)
        self._begun = False
        self._reasons: Counter[str] = Counter()

    def lines(self, prediction: Prediction) -> Iterator[Text]:
        """Those of one prediction, several where a reason is long; before the first the names of the columns."""
        file = one_line(prediction.file, len(prediction.file) + 1)
        if self._width is None:
            self._file_width = max(4, self._file_width, cell_len(file))
        if not self._begun:
            yield Text(self._row("File", *_WIDTHS) + "Flags", "bold")
        self._begun = True
        cells = [shorten_middle(file, self._file_width), where(prediction), prediction.status.value]
        if prediction.status is Status.OK:
            cells += ["" if prediction.probability is None else f"{prediction.probability:.3f}", str(prediction.label)]
            note = ", ".join(prediction.flags)
        else:
            note = one_line(prediction.reason or "", _LONGEST_REASON)
            # Without the measurements that differ from slice to slice.
            kind = re.sub(r"\d[\d.,]*", "…", re.sub(r" \([^()\d]*\d[^()]*\)", "", note))
            said = f"{prediction.status.value}: {COPY if prediction.is_copy else kind}"
            self._reasons[said] += 1
            if self._width is not None and self._reasons[said] > 1:
                return
        row = self._row(*cells)
        first, *rest = self._wrapped(note, cell_len(row))
        line = Text(row + first)
        line.stylize(_STYLES.get(cells[-1], ""), len(self._row(*cells[:-1])), len(row) - len(_GAP))
        yield line
        yield from (Text(" " * cell_len(row) + words) for words in rest)

    def repeated(self) -> Iterator[str]:
        """On a terminal, how often each reason was given that was given more than once."""
        for said, count in self._reasons.items():
            if self._width is not None and count > 1:
                yield f"{count:,} {said}"

    def _wrapped(self, text: str, start: int) -> list[str]:
        """Lines of whole words from a column on; a word that is longer than a line is shortened in the middle."""
        if self._width is None:
            return [text]
        width = max(_LEAST_NOTE, self._width - start)
        words = " ".join(shorten_middle(word, width) for word in text.split())
        return textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False) or [""]

    def _row(self, *cells: str) -> str:
        widths = (self._file_width, *_WIDTHS.values())
        return "".join(cell + " " * (w - cell_len(cell)) + _GAP for cell, w in zip(cells, widths, strict=False))


def where(prediction: Prediction) -> str:
    """Position in mm, else the frame's number, else nothing."""
    if prediction.position is not None:
        return _millimetres(prediction.position)
    return "" if prediction.frame is None else f"#{prediction.frame}"


def _millimetres(position: float) -> str:
    digits = 1 if abs(position) < 1000 else 0
    return f"{round(position, digits) + 0.0:.{digits}f} mm"


def shorten_middle(text: str, width: int) -> str:
    """Text of at most so many terminal columns; more of its end is kept than of its beginning."""
    if cell_len(text) <= width:
        return text
    head = set_cell_size(text, (width - 1) // 3)
    tail = set_cell_size(text[::-1], width - 1 - cell_len(head))[::-1]
    return f"{head}…{tail}"


def series_lines(summary: SeriesSummary, width: int | None) -> Iterator[str]:
    """What is printed of a series: counts, series score, curve."""
    place, uid = one_line(summary.place, len(summary.place) + 1), one_line(summary.series or "", 64)
    if width is not None:
        uid = shorten_middle(uid, _SERIES)
        place = shorten_middle(place, width - len(", series ") - _SERIES)
    yield f"{place}, series {uid}" if uid else place
    yield f"  {summary.in_words}"
    if summary.series_score is None:
        return
    opacity = "" if summary.opacity is None else f"; {summary.opacity.in_words}"
    label = f"{summary.label}, " if summary.label else ""
    between = " ({:.3f} to {:.3f})".format(*summary.interval) if summary.interval else ""
    yield f"  {label}series score {summary.series_score:.3f}{between}{opacity}; no diagnosis"
    curve = summary.curve
    if len(curve.at) > 1:
        ends = (curve.at[0], curve.at[-1])
        first, last = (_millimetres(end) if curve.axis == "mm" else f"{curve.axis} {end:g}" for end in ends)
        stretches = np.array_split(curve.probability, min(_CURVE, len(curve.at)))
        line = "".join(_BLOCKS[min(int(stretch.mean() * 8), 7)] for stretch in stretches)
        yield f"  {first} {line} {last}, highest {max(curve.probability):.3f}"


class Screen:
    """Shows predictions as they come, and holds none of them.

    The progress bar is drawn only where a terminal shows nothing else but the table, so that no output is
    disturbed by it.

    Args:
        printed: format on standard output; None for the table.
        quiet: print nothing but predictions in the format requested.
        keep_identifiers: predictions say who is on a slice.
    """

    def __init__(
        self, printed: Literal["jsonl", "csv"] | None, *, quiet: bool = False, keep_identifiers: bool = False
    ) -> None:
        on_terminal = sys.stdout.isatty()
        self._quiet = quiet
        self._console = Console(stderr=not on_terminal)
        self._width = self._console.width if on_terminal else None
        self._table = None if printed or quiet else PredictionsTable(self._width)
        self._writer: PredictionsWriter | None = None
        if printed is not None:
            self._writer = PredictionsWriter(printed, sys.stdout.buffer, keep_identifiers=keep_identifiers)
        self._watched = self._console.is_terminal and not quiet and not (printed and on_terminal)
        self._progress: Progress | None = None
        self._file: str | None = None
        self._files = self._slices = 0

    def close(self) -> None:
        """Take the progress bar away."""
        if self._progress is not None:
            self._progress.stop()

    def expect(self, count: Callable[[], int]) -> None:
        """Start the progress bar; ``count`` says for how many files, and is called only where one is shown."""
        self._start = time.monotonic()
        if self._watched:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text, rate = TextColumn("{task.description}"), TextColumn("files {task.fields[rate]}")
            columns = (text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(compact=True))
            self._progress = Progress(
                *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._progress.add_task("Reading", total=count(), rate="")
            self._progress.start()

    def show(self, prediction: Prediction) -> None:
        """Show one prediction."""
        if self._writer is not None:
            self._writer.write(prediction)
            sys.stdout.buffer.flush()
        for line in self._table.lines(prediction) if self._table else ():
            self._print(line)
        self._slices += 1
        if prediction.file != self._file:
            self._file, self._files = prediction.file, self._files + 1
        if self._progress is not None:
            rate = f"{self._slices / max(time.monotonic() - self._start, 1e-3):.1f} slices/s"
            self._progress.update(self._progress.task_ids[0], completed=self._files, rate=rate)

    def finish(self, *, writing: bool) -> None:
        """All predictions have come; ``writing`` says whether a report follows, which takes a while."""
        if self._progress is not None:
            words, files = "Writing the report" if writing else "Done", self._files
            self._progress.update(self._progress.task_ids[0], description=words, completed=files, total=files)

    def conclude(self, totals: Totals, report: Path | None) -> None:
        """Show what all predictions say together: below the table, else on standard error."""
        self.close()
        total = f"{totals.in_words}. Research use only, no diagnosis."
        if self._table is None:
            with suppress(OSError):  # what is said of the predictions changes nothing about them
                sys.stderr.write("" if self._quiet else f"{total}\n")
            return
        if self._slices:
            self._print(Text())
        for text in self._table.repeated():
            self._print(Text(text), wrap=True)
        for summary in totals.summaries():
            for text in series_lines(summary, self._width):
                self._print(Text(text), wrap=True)
        self._print(Text(total, "bold"), wrap=True)
        if report is not None:
            self._print(Text(f"Report: {report}"))

    def _print(self, line: Text, *, wrap: bool = False) -> None:
        """Print a line; with ``wrap`` on a terminal as several of whole words where it is too long."""
        try:
            _BLOCKS.encode(sys.stdout.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            line = Text(line.plain.translate(_ASCII))
        if self._width is None:
            sys.stdout.write(line.plain.rstrip() + "\n")
            sys.stdout.flush()
        else:
            self._console.print(line, soft_wrap=not wrap, highlight=False)
