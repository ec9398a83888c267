"""Paths: which slices they stand for, and names of any kind in every output; the patient's in none unless asked to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.predict.conftest import BIRTH, ID, NAME, Run, png, predictions_of, write_pictures
from tests.conftest import change_dicom

from groundglass.inference.prediction import COLUMNS, IDENTIFIERS


def test_hostile_names(run: Run, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "names", 1), tmp_path / "out"
    names = (b"<script>alert(1)<", b"new\nline", b"\xff\xfe", b"esc\x1b[2J", b'"q",;', b"=1+1")
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".png")).write_bytes(png(0))
    done = run(folder, "--output", out)
    assert done.status == 0
    assert "\x1b[2J" not in done.out
    rows = predictions_of(out)
    assert len(rows) == len(list((out / "overlays").iterdir())) == 7
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;.png" in page
    assert run(folder, "--output", out, "--resume").status == 0
    assert predictions_of(out) == rows, "every name is known again"


def everything_in(folder: Path) -> bytes:
    return b"".join(
        path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    )


def test_no_output_names_the_patient(run: Run, series: Path, tmp_path: Path) -> None:
    (series / "IM9").write_bytes((series / "IM0").read_bytes()[:3000])
    change_dicom(series / "IM1", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    outputs = [run(series, *arguments) for arguments in ((), ("--json",), ("--csv",))]
    arguments = ["--output", tmp_path / "out"]
    pytest.importorskip("pyarrow")
    outputs.append(run(series, *arguments, "--parquet"))
    outputs.append(run(series, "--output", tmp_path / "x.jsonl"))
    everything = "".join(done.out + done.err for done in outputs).encode() + everything_in(tmp_path / "out")
    everything += (tmp_path / "x.jsonl").read_bytes()
    assert b"IM0" in everything, "something is searched"
    assert {done.status for done in outputs} == {3}
    for secret in (*NAME.split("^"), ID, BIRTH, "1931-07-19", "patient_name"):
        assert secret.encode() not in everything
        assert secret.lower().encode() not in everything.lower()


def test_identifiers_are_kept_where_asked_for_and_nowhere_else(
    run: Run, series: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(series, "--output", out, "--keep-identifiers", "--json")
    assert done.status == 0
    for row in (*done.rows, *predictions_of(out)):
        assert tuple(row) == COLUMNS + IDENTIFIERS
        assert (row["patient_name"], row["patient_id"], row["birth_date"]) == (NAME, ID, BIRTH)
    assert NAME in (out / "predictions.csv").read_text()
    for name in ("report.html", "series.json"):
        assert NAME not in (out / name).read_text()
    resumed = run(series, "--output", out, "--resume")
    assert resumed.status == 2
    assert "--keep-identifiers" in resumed.err
