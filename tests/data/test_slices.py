"""Lung slices cut out of volumes: enough lung, the lung window, and no word of the patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.slices import cut_slices
from groundglass.imaging.phantom import Phantom, make_series, write_dicom
from groundglass.imaging.window import LUNG

COUNT, BLANK = 16, (0, 1, 2)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    """A chest from the feet upwards, its first three slices blank."""
    series = list(make_series(np.random.default_rng(3), COUNT, size=128))[::-1]
    for index in BLANK:
        series[index] = replace(series[index], hounsfield=np.full((128, 128), -1000, np.float32))
    return series


@pytest.fixture(scope="module")
def dicom_series(tmp_path_factory: pytest.TempPathFactory, phantoms: list[Phantom]) -> Path:
    folder = tmp_path_factory.mktemp("Doe_Jane")
    for index, phantom in enumerate(phantoms):
        write_dicom(phantom, folder / f"DoeJane{index}.dcm")
    return folder


def test_slices_of_a_series_name_nobody(tmp_path: Path, dicom_series: Path, phantoms: list[Phantom]) -> None:
    written = list(cut_slices(dicom_series, tmp_path / "out", every=2))
    assert len(written) >= 3
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    (name,) = {path.stem.split("_")[0] for path in written}
    assert len(name) == 16
    secrets = ("Doe", "Jane", "PHANTOM", str(phantoms[0].number), phantoms[0].slice.origin.series or "-")
    for path in written:
        index = int(path.stem.split("_")[1])
        assert index % 2 == 0
        assert index not in BLANK
        image = Image.open(path)
        assert (image.mode, image.info) == ("L", {})
        np.testing.assert_array_equal(np.array(image), LUNG.apply(phantoms[index].hounsfield))
        assert not any(each in path.name or each.encode() in path.read_bytes() for each in secrets)
    assert list(cut_slices(dicom_series, tmp_path / "out", every=2)) == written, "the same names again"


@pytest.mark.parametrize(
    "second", [{"PatientID": "another"}, {"StudyInstanceUID": "1.9"}, {"SeriesInstanceUID": ""}]
)
def test_two_series_get_two_names(tmp_path: Path, dicom_series: Path, second: dict[str, str]) -> None:
    (tmp_path / "in").mkdir()
    for path in dicom_series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.save_as(tmp_path / "in" / path.name)
        dataset.PixelData = np.maximum(dataset.pixel_array, 10).tobytes()  # another scan
        for keyword, value in second.items():
            setattr(dataset, keyword, value)
        dataset.save_as(tmp_path / "in" / f"second-{path.name}")
    written = [path.stem.split("_") for path in cut_slices(tmp_path / "in", tmp_path / "out", every=1)]
    assert len({name for name, _ in written}) == 2
    assert max(int(index) for _, index in written) < COUNT


def test_only_axial_slices_with_enough_lung(tmp_path: Path, dicom_samples: Path) -> None:
    written = list(cut_slices(dicom_samples, tmp_path / "out", every=1))
    # Those of the series' 25 that lie below the neck, 3 compressed ones, 2 axial ones; no abdomen, coronal or sagittal.
    assert 18 <= len(written) <= 23
    assert list(cut_slices(dicom_samples / "lung-series", tmp_path / "none", 1, 0.8)) == []
    assert not (tmp_path / "none").exists()


def test_the_command_continues_after_a_bad_volume(tmp_path: Path, dicom_series: Path) -> None:
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no volume")
    words = ["data", "slices", str(bad), str(dicom_series), "--output", str(tmp_path / "out"), "--every", "3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert f"left out: {bad}: not an image" in line
    count = len(list((tmp_path / "out").glob("*.png")))
    assert count > 0
    assert f"{count} slices written" in done.stdout
