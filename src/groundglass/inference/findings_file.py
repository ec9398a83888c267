"""Findings as JSON lines, CSV and Parquet, written one by one as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from groundglass.errors import PredictionError
from groundglass.inference.finding import COLUMNS, IDENTIFIERS, Finding

Format = Literal["jsonl", "csv", "parquet"]


class FindingsWriter(Protocol):
    """Writes findings in one format."""

    def write(self, finding: Finding) -> None:
        """Write one finding."""

    def close(self) -> None:
        """Write what is left; the stream stays open."""


def findings_writer(
    file_format: Format, stream: BinaryIO, *, keep_identifiers: bool = False
) -> FindingsWriter:
    """A writer for one format.

    Args:
        file_format: ``jsonl``, ``csv`` or ``parquet``.
        stream: to write to; it need not be seekable.
        keep_identifiers: findings say who is on a slice, and so do three more columns.

    Raises:
        PredictionError: Parquet without pyarrow.
    """
    if file_format == "jsonl":
        return JsonLinesWriter(stream)
    columns = columns_of(keep_identifiers)
    if file_format == "csv":
        return CsvWriter(stream, columns)
    from groundglass.inference.parquet import ParquetWriter  # noqa: PLC0415 - imports this module

    return ParquetWriter(stream, columns)


def columns_of(keep_identifiers: bool) -> tuple[str, ...]:
    """Names and order of the columns."""
    return COLUMNS + IDENTIFIERS if keep_identifiers else COLUMNS


def readable(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a file's name that are no UTF-8 become ``\udcff`` and the like."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def row_of(finding: Finding) -> dict[str, Any]:
    """A finding's columns, all text in them readable."""
    return {
        name: readable(value) if isinstance(value, str) else value for name, value in finding.as_row().items()
    }


def json_line(finding: Finding) -> bytes:
    """A finding as one line of JSON in UTF-8."""
    return (json.dumps(row_of(finding), ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_all(stream: BinaryIO, content: bytes) -> None:
    """Write all bytes, also to an unbuffered stream, which may take them piece by piece.

    Files of findings are unbuffered: nothing is left in a buffer that a full disk would refuse once more when
    the file is closed.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


class JsonLinesWriter:
    """One JSON object on each line, flushed with each, so that a killed process loses nothing."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, finding: Finding) -> None:
        """Write one line."""
        write_all(self._stream, json_line(finding))
        self._stream.flush()

    def close(self) -> None:
        """Nothing is left."""


class CsvWriter:
    """A header line and one line per finding; lists are joined by semicolons."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str]) -> None:
        self._rows = csv.DictWriter(_Utf8(stream), columns, lineterminator="\n")
        self._rows.writeheader()

    def write(self, finding: Finding) -> None:
        """Write one line."""
        row = row_of(finding)
        lists = {name: ";".join(value) for name, value in row.items() if isinstance(value, list)}
        self._rows.writerow({**row, **lists})

    def close(self) -> None:
        """Nothing is left."""


class _Utf8:
    """A stream of bytes that takes text and, unlike ``TextIOWrapper``, never closes what it writes to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        write_all(self._stream, text.encode())
        return len(text)


def read_findings(path: Path) -> Iterator[Finding]:
    """The findings of a file of JSON lines.

    Raises:
        PredictionError: naming the line that is no finding.
    """
    for number, line in enumerate(lines_of(path), 1):
        yield finding_of(path, number, line)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file of JSON lines, one in memory at a time."""
    with file_errors(path, "read"), path.open("rb") as stream:
        yield from stream


def finding_of(path: Path, number: int, line: bytes) -> Finding:
    """The finding on a line.

    Raises:
        PredictionError: the line is no finding.
    """
    try:
        return Finding.from_row(json.loads(line))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise PredictionError(f"{path}: line {number} is no finding ({reason:.160})") from None


@contextmanager
def file_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Turn what the operating system objects to into one line that names the file."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else path
        raise PredictionError(f"{place}: cannot be {verb} ({error.strerror or error})") from None
