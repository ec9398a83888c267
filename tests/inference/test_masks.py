"""Masks lie where the pixels lie that they were found on: read back with other people's readers, voxel for voxel."""

import shutil
import sys
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
from tests.conftest import Patch, accepted_by_others, change_dicom
from tests.imaging.conftest import CHEST, write_ct

from groundglass.errors import PredictionError
from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.phantom import make_series, write_dicom
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice
from groundglass.inference.classifier import Classifier
from groundglass.inference.masks import MaskWriter, without_masks
from groundglass.inference.prediction import COPY, Evidence, Prediction, Status

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, of headers damaged on purpose

LEFT = np.array([[1, 1, -1, -1]] * 4, np.float32)  # a lesion map over the picture's left half
PICTURES = {"-lungs.png", "-lesions.png"}
VOLUMES = {"-lungs.nii.gz", "-lesions.nii.gz"}
VOXELS = np.random.default_rng(1).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)

Write = Callable[..., dict[str, Path]]


@pytest.fixture
def write(tmp_path: Path, classifier: Classifier) -> Write:
    """A function that writes masks of predictions, and gives the files by the ends of their names."""

    def written(predictions: Iterable[Prediction], folder: Path = tmp_path / "masks") -> dict[str, Path]:
        writer = MaskWriter(folder, classifier.bundle)
        for prediction in predictions:
            writer.add(prediction)
        writer.finish()
        ends = (*PICTURES, *VOLUMES, ".dcm")
        return {end: path for path in sorted(folder.iterdir()) for end in ends if path.name.endswith(end)}

    return written


def prediction_of(ct_slice: CTSlice) -> Prediction:
    """As if everything denser than water were lung, and its left half lesion."""
    values = ct_slice.pixels.astype(np.float32) - 100 if ct_slice.hounsfield is None else ct_slice.hounsfield
    (height, width), origin = ct_slice.pixels.shape, ct_slice.origin
    cropped = CroppedSlice(ct_slice.pixels, (0, 0, width, height), values > 0, True, ct_slice.pixels)
    return Prediction(
        Status.OK, origin.file, "b", frame=origin.frame, series=origin.series, study=origin.study, instance=origin.instance,
        position=origin.position and origin.position[2], evidence=Evidence(ct_slice, cropped, LEFT),
    )  # fmt: skip


def predictions_of(*paths: Path) -> list[Prediction]:
    return [prediction_of(each) for each in chain.from_iterable(map(read_slices, paths))]


def left_half(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of a mask (H, W)."""
    return mask & (np.arange(mask.shape[1]) < mask.shape[1] // 2)


def test_pictures_and_frames_of_a_dicom_file(tmp_path: Path, write: Write) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    cv2.imwrite(str(tmp_path / "a b.png"), pixels)
    files = write(predictions_of(tmp_path / "a b.png"))
    assert set(files) == PICTURES
    assert files["-lungs.png"].name.startswith("a_b-")
    for end, expected in (("-lungs.png", pixels > 100), ("-lesions.png", left_half(pixels > 100))):
        np.testing.assert_array_equal(cv2.imread(str(files[end]), cv2.IMREAD_UNCHANGED), np.where(expected, 255, 0))
    frames = write_ct(tmp_path / "frames.dcm", np.stack([CHEST] * 3))
    assert set(write(predictions_of(frames), tmp_path / "frames")) == PICTURES
    assert len(list((tmp_path / "frames").iterdir())) == 6


def tilted(orientation: str) -> NDArray[np.float64]:
    """An affine with axes near to the three directions named, uneven voxels and a tilt."""
    codes, cos, sin = nibabel.orientations.axcodes2ornt(tuple(orientation)), np.cos(0.2), np.sin(0.2)
    turned = [[0.7, 0, 0], [0, 0.8 * cos, -2.5 * sin], [0, 0.8 * sin, 2.5 * cos]]
    upright = nibabel.affines.from_matvec(turned, [-100, -90, -300])
    return np.asarray(upright @ nibabel.orientations.inv_ornt_aff(codes, VOXELS.shape))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "SAL", "IRA"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_volumes_voxel_for_voxel(tmp_path: Path, write: Write, orientation: str, suffix: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    source, path = nibabel.Nifti1Image(VOXELS, tilted(orientation)), tmp_path / f"v{suffix}"
    nibabel.save(source, tmp_path / "v.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "v.nii")), str(path))
    files = write(predictions_of(path))
    assert set(files) == VOLUMES
    mask, image = sitk.ReadImage(str(files["-lungs.nii.gz"])), sitk.ReadImage(str(path))
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, place)(), getattr(image, place)(), atol=1e-4)
    assert mask.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), VOXELS.T > 0)
    # Of the lesions, in world coordinates: the image's left is the patient's right.
    images = map(nibabel.as_closest_canonical, (source, nibabel.load(files["-lesions.nii.gz"])))
    dense, found = (np.asanyarray(each.dataobj) > 0 for each in images)
    middle = len(dense) // 2
    np.testing.assert_array_equal(found[middle + 1 :], dense[middle + 1 :])
    assert not found[:middle].any()
    whole = [each.read_bytes() for each in files.values()]
    assert [each.read_bytes() for each in write(predictions_of(path)[3:]).values()] == whole, "an earlier run's stay"


def write_series(folder: Path, size: int = 128) -> Path:
    """A phantom series of four slices."""
    folder.mkdir()
    for phantom in make_series(np.random.default_rng(5), 4, 0.5, size):
        write_dicom(phantom, folder / f"{phantom.instance}.dcm")
    return folder


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series")


def change(folder: Path, **elements: object) -> None:
    for path in folder.iterdir():
        change_dicom(path, **elements)


def check_segmentation(path: Path, sources: Iterable[Path]) -> None:
    """Every frame lies where its source lies, and holds what was found there."""
    seg, images = pydicom.dcmread(path), list(map(pydicom.dcmread, sources))
    by_uid, seen = {image.SOPInstanceUID: image for image in images}, set()
    for segment, said in zip(seg.SegmentSequence, (("Lungs", "39607008"), ("Lesions", "52988006")), strict=True):
        assert (segment.SegmentLabel, segment.SegmentedPropertyTypeCodeSequence[0].CodeValue) == said
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "groundglass")
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert seg[keyword].value == images[0][keyword].value
    assert seg.SeriesInstanceUID != images[0].SeriesInstanceUID
    shared = seg.SharedFunctionalGroupsSequence[0]
    for item, mask in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        reference = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number, image = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber, by_uid[reference]
        for written, keyword in (
            (item.PlanePositionSequence, "ImagePositionPatient"),
            (shared.PixelMeasuresSequence, "PixelSpacing"),
            (shared.PlaneOrientationSequence, "ImageOrientationPatient"),
        ):
            np.testing.assert_allclose(written[0][keyword].value, image[keyword].value, atol=1e-6)
        dense = image.pixel_array * image.RescaleSlope + image.RescaleIntercept > 0
        np.testing.assert_array_equal(mask, dense if number == 1 else left_half(dense))
        seen.add((reference, number))
    assert seen == {(uid, number) for uid in by_uid for number in (1, 2)}


@pytest.mark.parametrize("size", [128, 97])
def test_a_dicom_series_frame_for_frame(tmp_path: Path, write: Write, size: int) -> None:
    series = write_series(tmp_path / "series", size)
    change(series, PatientName="Zwiebelfisch^Xaver", PatientID="MRN-4711")
    made = [write(predictions_of(series), tmp_path / name) for name in "ab"]
    assert [set(files) for files in made] == [{".dcm"}] * 2
    first, again = (files[".dcm"] for files in made)
    assert first.name.startswith(pydicom.dcmread(next(series.iterdir())).SeriesInstanceUID)
    check_segmentation(first, series.iterdir())
    datasets = [pydicom.dcmread(path) for path in (first, again)]
    for seg in datasets:
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
            delattr(seg, keyword)
        del seg.ContributingEquipmentSequence[0].ContributionDateTime
    assert datasets[0] == datasets[1], "but for when it was made"
    accepted_by_others(pydicom.dcmread(first), tmp_path)


def test_a_zipped_series_and_one_without_lungs(tmp_path: Path, series: Path, write: Write) -> None:
    predictions = predictions_of(Path(shutil.make_archive(str(tmp_path / "z"), "zip", series)))
    check_segmentation(write(predictions)[".dcm"], series.iterdir())
    for each in predictions:
        each.evidence.cropped.lungs[:] = False
    bare = pydicom.dcmread(write(predictions, tmp_path / "bare")[".dcm"])
    assert not bare.pixel_array.any()
    accepted_by_others(bare, tmp_path)


@pytest.mark.parametrize(
    "elements",
    [
        {"FrameOfReferenceUID": "1.2.3"},
        {"ImagePositionPatient": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPInstanceUID": "../../1.2"},
        {"PixelSpacing": [2, 2]},
        {"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]},
    ],
)
def test_a_series_that_is_no_stack_becomes_pictures(series: Path, write: Write, elements: dict[str, Any]) -> None:
    change_dicom(sorted(series.iterdir())[1], **elements)
    files = write([each for each in predictions_of(series) if each.series is not None])
    assert set(files) == PICTURES
    assert len(list(files["-lungs.png"].parent.iterdir())) == 8


def test_a_file_gone_or_of_another_size_or_a_hostile_uid(tmp_path: Path, series: Path, write: Write) -> None:
    predictions = predictions_of(series)
    first = predictions[0].evidence.slice
    small = prediction_of(CTSlice(first.pixels[:50], first.origin, None))
    assert set(write([small, *predictions[1:]], tmp_path / "mixed")) == PICTURES
    change(series, SeriesInstanceUID="../../1.2")
    folder = tmp_path / "deep" / "masks"
    folder.parent.mkdir()
    hostile = [replace(each, overlay="shown.png") for each in predictions_of(series)]
    assert set(write(hostile, folder)) == PICTURES
    assert list(folder.parent.iterdir()) == [folder]
    assert list(without_masks(folder, hostile)) == []
    next(folder.glob("*-lungs.png")).unlink()
    assert list(without_masks(folder, hostile)) == hostile
    next(series.iterdir()).unlink()
    assert set(write(predictions, tmp_path / "gone")) == PICTURES


def test_a_damaged_header_costs_no_masks(tmp_path: Path, series: Path, write: Write) -> None:
    change_dicom(next(series.iterdir()), ImageOrientationPatient=[1, 0, 0, 0, 1, 1e-6])
    for thickness, header in (
        (None, {"PatientBirthDate": "00000000", "StudyTime": "256199", "PatientName": r"a\b"}),
        ("1e400", {"PatientName": "a=b=c=d=e^^^^^^^^"}),
        ("-3", {"PatientID": "é", "LossyImageCompression": "01", "LossyImageCompressionRatio": "9"}),
    ):
        change(series, SliceThickness=thickness, **header)
        seg = pydicom.dcmread(write(predictions_of(series), tmp_path / str(thickness))[".dcm"])
        assert (not seg.PatientBirthDate, seg.LossyImageCompression) == (True, "01" if thickness == "-3" else "00")
        assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness > 0
    seg = pydicom.dcmread(write(predictions_of(series)[:1], tmp_path / "one")[".dcm"])
    assert "SpacingBetweenSlices" not in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def test_series_in_parts_or_of_one_uid_overwrite_nothing(tmp_path: Path, series: Path, write: Write) -> None:
    first, *_, last = sorted(series.iterdir())
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "v.nii")
    write(predictions_of(first, tmp_path / "v.nii", last))
    assert sorted(path.suffix for path in (tmp_path / "masks").iterdir()) == [".dcm", ".dcm", ".gz", ".gz"]
    for name in "abc":
        shutil.copytree(series, tmp_path / "scans" / name)
    change(tmp_path / "scans" / "c", PatientID="another")
    predictions = [replace(each, label="COVID") for each in predictions_of(tmp_path / "scans")]  # as of Ray
    files = write(predictions, tmp_path / "three")
    assert [path.suffix for path in (tmp_path / "three").iterdir()] == [".dcm"] * 3
    part = predictions[:4]
    write(part[:3], tmp_path / "part")
    assert list(without_masks(tmp_path / "part", part)) == part, "its SEG lacks an image"
    copy = replace(predictions[0], status=Status.REFUSED, reason=f"{COPY} of x", file="z/x", label=None)
    without = [copy, Prediction(Status.FAILED, "gone.png", "b", "damaged")]
    assert list(without_masks(tmp_path / "three", [*predictions, *without])) == []
    files[".dcm"].unlink()
    lacking = list(without_masks(tmp_path / "three", [*predictions, *without]))
    assert len({Path(each.file).parent for each in lacking}) * 4 == len(lacking) == 4, "one series lacks them"


def test_a_series_is_written_at_its_end_and_needs_highdicom(
    tmp_path: Path, series: Path, classifier: Classifier, monkeypatch: Patch
) -> None:
    writer = MaskWriter(tmp_path / "masks", classifier.bundle)
    for prediction in predictions_of(series):
        writer.add(prediction)
    assert list((tmp_path / "masks").iterdir()) == [], "nothing of a series under way is written"
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(PredictionError, match=r"\.dcm: .* need highdicom; install it with .*\[pacs\]"):
        MaskWriter(tmp_path / "masks", classifier.bundle).add(prediction)
