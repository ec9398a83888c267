"""Masks lie where the pixels lie that they were found on: read back with other people's readers, voxel for voxel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from tests.imaging.conftest import write_ct

from groundglass.errors import PredictionError
from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.phantom import make_series, write_dicom
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice
from groundglass.inference.classifier import Classifier
from groundglass.inference.masks import MaskWriter, without_masks
from groundglass.inference.prediction import COPY, Evidence, Prediction, Status

LEFT = np.array([[1, 1, -1, -1]] * 4, np.float32)
"""A lesion map over the picture's left half."""


Write = Callable[..., dict[str, Path]]


@pytest.fixture
def write(tmp_path: Path, classifier: Classifier) -> Write:
    """A function that writes masks of predictions, and gives the files by the ends of their names."""

    def written(predictions: Iterable[Prediction], folder: Path = tmp_path / "masks") -> dict[str, Path]:
        with MaskWriter(folder, classifier.bundle) as writer:
            for prediction in predictions:
                writer.add(prediction)
        ends = ("-lungs.png", "-lesions.png", "-lungs.nii.gz", "-lesions.nii.gz", ".dcm")
        return {end: path for path in sorted(folder.iterdir()) for end in ends if path.name.endswith(end)}

    return written


def prediction_of(ct_slice: CTSlice) -> Prediction:
    """As if everything denser than water were lung, and its left half lesion."""
    values = ct_slice.pixels.astype(np.float32) - 100 if ct_slice.hounsfield is None else ct_slice.hounsfield
    lungs, (height, width), origin = values > 0, ct_slice.pixels.shape, ct_slice.origin
    cropped = CroppedSlice(ct_slice.pixels, (0, 0, width, height), lungs, True, ct_slice.pixels)
    position = None if origin.position is None else origin.position[2]
    place = {"frame": origin.frame, "series": origin.series, "position": position}
    return Prediction(Status.OK, origin.file, "b", evidence=Evidence(ct_slice, cropped, LEFT), **place)  # type: ignore[arg-type]


def predictions_of(*paths: Path) -> list[Prediction]:
    return [prediction_of(each) for each in chain.from_iterable(map(read_slices, paths))]


def left_half(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of a mask (H, W)."""
    return mask & (np.arange(mask.shape[1]) < mask.shape[1] // 2)


def test_pictures(tmp_path: Path, write: Write) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    cv2.imwrite(str(tmp_path / "a b.png"), pixels)
    files = write(predictions_of(tmp_path / "a b.png"))
    assert set(files) == {"-lungs.png", "-lesions.png"}
    assert files["-lungs.png"].name.startswith("a_b-")
    for end, expected in (("-lungs.png", pixels > 100), ("-lesions.png", left_half(pixels > 100))):
        mask = cv2.imread(str(files[end]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, np.where(expected, 255, 0))


def tilted(orientation: str) -> NDArray[np.float64]:
    """An affine with axes near to the three directions named, uneven voxels and a tilt."""
    codes = nibabel.orientations.axcodes2ornt(tuple(orientation))
    cos, sin = np.cos(0.2), np.sin(0.2)
    upright = nibabel.affines.from_matvec(
        [[0.7, 0, 0], [0, 0.8 * cos, -2.5 * sin], [0, 0.8 * sin, 2.5 * cos]], [-100, -90, -300]
    )
    return np.asarray(upright @ nibabel.orientations.inv_ornt_aff(codes, (7, 6, 5)))


VOXELS = np.random.default_rng(1).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "SAL", "IRA"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_volumes_voxel_for_voxel(tmp_path: Path, write: Write, orientation: str, suffix: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    affine, path = tilted(orientation), tmp_path / f"v{suffix}"
    nibabel.save(nibabel.Nifti1Image(VOXELS, affine), tmp_path / "v.nii")
    if not suffix.startswith(".nii"):
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "v.nii")), str(path))
    elif suffix == ".nii.gz":
        nibabel.save(nibabel.load(tmp_path / "v.nii"), path)
    files = write(predictions_of(path))
    assert set(files) == {"-lungs.nii.gz", "-lesions.nii.gz"}
    lungs, lesions = (nibabel.load(files[f"-{name}.nii.gz"]) for name in ("lungs", "lesions"))
    np.testing.assert_array_equal(np.asanyarray(lungs.dataobj), VOXELS > 0)
    np.testing.assert_allclose(lungs.affine, affine, atol=1e-4)
    assert lungs.get_data_dtype() == np.uint8
    # Of the lesions, in world coordinates: the image's left is the patient's right.
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS, affine))
    dense = np.asanyarray(expected.dataobj) > 0
    found = np.asanyarray(nibabel.as_closest_canonical(lesions).dataobj) > 0
    middle = len(dense) // 2
    np.testing.assert_array_equal(found[middle + 1 :], dense[middle + 1 :])
    assert not found[:middle].any()
    mask, source = sitk.ReadImage(str(files["-lungs.nii.gz"])), sitk.ReadImage(str(path))
    assert mask.GetSize() == source.GetSize()
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, place)(), getattr(source, place)(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(source) > 0)


def write_frames(path: Path, heights: list[float]) -> Path:
    """A multi-frame CT file."""
    stored = np.random.default_rng(2).integers(-1000, 1000, (len(heights), 6, 8)).astype(np.int16)

    def group(**elements: Any) -> pydicom.Dataset:
        item = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        return item

    shared = group(
        PlaneOrientationSequence=[group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[group(PixelSpacing=[0.7, 0.8])],
    )
    places = [
        group(PlanePositionSequence=[group(ImagePositionPatient=[-10, -20, height])]) for height in heights
    ]
    return write_ct(
        path, stored, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=places
    )


def test_frames_of_a_dicom_file(tmp_path: Path, write: Write) -> None:
    heights = [10.0, -5, 2.5]
    path = write_frames(tmp_path / "frames.dcm", heights)
    files = write(predictions_of(path))
    assert set(files) == {"-lungs.nii.gz", "-lesions.nii.gz"}
    lungs = nibabel.load(files["-lungs.nii.gz"])
    stored, mask = pydicom.dcmread(path).pixel_array, np.asanyarray(lungs.dataobj)
    for frame, row, column in np.ndindex(stored.shape):
        world = [10 - 0.8 * column, 20 - 0.7 * row, heights[frame], 1]
        i, j, k = np.rint(np.linalg.inv(lungs.affine) @ world)[:3].astype(int)
        assert mask[i, j, k] == (stored[frame, row, column] > 0)


def test_frames_without_an_even_grid_become_pictures(tmp_path: Path, write: Write) -> None:
    write(predictions_of(write_frames(tmp_path / "frames.dcm", [0.0, 1, 5])))
    names = sorted(each.name for each in (tmp_path / "masks").iterdir())
    assert len(names) == 6
    assert all(name.startswith("frames-") and name.endswith(".png") for name in names)


def write_series(folder: Path, size: int) -> Path:
    folder.mkdir()
    for phantom in make_series(np.random.default_rng(5), 4, 0.5, size):
        write_dicom(phantom, folder / f"{phantom.instance}.dcm")
    return folder


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A phantom series of four slices."""
    return write_series(tmp_path / "series", 128)


def change(folder: Path, number: int, **elements: Any) -> None:
    path = sorted(folder.iterdir())[number]
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)


def check_segmentation(path: Path, sources: Iterable[Path]) -> None:
    """Every frame lies where its source lies, and holds what was found there."""
    seg, images = pydicom.dcmread(path), [pydicom.dcmread(source) for source in sources]
    by_uid = {image.SOPInstanceUID: image for image in images}
    kinds = [(each.SegmentLabel, each.SegmentedPropertyTypeCodeSequence[0]) for each in seg.SegmentSequence]
    assert [(label, kind.CodeValue) for label, kind in kinds] == [
        ("Lungs", "39607008"),
        ("Lesions", "52988006"),
    ]
    for segment in seg.SegmentSequence:
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "groundglass")
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert seg[keyword].value == images[0][keyword].value
    assert seg.SeriesInstanceUID != images[0].SeriesInstanceUID
    shared = seg.SharedFunctionalGroupsSequence[0]
    seen = set()
    for item, mask in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        reference = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number, image = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber, by_uid[reference]
        for written, known in (
            (item.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient),
            (shared.PixelMeasuresSequence[0].PixelSpacing, image.PixelSpacing),
            (shared.PlaneOrientationSequence[0].ImageOrientationPatient, image.ImageOrientationPatient),
        ):
            np.testing.assert_allclose(written, known, atol=1e-6)
        dense = image.pixel_array * image.RescaleSlope + image.RescaleIntercept > 0
        np.testing.assert_array_equal(mask, dense if number == 1 else left_half(dense))
        seen.add((reference, number))
    assert seen == {(uid, number) for uid in by_uid for number in (1, 2)}


def check_with_dciodvfy(path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here: apt-get install dicom3tools")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert "Error" not in done.stdout + done.stderr


@pytest.mark.parametrize("size", [128, 97])
def test_a_dicom_series_frame_for_frame(tmp_path: Path, write: Write, size: int) -> None:
    series = write_series(tmp_path / "series", size)
    for number in range(4):
        change(series, number, PatientName="Zwiebelfisch^Xaver", PatientID="MRN-4711")
    files = write(predictions_of(series))
    assert len(list((tmp_path / "masks").iterdir())) == 1
    assert files[".dcm"].name.startswith(pydicom.dcmread(next(series.iterdir())).SeriesInstanceUID)
    check_segmentation(files[".dcm"], series.iterdir())
    check_with_dciodvfy(files[".dcm"])


def test_the_same_series_gives_the_same_segmentation(tmp_path: Path, series: Path, write: Write) -> None:
    """But for when it was made."""
    made = [pydicom.dcmread(write(predictions_of(series), tmp_path / name)[".dcm"]) for name in "ab"]
    for seg in made:
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
            delattr(seg, keyword)
        del seg.ContributingEquipmentSequence[0].ContributionDateTime
    assert made[0] == made[1]


def test_a_series_within_a_zip_without_thickness_and_one_without_lungs(
    tmp_path: Path, series: Path, write: Write
) -> None:
    for number in range(4):
        change(series, number, SliceThickness=None)
    predictions = predictions_of(Path(shutil.make_archive(str(tmp_path / "z"), "zip", series)))
    seg = write(predictions)[".dcm"]
    check_segmentation(seg, series.iterdir())
    check_with_dciodvfy(seg)
    bare = []
    for each in predictions:
        assert each.evidence is not None
        cropped = replace(each.evidence.cropped, lungs=np.zeros_like(each.lung_mask))
        bare.append(replace(each, evidence=replace(each.evidence, cropped=cropped)))
    seg = write(bare, tmp_path / "bare")[".dcm"]
    assert not pydicom.dcmread(seg).pixel_array.any()
    check_with_dciodvfy(seg)


@pytest.mark.parametrize(
    "elements",
    [
        {"FrameOfReferenceUID": "1.2.3"},
        {"ImagePositionPatient": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPInstanceUID": "../../1.2"},
        {"PixelSpacing": [2, 2]},
        {"PixelSpacing": [0, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]},
        {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
    ],
)
def test_a_series_that_is_no_stack_becomes_pictures(
    tmp_path: Path, series: Path, write: Write, elements: dict[str, Any]
) -> None:
    change(series, 1, **elements)
    write([each for each in predictions_of(series) if each.series is not None])
    names = [each.name for each in (tmp_path / "masks").iterdir()]
    assert len(names) == 8
    assert all(name.endswith(".png") for name in names)


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientBirthDate": "00000000", "StudyTime": "256199"},
        {"SliceThickness": "1e400"},
        {"SliceThickness": "-3", "PatientName": "a=b=c=d=e^^^^^^^^", "PatientID": "é"},
    ],
)
def test_a_damaged_header_costs_no_masks(series: Path, write: Write, elements: dict[str, Any]) -> None:
    for number in range(4):
        change(series, number, **elements)
    seg = pydicom.dcmread(write(predictions_of(series))[".dcm"])
    assert not seg.PatientBirthDate
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness > 0


def test_a_series_with_a_hostile_uid_stays_in_its_folder(tmp_path: Path, series: Path, write: Write) -> None:
    for number in range(4):
        change(series, number, SeriesInstanceUID="../../1.2")
    folder = tmp_path / "deep" / "masks"
    folder.parent.mkdir()
    predictions = predictions_of(series)
    assert set(write(predictions, folder)) == {"-lungs.png", "-lesions.png"}
    assert [path.name for path in folder.parent.iterdir()] == ["masks"]
    assert list(without_masks(folder, predictions)) == []


def test_a_series_of_which_a_file_is_gone_or_of_another_size_becomes_pictures(
    tmp_path: Path, series: Path, write: Write
) -> None:
    predictions = predictions_of(series)
    first = predictions[0].evidence
    assert first is not None
    small = CTSlice(first.slice.pixels[:50], first.slice.origin, None)
    mixed = [replace(predictions[0], evidence=prediction_of(small).evidence), *predictions[1:]]
    assert set(write(mixed, tmp_path / "mixed")) == {"-lungs.png", "-lesions.png"}
    sorted(series.iterdir())[0].unlink()
    assert set(write(predictions, tmp_path / "gone")) == {"-lungs.png", "-lesions.png"}


def test_a_series_in_parts_and_series_of_one_uid_overwrite_nothing(
    tmp_path: Path, series: Path, write: Write
) -> None:
    cv2.imwrite(str(tmp_path / "other.png"), np.zeros((40, 40), np.uint8))
    first, *_, last = sorted(series.iterdir())
    volume = tmp_path / "v.nii"
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), volume)
    write(predictions_of(first, tmp_path / "other.png", volume, last))
    names = [each.suffix for each in (tmp_path / "masks").iterdir()]
    assert (names.count(".dcm"), len(names)) == (2, 6)

    for name in "abc":
        shutil.copytree(series, tmp_path / "scans" / name)
    for number in range(4):
        change(tmp_path / "scans" / "c", number, PatientID="another")
    predictions = predictions_of(tmp_path / "scans")
    write(predictions, tmp_path / "three")
    assert [path.suffix for path in (tmp_path / "three").iterdir()] == [".dcm"] * 3
    stored = [Prediction.from_dict(each.to_dict()) for each in predictions]
    copies = [
        replace(each, status=Status.REFUSED, reason=f"{COPY} of x", file=f"z/{each.file}") for each in stored
    ]
    assert list(without_masks(tmp_path / "three", [*stored, *copies])) == []


def test_nothing_of_a_series_under_way_is_left(tmp_path: Path, series: Path, write: Write) -> None:
    def interrupted() -> Iterable[Prediction]:
        yield from predictions_of(series)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(interrupted())
    assert list((tmp_path / "masks").iterdir()) == []


def test_without_highdicom_one_line(series: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(PredictionError, match=r"\.dcm: .* need highdicom; install it with .*\[pacs\]"):
        write(predictions_of(series))


def test_what_has_its_masks_is_known(tmp_path: Path, series: Path, write: Write) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "v.nii")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40), np.uint8))
    write_frames(tmp_path / "f.dcm", [0.0, 1, 5])
    paths = [tmp_path / name for name in ("a.png", "v.nii", "f.dcm")] + [series]
    predictions = [*predictions_of(*paths), Prediction(Status.FAILED, "gone.png", "b", "damaged")]
    stored = [Prediction.from_dict(each.to_dict()) for each in predictions]
    folder = tmp_path / "masks"
    files = write(predictions)
    assert list(without_masks(folder, stored)) == []
    files[".dcm"].unlink()
    assert {each.series for each in without_masks(folder, stored)} == {stored[-2].series}
    assert len(list(without_masks(folder, stored))) == 4
    shutil.rmtree(folder)
    assert list(without_masks(folder, stored)) == stored[:-1]
