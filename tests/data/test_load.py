from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.data.load import load_dataset
from groundglass.errors import DataError


def test_every_form_of_covid_ct(covid_ct: Path, clone: Path, packed_images: Path) -> None:
    for path in (covid_ct, covid_ct / "Images-processed", clone, packed_images):
        manifest = load_dataset(path)
        assert (manifest.name, len(manifest), manifest.labelled) == ("COVID-CT", 746, True)


def test_manifest_of_covid_ct(covid_ct: Path) -> None:
    manifest = load_dataset(covid_ct / "manifest.csv")
    assert (manifest.name, len(manifest)) == ("manifest", 746)
    assert len({record.patient_id for record in manifest}) == 384


def test_own_images_under_the_names_of_covid_cts_folders(tmp_path: Path) -> None:
    for name in ("CT_COVID", "CT_NonCOVID"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / name / "mine.png")
    assert len(load_dataset(tmp_path)) == 2


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        load_dataset(tmp_path / "absent")
    file = tmp_path / "a.png"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: a data set is a folder or a manifest CSV"):
        load_dataset(file)


def test_a_folder_is_read_by_the_manifest_in_it(tmp_path: Path) -> None:
    (tmp_path / "COVID").mkdir()
    (tmp_path / "COVID" / "a.png").write_bytes(b"a")
    (tmp_path / "manifest.csv").write_text("path,label,patient_id,split\nCOVID/a.png,COVID,p7,test\n")
    (record,) = load_dataset(tmp_path).records
    assert (record.patient_id, record.split) == ("p7", "test")
