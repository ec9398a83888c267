"""Findings as Parquet, in row groups, so that memory does not grow. Needs pyarrow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from groundglass.errors import PredictionError
from groundglass.inference.finding import Finding
from groundglass.inference.findings_file import row_of, write_all

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 8192
"""Rows that are compressed together; so many are held in memory."""


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
