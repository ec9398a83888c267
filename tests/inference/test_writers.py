"""Predictions as JSON lines, CSV and Parquet say the same, and JSON lines are resumed without loss or doubles."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from groundglass.errors import PredictionError
from groundglass.imaging.slice import Patient
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, Prediction, Status
from groundglass.inference.writers import (
    Format,
    PredictionsWriter,
    appending,
    drop_overtaken,
    json_line,
    load_done,
    read_predictions,
)

PREDICTIONS = [
    Prediction(Status.OK, "a/1.dcm", "b-fp32", None, 0.123456789012345, "NonCOVID", ("NonCOVID",), (), None, "1.2", -5.5),
    Prediction(Status.OK, 'x,"y";\nz\t<é>.png', "b-fp32", None, 1.0, "uncertain", ("COVID", "NonCOVID"), ("f", "g"), 0),
    Prediction(Status.REFUSED, "c.png", "b-fp32", 'a "quoted", long\nreason'),
    Prediction(Status.FAILED, "bytes-\udcff\udce9.png", "b-fp32", "the file is empty"),
]  # fmt: skip


def written(file_format: Format, predictions: list[Prediction], *, keep_identifiers: bool = False) -> bytes:
    stream = io.BytesIO()
    writer = PredictionsWriter(file_format, stream, keep_identifiers=keep_identifiers)
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
    assert rows == [prediction.to_dict() for prediction in PREDICTIONS]
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
    with pytest.raises(PredictionError, match=r"pip install '\.\[parquet\]'` from a clone"):
        PredictionsWriter("parquet", io.BytesIO())


A = Prediction(Status.OK, "a.png", "b1", None, 0.5, "uncertain", (), ())
B = Prediction(Status.REFUSED, "b.png", "b1", "a photograph")
C = Prediction(Status.FAILED, "c.png", "b1", "truncated")
V = [replace(A, file="v.nii", frame=frame) for frame in range(3)]


def file_of(path: Path, *predictions: Prediction, tail: bytes = b"") -> Path:
    target = path / "predictions.jsonl"
    target.write_bytes(b"".join(map(json_line, predictions)) + tail)
    return target


def test_what_is_done_and_what_is_tried_again(tmp_path: Path) -> None:
    done = load_done(file_of(tmp_path, A, B, C, *V), "b1", keep_identifiers=False)
    assert done.predictions == 6
    assert done.has_file("a.png")
    assert done.has_file("b.png"), "what was refused is not asked about again"
    assert not done.has_file("c.png"), "what failed is"
    assert not done.has_file("v.nii"), "only its end tells whether a volume is done"
    assert all(done.has_slice("v.nii", frame) for frame in range(3))
    assert not done.has_slice("v.nii", 3)
    assert not done.has_slice("v.nii", None)
    assert not done.has_file("d.png")


def test_names_of_bytes_are_known_again(tmp_path: Path) -> None:
    done = load_done(file_of(tmp_path, replace(A, file="\udcff.png")), "b1", keep_identifiers=False)
    assert done.has_file("\udcff.png")


@pytest.mark.parametrize("cut", [2, 7, 60])
def test_an_unfinished_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = file_of(tmp_path, A, B, tail=json_line(C)[:-cut])
    assert load_done(path, "b1", keep_identifiers=False).predictions == 2
    assert list(read_predictions(path)) == [A, B]


def test_a_line_that_lacks_only_its_end_is_predicted_again(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, tail=json_line(B)[:-1])
    assert load_done(path, "b1", keep_identifiers=False).predictions == 1
    assert path.read_bytes() == json_line(A)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"{", b"x" * 200_000])
def test_rubbish_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = file_of(tmp_path, A, tail=tail)
    load_done(path, "b1", keep_identifiers=False)
    assert path.read_bytes() == json_line(A)


def test_a_file_of_nothing_but_a_beginning(tmp_path: Path) -> None:
    path = file_of(tmp_path, tail=b'{"file": "a')
    assert load_done(path, "b1", keep_identifiers=False).predictions == 0
    assert path.read_bytes() == b""
    assert load_done(path, "b1", keep_identifiers=False).predictions == 0


def test_rubbish_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, tail=b"rubbish\n" + json_line(B))
    with pytest.raises(PredictionError, match="line 2"):
        load_done(path, "b1", keep_identifiers=False)


def test_bundles_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="bundle b1, not of b2"):
        load_done(file_of(tmp_path, A), "b2", keep_identifiers=False)


def test_predictions_with_and_without_names_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="without --keep-identifiers"):
        load_done(file_of(tmp_path, A), "b1", keep_identifiers=True)
    named = replace(A, patient=Patient())
    with pytest.raises(PredictionError, match="with --keep-identifiers"):
        load_done(file_of(tmp_path, named), "b1", keep_identifiers=False)
    assert load_done(file_of(tmp_path, named), "b1", keep_identifiers=True).predictions == 1


def test_failures_give_way_to_later_predictions_of_the_same_file(tmp_path: Path) -> None:
    now = replace(A, file="c.png")
    path = file_of(tmp_path, A, C, B, now)
    drop_overtaken(path)
    assert list(read_predictions(path)) == [A, B, now]
    again = replace(C, reason="truncated still")
    path = file_of(tmp_path, C, A, again)
    drop_overtaken(path)
    assert list(read_predictions(path)) == [A, again]


def test_a_failure_of_a_folder_or_zip_gives_way_to_what_was_found_in_it(tmp_path: Path) -> None:
    failures = [replace(C, file=name) for name in ("d", "s.zip", "/", "e")]
    found = [replace(A, file=name) for name in ("d/x/1.png", "s.zip!1.png", "/1.png", "ee/1.png")]
    path = file_of(tmp_path, *failures, *found)
    drop_overtaken(path)
    assert list(read_predictions(path)) == [failures[3], *found]


def test_a_volume_that_fails_half_way_keeps_both(tmp_path: Path) -> None:
    failure = replace(C, file="v.nii")
    path = file_of(tmp_path, *V, failure, A)
    drop_overtaken(path)
    assert list(read_predictions(path)) == [*V, failure, A]
    later = replace(A, file="v.nii", frame=3)
    path = file_of(tmp_path, *V, failure, A, later)
    drop_overtaken(path)
    assert list(read_predictions(path)) == [*V, A, later]


def test_a_file_with_nothing_overtaken_is_not_touched(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, C)
    before = path.stat().st_ino
    drop_overtaken(path)
    assert path.stat().st_ino == before


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


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PredictionError, match="cannot be written"), appending(tmp_path / "file" / "x.jsonl"):
        pass
