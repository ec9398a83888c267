"""Predictions as JSON lines, CSV and Parquet, written one by one as they come; JSON lines can be resumed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from groundglass.errors import PredictionError
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, row_schema

Format = Literal["jsonl", "csv", "parquet"]

_ROW_GROUP = 8192
"""Rows of Parquet that are compressed together; so many are held in memory."""


class PredictionsWriter:
    """Writes predictions in one format.

    JSON lines are flushed with each prediction, so that a killed process loses nothing; in CSV lists are joined by
    semicolons; Parquet holds one group of rows in memory.

    Args:
        file_format: ``jsonl``, ``csv`` or ``parquet``.
        stream: to write to; it need not be seekable, and stays open.
        keep_identifiers: predictions say who is on a slice, and so do three more columns.

    Raises:
        PredictionError: Parquet without pyarrow.
    """

    def __init__(self, file_format: Format, stream: BinaryIO, *, keep_identifiers: bool = False) -> None:
        self._format, self._stream = file_format, stream
        self._columns = COLUMNS + IDENTIFIERS if keep_identifiers else COLUMNS
        self._rows: list[dict[str, Any]] = []
        if file_format == "csv":
            self._write_csv(self._columns)
        elif file_format == "parquet":
            self._open_parquet()

    def write(self, prediction: Prediction) -> None:
        """Write one prediction."""
        if self._format == "jsonl":
            _write_all(self._stream, json_line(prediction))
            self._stream.flush()
            return
        row = prediction.to_dict()
        if self._format == "csv":
            values = [row[name] for name in self._columns]
            self._write_csv([";".join(value) if isinstance(value, list) else value for value in values])
            return
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._write_rows()

    def close(self) -> None:
        """Write what is left."""
        if self._format == "parquet":
            self._write_rows()
            self._parquet.close()

    def _write_csv(self, values: Any) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(values)
        _write_all(self._stream, line.getvalue().encode())

    def _open_parquet(self) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra, and 0.2 s
            from pyarrow import parquet  # noqa: PLC0415
        except ModuleNotFoundError:
            advice = "install it with `pip install '.[parquet]'` from a clone"
            raise PredictionError(f"Parquet needs pyarrow; {advice}") from None
        kinds = {"integer": pa.int32(), "number": pa.float64(), "array": pa.list_(pa.string())}
        types = {name: column["type"] for name, column in row_schema()["properties"].items()}
        columns = [(name, [kinds[kind] for kind in kinds if kind in types[name]]) for name in self._columns]
        schema = pa.schema([(name, *(kind or [pa.string()])) for name, kind in columns])
        self._table = pa.Table
        self._parquet = parquet.ParquetWriter(_Counting(self._stream), schema, compression="zstd")

    def _write_rows(self) -> None:
        if self._rows:
            self._parquet.write_table(self._table.from_pylist(self._rows, self._parquet.schema))
        self._rows = []


def json_line(prediction: Prediction) -> bytes:
    """A prediction as one line of JSON in UTF-8."""
    return (json.dumps(prediction.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


class _Counting(io.RawIOBase):
    """A stream that knows how far it is, as pyarrow wants, also where it is a pipe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._count = stream, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        if not self._stream.closed:  # after an interruption pyarrow still writes what it has
            _write_all(self._stream, content)
        self._count += len(content)
        return len(content)

    def tell(self) -> int:
        return self._count


def _write_all(stream: BinaryIO, content: bytes) -> None:
    """Write all bytes, also to an unbuffered stream, which may take them piece by piece.

    Files of predictions are unbuffered: nothing is left in a buffer that a full disk would refuse once more when
    the file is closed.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


@contextmanager
def file_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Turn an error of the operating system into one line that names the file."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else path
        raise PredictionError(f"{place}: cannot be {verb} ({error.strerror or error})") from None


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a file of JSON lines, one in memory at a time, but for a line that was not finished.

    Raises:
        PredictionError: naming the line that is no prediction.
    """
    with file_errors(path, "read"), path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):  # a killed process leaves the beginning of one
                return
            try:
                prediction = Prediction.from_dict(json.loads(line))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                reason = str(error) or type(error).__name__
                raise PredictionError(f"{path}: line {number} is no prediction ({reason:.160})") from None
            yield prediction


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file of JSON lines, open for more of them, and for nobody else meanwhile.

    Raises:
        PredictionError: another process is writing to it, or it cannot be written.
    """
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    with stream:
        try:
            import fcntl  # noqa: PLC0415 - not on Windows

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PredictionError(f"{path}: another process is writing to it") from None
        except (ModuleNotFoundError, OSError):
            pass  # Windows, or a file system without locks
        yield stream
