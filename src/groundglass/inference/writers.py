"""Predictions as JSON lines, CSV and Parquet, written one by one as they come; JSON lines can be resumed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from groundglass.errors import PredictionError
from groundglass.files import atomic_path
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, row_schema

_FORMULA = frozenset("=+-@\t\r")
_ROW_GROUP = 8192
"""Rows of Parquet that are compressed together; so many are held in memory."""


class PredictionsWriter:
    """Writes predictions as JSON lines, which are flushed one by one, or as CSV, where lists are joined by semicolons.

    Args:
        file_format: of the two.
        stream: to write to; it need not be seekable, and stays open.
        keep_identifiers: predictions say who is on a slice, and so do three more columns.
    """

    def __init__(
        self, file_format: Literal["jsonl", "csv"], stream: BinaryIO, *, keep_identifiers: bool = False
    ) -> None:
        self._stream = stream
        self._columns = _columns(keep_identifiers) if file_format == "csv" else ()
        if self._columns:
            self._write_csv(self._columns)

    def write(self, prediction: Prediction) -> None:
        """Write one prediction."""
        if not self._columns:
            _write_all(self._stream, json_line(prediction))
            self._stream.flush()
            return
        row = prediction.to_dict()
        values = [row[name] for name in self._columns]
        texts = [";".join(value) if isinstance(value, list) else value for value in values]
        # Spreadsheets run what begins so, and names and identifiers are whatever somebody wrote.
        self._write_csv([f"'{each}" if isinstance(each, str) and each[:1] in _FORMULA else each for each in texts])

    def _write_csv(self, values: Sequence[Any]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line).writerow(values)  # whose line end of two characters has either quoted within a value
        _write_all(self._stream, (line.getvalue().removesuffix("\r\n") + "\n").encode())


class ParquetFile:
    """Writes predictions as Parquet, with or without who is on a slice; memory holds one group of rows."""

    def __init__(self, path: Path, *, keep_identifiers: bool = False) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and 0.2 s
        from pyarrow import parquet  # noqa: PLC0415

        kinds = {"integer": pa.int64(), "number": pa.float64(), "array": pa.list_(pa.string())}
        types = {name: column["type"] for name, column in row_schema()["properties"].items()}
        columns = {name: [kinds[kind] for kind in kinds if kind in types[name]] for name in _columns(keep_identifiers)}
        schema = pa.schema([(name, *(kind or [pa.string()])) for name, kind in columns.items()])
        self._rows: list[dict[str, Any]] = []
        self._table, self._file = pa.Table, pa.OSFile(os.fsencode(path), "wb")
        self._parquet = parquet.ParquetWriter(self._file, schema, compression="zstd")

    def write(self, prediction: Prediction) -> None:
        """Write one prediction, sooner or later."""
        self._rows.append(prediction.to_dict())
        if len(self._rows) == _ROW_GROUP:
            self._write_rows()

    def close(self) -> None:
        """Write what is left."""
        self._write_rows()
        self._parquet.close()
        self._file.close()

    def _write_rows(self) -> None:
        if self._rows:
            self._parquet.write_table(self._table.from_pylist(self._rows, self._parquet.schema))
        self._rows = []


def _columns(keep_identifiers: bool) -> tuple[str, ...]:
    return COLUMNS + IDENTIFIERS if keep_identifiers else COLUMNS


def json_line(prediction: Prediction) -> bytes:
    """A prediction as one line of JSON in UTF-8."""
    return (json.dumps(prediction.to_dict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


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
        reason = os.strerror(error.errno) if error.errno else error
        raise PredictionError(f"{place}: cannot be {verb} ({reason})") from None


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a file of JSON lines, one in memory at a time, but for a line that was not finished.

    A PredictionError names a line that is none.
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
def table(path: Path, keep_identifiers: bool) -> Iterator[PredictionsWriter | ParquetFile]:
    """A CSV or Parquet file, by its suffix; it appears when the block has ended without an error."""
    with ExitStack() as stack:
        writer: PredictionsWriter | ParquetFile
        with file_errors(path):
            temporary = stack.enter_context(atomic_path(path))
            if path.suffix.lower() == ".parquet":
                writer = ParquetFile(temporary, keep_identifiers=keep_identifiers)
            else:
                stream = stack.enter_context(temporary.open("wb", buffering=0))
                writer = PredictionsWriter("csv", stream, keep_identifiers=keep_identifiers)
        yield writer
        with file_errors(path):
            if isinstance(writer, ParquetFile):
                writer.close()
            stack.close()


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file of JSON lines, open for more of them, and for nobody else meanwhile, or a PredictionError."""
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
