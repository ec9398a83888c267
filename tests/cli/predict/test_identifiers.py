"""No output names the patient, unless asked to."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pydicom
from tests.cli.predict.conftest import BIRTH, ID, NAME, Run, predictions_of

from groundglass.inference.prediction import COLUMNS, IDENTIFIERS


def everything_in(folder: Path) -> bytes:
    return b"".join(
        path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    )


def test_no_output_names_the_patient(run: Run, series: Path, tmp_path: Path) -> None:
    (series / "IM9").write_bytes((series / "IM0").read_bytes()[:3000])
    dataset = pydicom.dcmread(series / "IM1")
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.save_as(series / "IM1")
    outputs = [run(series, *arguments) for arguments in ((), ("--json",), ("--csv",))]
    arguments = ["--output", tmp_path / "out"]
    parquet = find_spec("pyarrow") is not None
    outputs.append(run(series, *arguments, *(["--parquet"] * parquet)))
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
