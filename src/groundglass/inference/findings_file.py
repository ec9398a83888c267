"""Findings as JSON lines, CSV and Parquet, written one by one as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from groundglass.errors import PredictionError
from groundglass.inference.finding import COLUMNS, IDENTIFIERS, Finding

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "csv", "parquet"]

_ROW_GROUP = 8192
"""Rows of Parquet that are compressed together; so many are held in memory."""


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


class ParquetWriter:
    """Rows in groups, so that memory does not grow.

    Raises:
        PredictionError: pyarrow is not installed.
    """

    def __init__(self, stream: BinaryIO, columns: Sequence[str]) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra, and 0.2 s
            from pyarrow import parquet  # noqa: PLC0415
        except ModuleNotFoundError:
            raise PredictionError(
                "Parquet needs pyarrow, which comes with `pip install groundglass[parquet]`"
            ) from None
        self._pyarrow = pa
        self._schema = _schema(columns)
        self._writer = parquet.ParquetWriter(_Counting(stream), self._schema, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []

    def write(self, finding: Finding) -> None:
        """Keep one row until its group is full."""
        self._rows.append(row_of(finding))
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the last group and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []


class _Counting(io.RawIOBase):
    """A stream that knows how far it is, as pyarrow wants, also where it is a pipe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._count = stream, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        write_all(self._stream, content)
        self._count += len(content)
        return len(content)

    def tell(self) -> int:
        return self._count

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - see above

    kinds = {
        "frame": pa.int32(),
        "position": pa.float64(),
        "probability": pa.float64(),
        "prediction_set": pa.list_(pa.string()),
        "flags": pa.list_(pa.string()),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])


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
