"""Predictions as JSON lines, CSV and Parquet say the same, and JSON lines are resumed without loss or doubles."""

import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema
import pytest

from groundglass.errors import PredictionError
from groundglass.imaging.slice import Patient
from groundglass.inference.output import Output, OutputPlan, open_output
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, Status, row_schema
from groundglass.inference.writers import ParquetFile, PredictionsWriter, appending, json_line, read_predictions

PREDICTIONS = [
    Prediction(Status.OK, "a/1.dcm", "b1", None, 0.123456789012345, "NonCOVID", ("NonCOVID",), (), None, "1.2", -5.5),
    Prediction(Status.OK, 'x,"y";\nz\t<é>.png\rv', "b1", None, 1.0, "uncertain", ("COVID", "NonCOVID"), ("f", "g"), 0),
    Prediction(Status.REFUSED, "c.png", "b1", 'a "quoted", long\nreason'),
    Prediction(Status.FAILED, "bytes-\udcff\udce9.png", "b1", "the file is empty"),
]  # fmt: skip
A, ODD, B, C = PREDICTIONS
NAMED = replace(A, patient=Patient("Doe^Jane", None, "19500102"))
READ = [A, ODD, B, replace(C, file=r"bytes-\udcff\udce9.png"), NAMED]
ROW, LINE = A.to_dict(), json_line(C)


def written(file_format: Literal["jsonl", "csv"], *predictions: Prediction) -> bytes:
    stream = io.BytesIO()
    writer = PredictionsWriter(file_format, stream)
    for prediction in predictions:
        writer.write(prediction)
    return stream.getvalue()


def file_of(path: Path, *predictions: Prediction, tail: bytes = b"") -> Path:
    target = path / "predictions.jsonl"
    target.write_bytes(written("jsonl", *predictions) + tail)
    return target


def resumed(path: Path, bundle: str = "b1", *, keep_identifiers: bool = False) -> Output:
    """An earlier run as it is found by the next one."""
    opened: Any = SimpleNamespace(id=bundle, info=SimpleNamespace(series=None))
    with open_output(OutputPlan(path, resume=True, keep_identifiers=keep_identifiers), opened) as output:
        return output


def test_json_lines_are_utf8_one_line_each_and_read_again(tmp_path: Path) -> None:
    path = file_of(tmp_path, *PREDICTIONS, NAMED)
    lines = path.read_text("utf-8").splitlines()
    assert [tuple(json.loads(line)) for line in lines] == [COLUMNS] * 4 + [COLUMNS + IDENTIFIERS]
    assert "é" in lines[1], "readable as it is"
    assert list(read_predictions(path)) == READ
    assert "Jane" not in repr(NAMED)


def test_a_line_that_is_no_prediction_is_named(tmp_path: Path) -> None:
    for line, words in (
        *((line, "") for line in (b"[]", b"{}", b"null", b"nonsense", b"\xff", b"[" * 100_000)),
        *((json.dumps(ROW | {name: value}).encode(), words) for name, value, words in (
            ("file", None, "file"), ("status", "fine", "fine"), ("probability", "0.5", "probability"),
            ("frame", True, "frame"), ("flags", "none", "flags"), ("label", 3, "label"),
            ("position", [], "position"), ("bundle", None, "bundle"), ("opacity", math.nan, "finite"),
            ("probability", None, "has a probability"),
        )),
    ):  # fmt: skip
        path = file_of(tmp_path, A, tail=line + b"\n")
        for read in (lambda path: list(read_predictions(path)), resumed):
            with pytest.raises(PredictionError, match=f"line 2 is no prediction.*{words}") as caught:
                read(path)
            assert len(str(caught.value).splitlines()) == 1


def test_the_schema_is_published_and_holds_of_rows() -> None:
    published = Path(__file__).parents[2] / "docs" / "prediction.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == row_schema(), "write row_schema() there again"
    check = jsonschema.Draft202012Validator(row_schema())
    for prediction in READ:
        check.validate(prediction.to_dict())
    for wrong in ({"probability": 1.5}, {"frame": 0.5}, {"status": "fine"}, {"label": "ill"}, {"more": 1}):
        assert not check.is_valid(ROW | wrong)


def test_csv_holds_hostile_text_and_lists() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", *PREDICTIONS).decode("utf-8"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[1]["file"], rows[1]["prediction_set"]) == (ODD.file, "COVID;NonCOVID")
    assert float(rows[0]["probability"]) == A.probability
    assert [rows[2][name] for name in ("reason", "probability", "label", "frame")] == [B.reason, "", "", ""]


def test_parquet_has_types_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("groundglass.inference.writers._ROW_GROUP", 3)
    path = tmp_path / "\udcff.parquet"
    for predictions, groups in ((PREDICTIONS, 2), ([], 0)):
        writer = ParquetFile(path)
        for prediction in predictions:
            writer.write(prediction)
        writer.close()
        file = parquet.ParquetFile(path.rename(tmp_path / "x.parquet"))
        assert file.metadata.num_row_groups == groups
        assert file.read().to_pylist() == [prediction.to_dict() for prediction in predictions]
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert tuple(types) == COLUMNS
    assert types["frame"] == types["slice_number"] == "int64"
    assert types["probability"] == types["position"] == types["opacity"] == types["lung_cm2"] == "double"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PredictionError, match=r"pip install '\.\[parquet\]'` from a clone"):
        OutputPlan(tmp_path / "new.parquet").check()


@pytest.mark.parametrize("tail", [LINE[:-1], LINE[:-60], b"\0" * 4096, b"{", b"x" * 200_000], ids=len)
@pytest.mark.parametrize("whole", [[A, B], []], ids=len)
def test_an_unfinished_line_is_cut_off(tmp_path: Path, whole: list[Prediction], tail: bytes) -> None:
    path = file_of(tmp_path, *whole, tail=tail)
    for _ in range(2):
        assert resumed(path).totals.counts.total == len(whole)
        assert path.read_bytes() == written("jsonl", *whole)


def test_runs_of_different_kinds_are_not_mixed(tmp_path: Path) -> None:
    for prediction, bundle, keep, words in (
        (A, "b2", False, "bundle b1, not of b2"),
        (A, "b1", True, "without --keep-identifiers"),
        (NAMED, "b1", False, "with --keep-identifiers"),
    ):
        path = file_of(tmp_path, A, prediction)
        before = path.read_bytes()
        with pytest.raises(PredictionError, match=words):
            resumed(path, bundle, keep_identifiers=keep)
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_nobody_else_writes_to_a_file_that_is_open(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "new" / "predictions.jsonl"
    with appending(path), pytest.raises(PredictionError, match="another process is writing to it"), appending(path):
        pass
    with appending(path) as stream:
        stream.write(b"afterwards")
