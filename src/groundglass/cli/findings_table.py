"""Findings as a table whose rows are printed as they come, and what their series say in a few lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from groundglass.imaging.guard import one_line
from groundglass.inference.finding import Finding, Status
from groundglass.reporting.sparkline import sparkline

if TYPE_CHECKING:
    from groundglass.inference.study import SeriesSummary

Part = tuple[str, str]
"""Text and its style."""

_GAP = "  "
_POSITION, _STATUS, _PROBABILITY, _LABEL = 9, 7, 5, 9
_FIXED = _POSITION + _STATUS + _PROBABILITY + _LABEL + 5 * len(_GAP)
_LEAST_FILE, _LEAST_NOTE = 12, 15
_STYLES = {"COVID": "bold dark_orange", "uncertain": "yellow", "refused": "magenta", "failed": "bold red"}
_LONGEST_REASON = 1000
_SERIES = 28


@dataclass
class FindingsTable:
    """Lays findings out.

    Attributes:
        width: columns of the terminal; None where the output is no terminal: then nothing is shortened or
            wrapped, and the first column is as wide as the longest name so far.
        unicode: whether the output can hold more than ASCII.
    """

    width: int | None
    unicode: bool = True
    _longest: int = 4

    def header(self, first: Finding) -> list[Part]:
        """The names of the columns, above the first finding."""
        if self.width is None:
            self._longest = max(self._longest, cell_len(first.file))
        names = ("File", "Position", "Status", "Prob.", "Label", "Flags")
        return [(self._line(*names), "bold")]

    def row(self, finding: Finding) -> Iterator[list[Part]]:
        """The lines of one finding; more than one where a reason is long."""
        file = one_line(finding.file, len(finding.file) + 1)
        if self.width is None:
            self._longest = max(self._longest, cell_len(file))
        file = shorten_middle(file, self._file_width, unicode=self.unicode)
        start = [self._cell(file, self._file_width), self._cell(where(finding), _POSITION)]
        status = finding.status.value
        if finding.status is Status.OK:
            label = str(finding.label)
            probability = "" if finding.probability is None else f"{finding.probability:.3f}"
            cells = [*start, self._cell(status, _STATUS), self._cell(probability, _PROBABILITY)]
            flags = f"{_GAP}{', '.join(finding.flags)}" if finding.flags else ""
            label = label if not flags else self._cell(label, _LABEL)
            yield [(_GAP.join(cells) + _GAP, ""), (label, _STYLES.get(label.strip(), "")), (flags, "")]
            return
        head = _GAP.join(start) + _GAP
        reason = self._wrapped(one_line(finding.reason or "", _LONGEST_REASON))
        yield [(head, ""), (self._cell(status, _STATUS), _STYLES[status]), (_GAP + reason[0], "")]
        for line in reason[1:]:
            yield [(" " * (cell_len(head) + _STATUS) + _GAP + line, "")]

    @property
    def _note_width(self) -> int:
        return max(_LEAST_NOTE, round(0.4 * ((self.width or 0) - _FIXED)))

    @property
    def _file_width(self) -> int:
        if self.width is None:
            return self._longest
        return max(_LEAST_FILE, self.width - _FIXED - self._note_width)

    def _line(self, file: str, position: str, status: str, probability: str, label: str, note: str) -> str:
        widths = (self._file_width, _POSITION, _STATUS, _PROBABILITY, _LABEL)
        cells = zip((file, position, status, probability, label), widths, strict=True)
        return _GAP.join([*(self._cell(text, width) for text, width in cells), note])

    def _cell(self, text: str, width: int) -> str:
        return text if cell_len(text) > width else set_cell_size(text, width)

    def _wrapped(self, reason: str) -> list[str]:
        if self.width is None:
            return [reason]
        room = _PROBABILITY + _LABEL + self._note_width + 2 * len(_GAP)
        return textwrap.wrap(reason, room) or [""]


def where(finding: Finding) -> str:
    """Position in mm, else the frame's number, else nothing."""
    if finding.position is not None:
        return _millimetres(finding.position)
    return "" if finding.frame is None else f"#{finding.frame}"


def _millimetres(position: float) -> str:
    digits = 1 if abs(position) < 1000 else 0
    return f"{round(position, digits) + 0.0:.{digits}f} mm"


def shorten_middle(text: str, width: int, *, unicode: bool = True) -> str:
    """Text of at most so many terminal columns; more of its end is kept than of its beginning."""
    if cell_len(text) <= width:
        return text
    mark = "…" if unicode else ".."
    head, tail = "", ""
    for character in text:
        if cell_len(head + character) > (width - len(mark)) // 3:
            break
        head += character
    for character in reversed(text):
        if cell_len(head) + len(mark) + cell_len(character + tail) > width:
            break
        tail = character + tail
    return f"{head}{mark}{tail}"


def series_lines(summary: SeriesSummary, width: int | None, *, unicode: bool) -> Iterator[str]:
    """What is printed of a series: counts, study score, curve."""
    place, uid = one_line(summary.place, len(summary.place) + 1), one_line(summary.series or "", 64)
    if width is not None:
        uid = shorten_middle(uid, _SERIES, unicode=unicode)
        place = shorten_middle(place, width - len(", series ") - _SERIES, unicode=unicode)
    yield f"{place}, series {uid}" if uid else place
    yield f"  {summary.counts.in_words()}"
    if summary.study_score is None:
        return
    yield f"  study score {summary.study_score:.3f} (no diagnosis)"
    curve = summary.curve
    if len(curve.at) < 2:
        return
    first, last = (
        _millimetres(end) if curve.axis == "mm" else f"{curve.axis} {end:g}"
        for end in (curve.at[0], curve.at[-1])
    )
    line = sparkline(curve.at, curve.probability, unicode=unicode)
    yield f"  {first} {line} {last}, highest {max(curve.probability):.3f}"
