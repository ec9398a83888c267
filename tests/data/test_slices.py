"""Lung slices cut out of volumes: enough lung, the lung window, and no word of the patient."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from groundglass.data.slices import Selection, cut_slices
from groundglass.imaging.phantom import make_series
from groundglass.imaging.window import LUNG

SIZE = 128
COUNT = 12


@pytest.fixture(scope="module")
def phantoms() -> NDArray[np.float32]:
    """Hounsfield units of a phantom's chest from the feet upwards, four blank slices first; (16, 128, 128)."""
    series = [phantom.hounsfield for phantom in make_series(np.random.default_rng(3), COUNT, size=SIZE)]
    return np.stack([np.full((SIZE, SIZE), -1000, np.float32)] * 4 + series[::-1])


@pytest.fixture
def dicom_series(tmp_path: Path, phantoms: NDArray[np.float32], write_dicom: Callable[..., Path]) -> Path:
    folder = tmp_path / "Doe_Jane"
    folder.mkdir()
    for index, hounsfield in enumerate(phantoms):
        write_dicom(
            folder / f"DoeJane{index}.dcm",
            hounsfield.astype(np.int16),
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, index * 5],
        )
    return folder


def test_slices_of_a_series(tmp_path: Path, dicom_series: Path, phantoms: NDArray[np.float32]) -> None:
    written = list(cut_slices(dicom_series, tmp_path / "out", Selection(every=2)))
    assert len(written) >= 3
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    (name,) = {path.stem.split("_")[0] for path in written}
    assert len(name) == 16
    for path in written:
        index = int(path.stem.split("_")[1])
        assert index % 2 == 0
        assert index >= 4, "a blank slice was taken"
        image = Image.open(path)
        assert image.mode == "L"
        assert image.info == {}
        expected = LUNG.apply(np.maximum(phantoms[index].astype(np.int16), -1024))
        np.testing.assert_array_equal(np.array(image), expected)


def test_nothing_of_the_patient_is_told(tmp_path: Path, dicom_series: Path) -> None:
    for path in cut_slices(dicom_series, tmp_path / "out", Selection(every=3)):
        for secret in ("Doe", "Jane", "secret", "1.2.3.4"):
            assert secret not in path.name
            assert secret.encode() not in path.read_bytes()


def test_names_are_the_same_again_and_differ_between_series(
    tmp_path: Path, dicom_series: Path, phantoms: NDArray[np.float32]
) -> None:
    volume = np.ascontiguousarray(phantoms[:, ::-1, ::-1].transpose(2, 1, 0)).astype(np.int16) + 3
    nib.Nifti1Image(volume, np.diag([1.0, 1, 5, 1])).to_filename(tmp_path / "b.nii.gz")
    selection = Selection(every=4)
    series = list(cut_slices(dicom_series, tmp_path / "out", selection))
    assert list(cut_slices(dicom_series, tmp_path / "out", selection)) == series
    other = list(cut_slices(tmp_path / "b.nii.gz", tmp_path / "out", selection))
    assert [path.stem[-4:] for path in other] == [path.stem[-4:] for path in series]
    assert not {path.name for path in series} & {path.name for path in other}


def test_only_axial_slices_with_enough_lung(tmp_path: Path, dicom_samples: Path) -> None:
    written = list(cut_slices(dicom_samples, tmp_path / "out", Selection(every=1)))
    # Those of the series' 25 that lie below the neck, 3 compressed ones; no abdomen, coronal or sagittal.
    assert 18 <= len(written) <= 22
    assert list(cut_slices(dicom_samples / "lung-series", tmp_path / "none", Selection(1, 0.8))) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"least_lungs": 0.0}, {"least_lungs": 1.0}])
def test_impossible_selections(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Selection(**wrong)  # type: ignore[arg-type]


def test_the_command_goes_on_after_a_bad_volume(tmp_path: Path, dicom_series: Path) -> None:
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no volume")
    command = [sys.executable, "-m", "groundglass.cli.main", "data", "slices", str(bad), str(dicom_series)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--every", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert f"left out: {bad}: not an image" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    count = len(list((tmp_path / "out").glob("*.png")))
    assert count > 0
    assert f"{count} slices written" in done.stdout
