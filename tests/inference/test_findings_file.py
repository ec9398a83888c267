"""Predictions in JSON lines, CSV and Parquet say the same, whatever names their files have."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from groundglass.errors import PredictionError
from groundglass.files import printable
from groundglass.imaging.slice import Patient
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, Status
from groundglass.inference.writers import Format, predictions_writer, read_predictions, row_of

PREDICTIONS = [
    Prediction(Status.OK, "a/1.dcm", "b-fp32", None, 0.123456789012345, "NonCOVID", ("NonCOVID",), (), None, "1.2", -5.5),
    Prediction(Status.OK, 'x,"y";\nz\t<é>.png', "b-fp32", None, 1.0, "uncertain", ("COVID", "NonCOVID"), ("f", "g"), 0),
    Prediction(Status.REFUSED, "c.png", "b-fp32", 'a "quoted", long\nreason'),
    Prediction(Status.FAILED, "bytes-\udcff\udce9.png", "b-fp32", "the file is empty"),
]  # fmt: skip


def written(file_format: Format, predictions: list[Prediction], *, keep_identifiers: bool = False) -> bytes:
    stream = io.BytesIO()
    writer = predictions_writer(file_format, stream, keep_identifiers=keep_identifiers)
    for prediction in predictions:
        writer.write(prediction)
    writer.close()
    assert not stream.closed
    return stream.getvalue()


def test_json_lines_are_utf8_and_one_line_each() -> None:
    content = written("jsonl", PREDICTIONS)
    lines = content.decode("utf-8").splitlines()
    assert content.endswith(b"\n")
    assert len(lines) == len(PREDICTIONS)
    rows = [json.loads(line) for line in lines]
    assert [tuple(row) for row in rows] == [COLUMNS] * len(rows)
    assert rows[1]["file"] == PREDICTIONS[1].file
    assert rows[0]["probability"] == 0.123456789012345
    assert "é" in lines[1], "readable as it is"
    assert rows[3]["file"] == r"bytes-\udcff\udce9.png"


def test_a_file_of_json_lines_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(written("jsonl", PREDICTIONS))
    assert list(read_predictions(path)) == [
        *PREDICTIONS[:3],
        Prediction(Status.FAILED, r"bytes-\udcff\udce9.png", "b-fp32", "the file is empty"),
    ]


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b"null", b'{"file": 1}', b"nonsense", b"\xff", b"[" * 100_000]
)
def test_a_line_that_is_no_prediction_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(written("jsonl", PREDICTIONS[:1]) + line + b"\n")
    with pytest.raises(PredictionError, match="line 2 is no prediction") as caught:
        list(read_predictions(path))
    assert len(str(caught.value).splitlines()) == 1


def test_csv_holds_hostile_text_and_lists() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", PREDICTIONS).decode("utf-8"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1]["file"] == PREDICTIONS[1].file
    assert rows[1]["prediction_set"] == "COVID;NonCOVID"
    assert rows[1]["flags"] == "f;g"
    assert float(rows[0]["probability"]) == 0.123456789012345
    assert rows[2]["reason"] == 'a "quoted", long\nreason'
    assert rows[2]["probability"] == rows[2]["label"] == rows[2]["frame"] == ""


def test_parquet_has_types_and_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("groundglass.inference.writers._ROW_GROUP", 3)
    file = parquet.ParquetFile(io.BytesIO(written("parquet", PREDICTIONS)))
    assert file.metadata.num_row_groups == 2
    rows = file.read().to_pylist()
    assert rows == [row_of(prediction) for prediction in PREDICTIONS]
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["frame"] == "int32"
    assert types["probability"] == types["position"] == "double"
    assert types["flags"].startswith("list")


def test_no_predictions_make_valid_files() -> None:
    assert written("jsonl", []) == b""
    assert written("csv", []).decode().strip() == ",".join(COLUMNS)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(written("parquet", [])))
    assert table.num_rows == 0
    assert tuple(table.column_names) == COLUMNS


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "parquet"])
def test_identifiers_are_columns_only_where_kept(file_format: Format) -> None:
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    named = Prediction(
        Status.OK, "a", "b", probability=0.5, label="COVID", patient=Patient("Doe^Jane", "77", "19500102")
    )
    kept = written(file_format, [named], keep_identifiers=True)
    for name in IDENTIFIERS:
        assert name.encode() in kept
        assert name.encode() not in written(file_format, PREDICTIONS)
    assert b"Doe^Jane" in kept


def test_without_pyarrow_parquet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PredictionError, match=r"groundglass\[parquet\]"):
        predictions_writer("parquet", io.BytesIO())


@pytest.mark.parametrize("text", ["", "plain", "ä€😀", "a\udcffb", "\ud800"])
def test_readable_text_can_be_encoded_and_stays_what_it_is(text: str) -> None:
    once = printable(text)
    once.encode("utf-8")
    assert printable(once) == once
    assert once == text or "\\u" in once
