from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.data.load import load_dataset, load_labelled_folder, load_unlabelled_folder
from groundglass.data.manifest import Label, read_pixels
from groundglass.errors import DataError


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("positive", "negative"), [("COVID", "NonCOVID"), ("covid", "non-covid"), ("CT_COVID", "CT_NonCOVID")]
)
def test_two_folders(tmp_path: Path, positive: str, negative: str) -> None:
    root = tmp_path / "ward-7"
    save_image(root / positive / "a.png")
    save_image(root / negative / "b.JPG")
    save_image(root / negative / ".hidden.png")
    (root / negative / "notes.txt").write_text("no slice")
    manifest = load_dataset(root)
    assert {record.path.name: record.label for record in manifest} == {
        "a.png": Label.COVID,
        "b.JPG": Label.NON_COVID,
    }
    assert {record.source for record in manifest} == {"ward-7"}
    assert not any(record.patient_known or record.split for record in manifest)


def test_patient_sub_folders(tmp_path: Path) -> None:
    for name in (
        "COVID/p1/a.png",
        "COVID/p1/series/b.png",
        "COVID/c.png",
        "NonCOVID/c.png",
        "NonCOVID/p2/d.png",
    ):
        save_image(tmp_path / name)
    patients = {
        record.path.relative_to(tmp_path).as_posix(): record.patient_id
        for record in load_labelled_folder(tmp_path)
    }
    assert patients["COVID/p1/a.png"] == patients["COVID/p1/series/b.png"] == "p1"
    assert patients["NonCOVID/p2/d.png"] == "p2"
    assert patients["COVID/c.png"] != patients["NonCOVID/c.png"]


def test_order_is_that_of_names(tmp_path: Path) -> None:
    for number in (10, 2, 1, 33):
        save_image(tmp_path / "COVID" / f"{number}.png")
        save_image(tmp_path / "NonCOVID" / f"{number}.png")
    names = [record.path.name for record in load_labelled_folder(tmp_path)]
    assert names == ["1.png", "2.png", "10.png", "33.png"] * 2


def test_dicom_without_suffix(tmp_path: Path, dicom_samples: Path) -> None:
    save_image(tmp_path / "NonCOVID" / "a.png")
    (tmp_path / "COVID").mkdir()
    shutil.copyfile(dicom_samples / "lung-series" / "1-057.dcm", tmp_path / "COVID" / "1.2.840.113")
    records = load_labelled_folder(tmp_path).records
    assert [record.path.name for record in records] == ["1.2.840.113", "a.png"]
    assert read_pixels(records[0]).shape == (512, 512)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["COVID/a.png", "healthy/b.png"], "no sub-folder for NonCOVID"),
        (["COVID/a.png", "CT_COVID/a.png", "NonCOVID/b.png"], "more than one sub-folder for COVID"),
        (["COVID/a.png", "NonCOVID/sub/b.txt"], "NonCOVID: holds no slices"),
        (["train/COVID/a.png", "train/NonCOVID/b.png"], "deeper, in .*train"),
        (["notes/a.txt"], "holds no slices"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            save_image(path)
        else:
            path.write_text("text")
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path)


def test_unlabelled(luna_slices: Path) -> None:
    manifest = load_unlabelled_folder(luna_slices)
    assert len(manifest) == 1000
    assert manifest.name == "luna-slices"
    assert all(record.label is None for record in manifest)
    assert len({record.patient_id for record in manifest}) == 1000
