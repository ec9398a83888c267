"""Which slices of DICOM folders are one series: by study, series and patient, else by folder and geometry."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from tests.cli.predict.conftest import ID, NAME, Run, predictions_of


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
    folder = tmp_path / "twice"
    shutil.copytree(series, folder / "a")
    shutil.copytree(series, folder / "b" / "copy")
    if zipped:
        shutil.make_archive(str(tmp_path / "twice"), "zip", folder)
        folder = tmp_path / "twice.zip"
    out = tmp_path / "out"
    done = run(folder, "--output", out)
    assert done.status == 0
    assert "5 slices: 5 classified" in done.out
    assert "5 copies of these left out" in done.out
    assert sizes(out) == [5]
    rows = {row["file"]: row for row in predictions_of(out)}
    copies = [row for row in rows.values() if row["status"] == "refused"]
    assert [row["status"] for row in rows.values()].count("ok") == len(copies) == 5
    for row in copies:
        first = next(
            each for each in rows.values() if each["status"] == "ok" and each["instance"] == row["instance"]
        )
        assert row["reason"].startswith(f"a copy of {first['file']}")
    assert run(folder, "--output", out, "--resume").status == 0
    assert predictions_of(out) == list(rows.values())


def test_a_copy_is_known_from_an_earlier_run(run: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    shutil.copytree(series, tmp_path / "all" / "a")
    run(tmp_path / "all", "--output", out, "--quiet")
    shutil.copytree(series, tmp_path / "all" / "b")
    assert "5 copies" in run(tmp_path / "all", "--output", out, "--resume").out


def test_an_image_in_a_member_and_a_file(run: Run, series: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(series / "IM0", "IM0")
    rows = run(series / "IM0", tmp_path / "one.zip", "--json").rows
    assert [row["status"] for row in rows] == ["ok", "refused"]


def test_rows_can_be_joined(run: Run, series: Path, tmp_path: Path) -> None:
    run(series, "--output", tmp_path / "out", "--quiet")
    for row in predictions_of(tmp_path / "out"):
        header = pydicom.dcmread(row["file"])
        uids = header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID, header.InstanceNumber
        assert (row["study"], row["series"], row["instance"], row["slice_number"]) == uids
        assert (tmp_path / "out" / row["overlay"]).is_file()
    (summary,) = json.loads((tmp_path / "out" / "series.json").read_text())["series"]
    assert all(summary[name] == row[name] for name in ("study", "series", "stack"))
