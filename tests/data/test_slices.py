"""Slices to work with: cut out of volumes without a word of the patient, previewed, or phantoms."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from tests.conftest import Command, blank, save_image

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, read_mask
from groundglass.data.phantoms import write_phantoms
from groundglass.data.slices import cut_slices
from groundglass.imaging.phantom import Phantom, make_phantom, make_series, write_dicom
from groundglass.imaging.read import read_slices
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


def test_slices_name_nobody(tmp_path: Path, dicom_series: Path, phantoms: list[Phantom], run_command: Command) -> None:
    bad, output = tmp_path / "bad.nii", tmp_path / "out"
    bad.write_bytes(b"no volume")
    twice = dicom_series, dicom_series  # written once
    status, out, err = run_command("data", "slices", bad, *twice, "--output", output, "--every", "2")
    assert (status, err.startswith(f"left out: {bad}: not an image"), err.count("\n")) == (3, True, 1)
    written = sorted(output.iterdir())
    assert f"{len(written)} slices written" in out
    (name,) = {path.stem.split("_")[0] for path in written}
    assert len(name) == 16
    assert {int(path.stem.split("_")[1]) for path in written} <= {*range(4, COUNT, 2)}, "every other, none blank"
    secrets = ("Doe", "Jane", "PHANTOM", str(phantoms[0].number), phantoms[0].slice.origin.series or "-")
    for path in written:
        image = Image.open(path)
        assert (image.mode, image.info) == ("L", {})
        np.testing.assert_array_equal(np.array(image), LUNG.apply(phantoms[int(path.stem.split("_")[1])].hounsfield))
        assert not any(each in path.name or each.encode() in path.read_bytes() for each in secrets)
    again = list(cut_slices(dicom_series, output, every=2))
    assert (len(again) >= 3, again) == (True, written), "the same names again"


@pytest.mark.parametrize("second", [{"PatientID": "another"}, {"StudyInstanceUID": "1.9"}, {"SeriesInstanceUID": ""}])
def test_two_series_get_two_names(tmp_path: Path, dicom_series: Path, second: dict[str, str]) -> None:
    (tmp_path / "in").mkdir()
    for path in dicom_series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.save_as(tmp_path / "in" / path.name)
        dataset.PixelData = np.maximum(dataset.pixel_array, 10).tobytes()  # another scan
        for keyword, value in second.items():
            setattr(dataset, keyword, value)
        dataset.save_as(tmp_path / "in" / f"second-{path.name}")
    for _ in range(2):  # what it wrote below its input is not read
        written = [path.stem.split("_") for path in cut_slices(tmp_path / "in", tmp_path / "in" / "out", every=1)]
    assert len({name for name, _ in written}) == 2
    assert max(int(index) for _, index in written) < COUNT


def test_only_axial_slices_with_enough_lung(tmp_path: Path, dicom_samples: Path) -> None:
    written = list(cut_slices(dicom_samples, tmp_path / "out", every=1))
    # Those of the series' 25 that lie below the neck, 3 compressed ones, 2 axial ones; no abdomen, coronal or sagittal.
    assert 18 <= len(written) <= 23


def test_slice_mask_crop_and_ten_painted_copies(tmp_path: Path, run_command: Command) -> None:
    slices, output, side = tmp_path / "slices", tmp_path / "slices" / "out", 256
    for number in range(2):
        phantom = make_phantom(np.random.default_rng(number), level=0.5, size=128)
        save_image(slices / f"a b{number}.png", phantom.slice.pixels)
    (slices / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for _ in range(2):  # what it wrote below its input is not read
        status, _, err = run_command("data", "preview", slices, "--output", output, "--size", side)
    assert (status, "broken.png" in err) == (3, True)
    first, second = sorted(output.iterdir())
    assert [first.name, second.name] == ["00000-a_b0.png", "00001-a_b1.png"]
    picture = cv2.imread(str(first), cv2.IMREAD_COLOR)
    assert picture.shape == (4 * side, 4 * side, 3)
    tiles = [tile for row in np.split(picture, 4) for tile in np.split(row, 4, axis=1)]
    places = slice(24, 170)  # between the caption and the copy in the corner
    assert len({tile[places].tobytes() for tile in tiles[:13]}) == 13, "no two are alike"


def test_phantoms_are_a_balanced_data_set_with_a_split_and_masks_of_one_bit(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("p", "again")]
    for folder in folders:
        write_phantoms(folder, 20, (0.6, 0.6), seed=3, size=96)
    records = load_dataset(folders[0]).records
    expected = {(part, label): count for part, count in (("train", 6), ("val", 2), ("test", 2)) for label in Label}
    assert Counter((record.split, record.label) for record in records) == expected
    assert len({record.patient_id for record in records}) == 20
    ill, healthy = np.random.default_rng([3, 0]), np.random.default_rng([3, 1])
    truth = make_phantom(ill, ill.uniform(0.6, 0.6), size=96), make_phantom(healthy, size=96)
    for record, phantom in zip(sorted(records[:2], key=lambda each: each.path.name), truth, strict=True):
        names = (f"{record.path.stem}-{what}.png" for what in ("lungs", "lesions"))
        assert [record.lung_mask, record.lesion_mask] == [folders[0] / "masks" / name for name in names]
        np.testing.assert_array_equal(read_mask(record.lung_mask, blank(96, 96)), phantom.lungs)
        np.testing.assert_array_equal(read_mask(record.lesion_mask, blank(96, 96)), phantom.lesions)
        assert phantom.lesions.any() == (record.label is Label.COVID)
        assert record.lung_mask.read_bytes()[24] == 1, "bits per pixel in the PNG's header"
    written, again = ({path.name: path.read_bytes() for path in each.rglob("*.*")} for each in folders)
    assert len(written) == 61
    assert written == again


def test_series_are_each_of_a_patient_of_its_own(tmp_path: Path, run_command: Command) -> None:
    output = tmp_path / "series"
    words = ["--series", "0,0.9", "--count", "3", "--size", "96", "--output", output]
    assert run_command("data", "phantoms", *words)[0] == 0
    for severity in ("0.00", "0.90"):
        origins = [each.origin for each in read_slices(output / f"severity-{severity}")]
        assert len({origin.series for origin in origins}) == 1
        assert [Path(origin.file).name for origin in origins] == ["0003.dcm", "0002.dcm", "0001.dcm"], "first the apex"
        first, second = np.diff([origin.position[2] for origin in origins])
        assert first == pytest.approx(second) != 0
    records = load_dataset(output).records
    assert [record.patient_id for record in records].count(records[0].patient_id) == 3
    for record in records:
        lungs, lesions = (read_mask(path or Path(), blank(96, 96)) for path in (record.lung_mask, record.lesion_mask))
        assert not (lesions & ~lungs).any()
        assert (record.label is Label.COVID) == lesions.any()
        assert "severity-0.90" in str(record.path) or not lesions.any()


@pytest.mark.parametrize(
    ("option", "values", "complaint"),
    [
        ("--severity", ["", "a:b", "0.5:0.2", "0:0.5", "0.5:1.5", "nan", "0:1:1"], "severity"),
        ("--series", ["0,2", "nan"], "0 to 1"),
        ("--series", ["mild"], "mild"),
        ("--series", ["0.5,0.5", "0.301,0.302"], "once"),
        ("--count", ["2"], "not an empty folder"),
    ],
)
def test_wrong_words(tmp_path: Path, run_command: Command, option: str, values: list[str], complaint: str) -> None:
    """And a folder in use are refused, and nothing is written."""
    used = option == "--count"
    (tmp_path / "mine.txt").touch()
    for value in values:
        output = tmp_path if used else tmp_path / "s"
        status, _, err = run_command("data", "phantoms", option, value, "--output", output)
        assert (status, complaint in err) == (2, True), value
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
