"""Which slices of DICOM folders are one series: by study, series and patient, else by folder and geometry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest
from tests.cli.predict.conftest import ID, NAME, Run, predictions_of

from groundglass.inference.prediction import row_schema


def scan(series: Path, folder: Path, slices: int = 5, **elements: object) -> None:
    """Write the slices of a series into a folder, with other elements; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(series.iterdir())[:slices]:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:40]}.{sum(folder.name.encode())}.{path.name[2:]}"
        for keyword, value in elements.items():
            delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{'-'.join(map(str, elements.values()))[:20]}{path.name}")


def sizes(folder: Path) -> list[int]:
    return [each["slices"] for each in json.loads((folder / "series.json").read_text())["series"]]


NO_UID = {"SeriesInstanceUID": "", "StudyInstanceUID": None, "PatientID": None}


@pytest.mark.parametrize(
    ("one", "place", "other", "expected"),
    [
        ({}, "b", {"PatientID": "other"}, [5, 5]),
        ({}, "a", {"PatientID": "other"}, [5, 5]),
        ({}, "a", {"PatientName": "Other^One"}, [5, 5]),
        ({}, "a", {"StudyInstanceUID": "1.9"}, [5, 5]),
        ({"SeriesInstanceUID": None}, "b", {"SeriesInstanceUID": ""}, [5, 5]),
        ({"SeriesInstanceUID": ""}, "a", {"SeriesInstanceUID": "", "PixelSpacing": [1, 1]}, [5, 5]),
        ({"SeriesInstanceUID": "UNKNOWN"}, "b", {"SeriesInstanceUID": "UNKNOWN"}, [5, 5]),
        ({}, "b", {}, [5, 5]),  # one UID for two scans, as some anonymisers give it
        (NO_UID, "a", NO_UID, [5]),
        ({"SOPInstanceUID": "1.1"}, "a", {"SOPInstanceUID": "1.1"}, [5]),
        ({"PatientName": NAME + "^"}, "a/b", {"ImagePositionPatient": [0, 0, 70.5], "slices": 1}, [6]),
    ],
)
def test_slices_of_one_study_series_and_patient_are_a_series(
    run: Run, series: Path, tmp_path: Path, one: dict[str, Any], place: str, other: dict[str, Any], expected: list[int]
) -> None:  # fmt: skip
    scan(series, tmp_path / "scans" / "a", **one)
    scan(series, tmp_path / "scans" / place, **other)
    out = tmp_path / "out"
    assert run(tmp_path / "scans", "--output", out, "--quiet").status == 0
    assert sizes(out) == expected
    assert ID not in (out / "predictions.jsonl").read_text()


@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_image_counts_once(run: Run, series: Path, tmp_path: Path, zipped: bool) -> None:
    folder, out = tmp_path / "twice", tmp_path / "out"
    shutil.copytree(series, folder / "a")
    shutil.copytree(series, folder / "b" / "copy")
    if zipped:
        folder = Path(shutil.make_archive(str(folder), "zip", folder))
    done = run(folder, "--output", out)
    assert done.status == 0
    assert "5 slices: 5 classified" in done.out
    assert "5 copies of these left out" in done.out
    assert sizes(out) == [5]
    rows = predictions_of(out)
    first = {row["instance"]: row["file"] for row in rows if row["status"] == "ok"}
    copies = [row for row in rows if row["status"] == "refused"]
    assert len(first) == len(copies) == 5
    assert all(row["reason"].startswith(f"a copy of {first[row['instance']]}") for row in copies)
    shutil.copytree(series, tmp_path / "third")
    done = run(folder, tmp_path / "third", series / "IM0", "--output", out, "--resume")
    assert "11 copies" in done.out, "known from an earlier run"
    assert predictions_of(out)[:10] == rows


def test_rows_can_be_joined(run: Run, series: Path, tmp_path: Path) -> None:
    run(series, "--output", tmp_path / "out", "--quiet")
    for row in predictions_of(tmp_path / "out"):
        jsonschema.validate(row, row_schema())
        header = pydicom.dcmread(row["file"])
        uids = header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID, header.InstanceNumber
        assert (row["study"], row["series"], row["instance"], row["slice_number"]) == uids
        assert (tmp_path / "out" / row["overlay"]).is_file()
    (summary,) = json.loads((tmp_path / "out" / "series.json").read_text())["series"]
    assert all(summary[name] == row[name] for name in ("study", "series", "stack"))
