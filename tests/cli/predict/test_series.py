"""Which slices of DICOM folders are one series: by study, series and patient, else by folder and geometry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest
from tests.cli.predict.conftest import ID, NAME, Run, predictions_of

from groundglass.inference.prediction import row_schema


@pytest.fixture
def scan(series: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the five slices into a folder, with other elements; None removes one."""

    def write(name: str, **elements: Any) -> Path:
        folder = tmp_path / "scans" / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in series.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:40]}.{sum(name.encode())}.{path.name[2:]}"
            for keyword, value in elements.items():
                delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
            dataset.save_as(folder / f"{'-'.join(map(str, elements.values()))[:20]}{path.name}")
        return folder

    return write


def sizes(folder: Path) -> list[int]:
    return [each["slices"] for each in json.loads((folder / "series.json").read_text())["series"]]


Wrote = list[tuple[str, dict[str, Any]]]


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        ([("a", {}), ("b", {"PatientID": "other"})], [5, 5]),
        ([("a", {}), ("a", {"PatientID": "other"})], [5, 5]),
        ([("a", {}), ("a", {"PatientName": "Other^One"})], [5, 5]),
        ([("a", {}), ("a", {"StudyInstanceUID": "1.9"})], [5, 5]),
        ([("a", {"SeriesInstanceUID": None}), ("b", {"SeriesInstanceUID": ""})], [5, 5]),
        ([("a", {"SeriesInstanceUID": ""}), ("a", {"SeriesInstanceUID": "", "PixelSpacing": [1, 1]})], [5, 5]),
        ([("a", {"SeriesInstanceUID": "", "StudyInstanceUID": None, "PatientID": None})], [5]),
        ([("a", {"SeriesInstanceUID": "UNKNOWN"}), ("b", {"SeriesInstanceUID": "UNKNOWN"})], [5, 5]),
        ([("a", {}), ("b", {})], [5, 5]),  # one UID for two scans, as some anonymisers give it
        ([("a", {"SOPInstanceUID": "1.1"})], [5]),
        ([("a", {"PatientName": NAME + "^"}), ("sub/b", {"ImagePositionPatient": [0, 0, 70.5]})], [6]),
    ],
)  # fmt: skip
def test_series(
    run: Run, scan: Callable[..., Path], tmp_path: Path, scans: Wrote, expected: list[int]
) -> None:
    for name, elements in scans:
        folder = scan(name, **elements)
        if expected == [6]:
            for path in sorted(folder.iterdir())[1 if name != "a" else 5 :]:
                path.unlink()
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
