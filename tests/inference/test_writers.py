"""Predictions as JSON lines, CSV and Parquet say the same, and JSON lines are resumed without loss or doubles."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import jsonschema
import pytest

from groundglass.errors import PredictionError
from groundglass.imaging.slice import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.output import Output, OutputPlan, open_output
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, Status, row_schema
from groundglass.inference.writers import (
    ParquetFile,
    PredictionsWriter,
    appending,
    json_line,
    read_predictions,
)

PREDICTIONS = [
    Prediction(Status.OK, "a/1.dcm", "b1", None, 0.123456789012345, "NonCOVID", ("NonCOVID",), (), None, "1.2", -5.5),
    Prediction(Status.OK, 'x,"y";\nz\t<é>.png', "b1", None, 1.0, "uncertain", ("COVID", "NonCOVID"), ("f", "g"), 0),
    Prediction(Status.REFUSED, "c.png", "b1", 'a "quoted", long\nreason'),
    Prediction(Status.FAILED, "bytes-\udcff\udce9.png", "b1", "the file is empty"),
]  # fmt: skip
READ = [*PREDICTIONS[:3], replace(PREDICTIONS[3], file=r"bytes-\udcff\udce9.png")]
A, B, C = PREDICTIONS[0], PREDICTIONS[2], PREDICTIONS[3]
NAMED = replace(A, patient=Patient("Doe^Jane", None, "19500102"))
ROW = A.to_dict()


def written(file_format: Literal["jsonl", "csv"], *predictions: Prediction) -> bytes:
    stream = io.BytesIO()
    writer = PredictionsWriter(file_format, stream)
    for prediction in predictions:
        writer.write(prediction)
    assert not stream.closed
    return stream.getvalue()


def test_json_lines_are_utf8_one_line_each_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(written("jsonl", *PREDICTIONS, NAMED))
    lines = (tmp_path / "x.jsonl").read_text("utf-8").splitlines()
    assert [tuple(json.loads(line)) for line in lines] == [COLUMNS] * 4 + [COLUMNS + IDENTIFIERS]
    assert "é" in lines[1], "readable as it is"
    assert list(read_predictions(tmp_path / "x.jsonl")) == [*READ, NAMED]
    assert "Jane" not in repr(NAMED)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[]", ""), (b"{}", ""), (b"null", ""), (b"nonsense", ""), (b"\xff", ""), (b"[" * 100_000, ""),
        ({"file": None}, "file"), ({"status": "fine"}, "fine"), ({"probability": "0.5"}, "probability"),
        ({"frame": True}, "frame"), ({"flags": "none"}, "flags"), ({"label": 3}, "label"),
        ({"position": []}, "position"), ({"bundle": None}, "bundle"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_prediction_is_named(
    tmp_path: Path, line: bytes | dict[str, object], words: str
) -> None:
    content = json.dumps(ROW | line).encode() if isinstance(line, dict) else line
    path = file_of(tmp_path, A, tail=content + b"\n")
    for read in (lambda: list(read_predictions(path)), lambda: resumed(path)):
        with pytest.raises(PredictionError, match=f"line 2 is no prediction.*{words}") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_the_schema_is_published_and_holds_of_rows() -> None:
    published = Path(__file__).parents[2] / "docs" / "prediction.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == row_schema(), "write row_schema() there again"
    check = jsonschema.Draft202012Validator(row_schema())
    for prediction in (*READ, NAMED):
        check.validate(prediction.to_dict())
    for wrong in ({"probability": 1.5}, {"frame": 0.5}, {"status": "fine"}, {"label": "ill"}, {"more": 1}):
        assert not check.is_valid(ROW | wrong)


def test_csv_holds_hostile_text_and_lists() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", *PREDICTIONS).decode("utf-8"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[1]["file"], rows[1]["prediction_set"]) == (PREDICTIONS[1].file, "COVID;NonCOVID")
    assert float(rows[0]["probability"]) == 0.123456789012345
    assert rows[2]["reason"] == 'a "quoted", long\nreason'
    assert rows[2]["probability"] == rows[2]["label"] == rows[2]["frame"] == ""


def test_parquet_has_types_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("groundglass.inference.writers._ROW_GROUP", 3)

    def written(*predictions: Prediction) -> Path:
        path = tmp_path / "\udcff.parquet"
        writer = ParquetFile(path)
        for prediction in predictions:
            writer.write(prediction)
        writer.close()
        return path.rename(tmp_path / "x.parquet")

    file = parquet.ParquetFile(written(*PREDICTIONS))
    assert file.metadata.num_row_groups == 2
    assert file.read().to_pylist() == [prediction.to_dict() for prediction in PREDICTIONS]
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["frame"] == types["slice_number"] == "int32"
    assert types["probability"] == types["position"] == types["opacity"] == types["lung_cm2"] == "double"
    empty = parquet.read_table(written())
    assert (empty.num_rows, tuple(empty.column_names)) == (0, COLUMNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PredictionError, match=r"pip install '\.\[parquet\]'` from a clone"):
        OutputPlan(tmp_path / "new.parquet").check()


def file_of(path: Path, *predictions: Prediction, tail: bytes = b"") -> Path:
    target = path / "predictions.jsonl"
    target.write_bytes(b"".join(map(json_line, predictions)) + tail)
    return target


def resumed(path: Path, bundle: str = "b1", *, keep_identifiers: bool = False) -> Output:
    """An earlier run as it is found by the next one."""
    plan = OutputPlan(path, resume=True, keep_identifiers=keep_identifiers)
    with open_output(
        plan, cast(Bundle, SimpleNamespace(id=bundle, info=SimpleNamespace(series=None)))
    ) as output:
        return output


@pytest.mark.parametrize(
    "tail", [json_line(C)[:-1], json_line(C)[:-60], b"\0" * 4096, b"{", b"x" * 200_000], ids=len
)
@pytest.mark.parametrize("whole", [[A, B], []], ids=len)
def test_an_unfinished_line_is_cut_off(tmp_path: Path, whole: list[Prediction], tail: bytes) -> None:
    path = file_of(tmp_path, *whole, tail=tail)
    for _ in range(2):
        assert resumed(path).totals.counts.total == len(whole)
        assert path.read_bytes() == b"".join(map(json_line, whole))


@pytest.mark.parametrize(
    ("prediction", "bundle", "keep", "words"),
    [
        (A, "b2", False, "bundle b1, not of b2"),
        (A, "b1", True, "without --keep-identifiers"),
        (NAMED, "b1", False, "with --keep-identifiers"),
    ],
)
def test_runs_of_different_kinds_are_not_mixed(
    tmp_path: Path, prediction: Prediction, bundle: str, keep: bool, words: str
) -> None:
    path = file_of(tmp_path, A, prediction)
    before = path.read_bytes()
    with pytest.raises(PredictionError, match=words):
        resumed(path, bundle, keep_identifiers=keep)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "new" / "predictions.jsonl"
    script = (
        "import sys; from pathlib import Path; from groundglass.inference.writers import appending\n"
        "with appending(Path(sys.argv[1])): pass"
    )
    with appending(path):
        other = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
        )
    assert other.returncode != 0
    assert "another process is writing to it" in other.stderr
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0
