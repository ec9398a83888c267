"""DICOM files come in as Hounsfield units and the lung window, whatever their header does to values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Patient
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG

WriteDicom = Callable[..., Path]
Chest = NDArray[np.int16]


def _hounsfield(image: CTSlice) -> NDArray[np.float32]:
    assert image.hounsfield is not None
    return image.hounsfield


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, 0), (2, -1500), (0.5, -1024)])
def test_stored_values_are_rescaled(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, slope: float, intercept: float
) -> None:
    stored = np.rint((chest - intercept) / slope).astype(np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=slope, RescaleIntercept=intercept)
    read = read_slice(path)
    np.testing.assert_allclose(_hounsfield(read), chest, atol=slope / 2)
    np.testing.assert_array_equal(read.pixels, LUNG.apply(_hounsfield(read)))
    assert read.origin.file_format == "DICOM"
    assert read.origin.series == "1.2.3.4"


@pytest.mark.parametrize("window", [(40, 400), ([40, -600], [400, 1500])])
def test_the_lung_window_is_used_whatever_the_header_says(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, window: tuple[object, object]
) -> None:
    plain = read_slice(write_dicom(tmp_path / "a.dcm", chest))
    path = write_dicom(tmp_path / "b.dcm", chest, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_array_equal(read_slice(path).pixels, plain.pixels)


def test_unsigned_twelve_bit(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    stored = (chest + 1024).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), chest)


@pytest.mark.parametrize("padding", [-2000, 2**16 - 2000, 3000])
def test_padding_becomes_air(tmp_path: Path, write_dicom: WriteDicom, chest: Chest, padding: int) -> None:
    stored = chest.copy()
    stored[:5] = np.array(padding).astype(np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored)
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00280120, "US" if padding >= 0 else "SS", padding)
    dataset.save_as(path)
    hounsfield = _hounsfield(read_slice(path))
    assert (hounsfield[:5] == -1024).all()
    np.testing.assert_array_equal(hounsfield[5:], chest[5:])


def test_a_range_of_padding_becomes_air(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    stored = chest.copy()
    stored[:2], stored[2:4] = 3000, 3010
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=3000, PixelPaddingRangeLimit=3010)
    assert (_hounsfield(read_slice(path))[:4] == -1024).all()


def test_monochrome1_negatives_are_turned_round(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    negative = (4095 - (chest + 1024)).astype(np.uint16)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    path = write_dicom(tmp_path / "a.dcm", negative, RescaleIntercept=-1024, **elements)
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), chest)


def test_monochrome1_that_only_asks_for_an_inverse_display_keeps_its_hounsfield_units(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    path = write_dicom(tmp_path / "a.dcm", chest, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), chest)


def test_a_capture_without_rescaling_is_shown_in_its_own_first_window(
    tmp_path: Path, write_dicom: WriteDicom
) -> None:
    stored = np.arange(0, 2560, 40, dtype=np.uint16).reshape(8, 8)
    removed = {"RescaleSlope": None, "RescaleIntercept": None}
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=[1000, 5], WindowWidth=[2000, 6], **removed)
    read = read_slice(path)
    assert read.hounsfield is None
    np.testing.assert_allclose(read.pixels, np.clip(stored / 2000 * 255, 0, 255), atol=0.51)
    eight_bit = write_dicom(tmp_path / "b.dcm", (stored // 11).astype(np.uint8), **removed)
    np.testing.assert_array_equal(read_slice(eight_bit).pixels, stored // 11)
    inverse = {"PhotometricInterpretation": "MONOCHROME1"}
    eight_bit = write_dicom(tmp_path / "c.dcm", (stored // 11).astype(np.uint8), **removed, **inverse)
    np.testing.assert_array_equal(read_slice(eight_bit).pixels, 255 - stored // 11)


SYNTAXES = {
    "RLELossless": "1.2.840.10008.1.2.5",
    "JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
@pytest.mark.parametrize("kind", ["signed", "unsigned", "several frames"])
def test_compressed_pixels_are_those_of_the_uncompressed_file(
    tmp_path: Path,
    write_dicom: WriteDicom,
    recompress: Callable[[Path, Path, str], Path],
    chest: Chest,
    syntax: str,
    kind: str,
) -> None:
    import pydicom

    if kind == "unsigned":
        elements = {"RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}
        plain = write_dicom(tmp_path / "plain.dcm", (chest + 1024).astype(np.uint16), **elements)
    else:
        stored = np.stack([chest, chest[::-1], chest + 5]) if kind == "several frames" else chest
        plain = write_dicom(tmp_path / "plain.dcm", stored)
    packed = recompress(plain, tmp_path / "packed.dcm", syntax)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == syntax
    pairs = list(zip(read_slices(plain), read_slices(packed), strict=True))
    assert len(pairs) == (3 if kind == "several frames" else 1)
    for expected, read in pairs:
        np.testing.assert_array_equal(_hounsfield(read), _hounsfield(expected))


def test_real_jpeg_lossless_files(dicom_samples: Path) -> None:
    import pydicom

    for path in sorted((dicom_samples / "compressed").glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        expected = np.maximum(dataset.pixel_array * 1.0 - 1024, -1024)
        read = read_slice(path)
        np.testing.assert_array_equal(_hounsfield(read), expected)
        # Chest CT in the lung window: air around and in the lungs, white tissue.
        assert 0.2 < (read.pixels < 100).mean() < 0.8
        assert (read.pixels > 200).mean() > 0.1


def test_real_files_of_other_planes_and_makers(dicom_samples: Path) -> None:
    read = {Path(item.origin.file).stem: item for item in read_slices(dicom_samples / "mixed")}
    assert len(read) == 6
    assert read["coronal-toshiba-616"].pixels.shape == (616, 616)
    for item in read.values():
        assert _hounsfield(item).min() >= -1024
        assert 100 < _hounsfield(item).max() < 8000
        assert item.origin.orientation is not None
        assert item.origin.position is not None


def _enhanced(path: Path, write_dicom: WriteDicom, frames: NDArray[np.int16]) -> Path:
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    write_dicom(path, frames, RescaleSlope=None, RescaleIntercept=None)
    dataset = pydicom.dcmread(path)

    def group(sequence: str, **elements: object) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        setattr(outer, sequence, Sequence([inner]))
        return outer

    shared = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8]))
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    own = []
    for index, height in enumerate([10.0, -5.0, 2.5]):
        item = group("PlanePositionSequence", ImagePositionPatient=[0, 0, height])
        item.update(group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1000 - index))
        own.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(own)
    dataset.save_as(path)
    return path


def test_enhanced_multi_frame(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    path = _enhanced(tmp_path / "a.dcm", write_dicom, np.stack([chest + 1024] * 3))
    read = list(read_slices(path))
    assert [item.origin.frame for item in read] == [1, 2, 0]
    assert [item.origin.position for item in read] == [(0, 0, -5), (0, 0, 2.5), (0, 0, 10)]
    assert {item.origin.spacing for item in read} == {(0.7, 0.8)}
    for item in read:
        expected = np.maximum(chest + 1024.0 - 1000 - (item.origin.frame or 0), -1024)
        np.testing.assert_array_equal(_hounsfield(item), expected)


def test_a_series_is_sorted_along_the_slice_normal(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    # Names, instance numbers and x coordinates all mislead.
    cosine = np.sqrt(0.5)
    heights = [30.0, -10.0, 0.0, 20.0, 10.0]
    for index, height in enumerate(heights):
        write_dicom(
            tmp_path / f"{index}.dcm",
            chest,
            InstanceNumber=index,
            ImageOrientationPatient=[1, 0, 0, 0, cosine, cosine],
            ImagePositionPatient=[100 - height, -height * cosine + index, height * cosine + index],
        )
    order = [int(Path(item.origin.file).stem) for item in read_slices(tmp_path)]
    assert order == [1, 2, 4, 3, 0]


def test_series_are_kept_apart_and_directories_passed_over(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    for index in range(6):
        write_dicom(
            tmp_path / f"{index}.dcm",
            chest,
            SeriesInstanceUID=f"1.2.{index % 2}",
            ImagePositionPatient=[0, 0, -index],
            **place,
        )
    directory = {"SOPClassUID": "1.2.840.10008.1.3.10", "PixelData": None, "Rows": None, "Columns": None}
    write_dicom(tmp_path / "DICOMDIR", chest, **directory)
    read = [(item.origin.series, Path(item.origin.file).stem) for item in read_slices(tmp_path)]
    assert read == [("1.2.0", stem) for stem in "420"] + [("1.2.1", stem) for stem in "531"]


def test_the_real_series_is_sorted(dicom_samples: Path) -> None:
    read = list(read_slices(dicom_samples / "lung-series"))
    heights = [item.origin.position[2] for item in read if item.origin.position is not None]
    assert len(heights) == 25
    assert heights == sorted(heights)


def test_a_file_without_preamble_and_meta_header(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    import pydicom

    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", chest))
    del dataset.file_meta
    dataset.preamble = None
    dataset.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(_hounsfield(read_slice(tmp_path / "bare")), chest)


def _deflated(path: Path, write_dicom: WriteDicom, chest: Chest) -> Path:
    import pydicom

    dataset = pydicom.dcmread(write_dicom(path, chest))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(path)
    return path


def test_deflated(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    path = _deflated(tmp_path / "a.dcm", write_dicom, chest)
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), chest)


def test_a_deflated_bomb_is_refused(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    path = _deflated(tmp_path / "bomb.dcm", write_dicom, chest)
    head = path.read_bytes()[: 144 + int.from_bytes(path.read_bytes()[140:144], "little")]
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(head + packer.compress(bytes(50_000_000)) + packer.flush())
    with pytest.raises(ImageError, match=r"bomb\.dcm: .*larger than the limit"):
        read_slice(path, Limits(file_bytes=10_000_000))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Modality": "US"}, "RGB, modality US"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour image"),
        ({"Modality": "MR"}, "modality MR"),
        ({"Rows": 40_000, "Columns": 40_000}, "more than the limit"),
        ({"Rows": 60}, "damaged or not valid"),
        ({"NumberOfFrames": 10**6}, "frames"),
        ({"BitsAllocated": 13}, "damaged or not valid"),
    ],
)
def test_what_is_no_ct_slice_is_refused(
    tmp_path: Path,
    write_dicom: WriteDicom,
    chest: Chest,
    capfd: pytest.CaptureFixture[str],
    elements: dict[str, object],
    reason: str,
) -> None:
    path = write_dicom(tmp_path / "other.dcm", chest, **elements)
    with pytest.raises(ImageError, match=rf"other\.dcm: .*{reason}"):
        list(read_slices(path))
    assert capfd.readouterr().err == ""


def test_a_damaged_frame_of_a_series_is_named(
    tmp_path: Path, write_dicom: WriteDicom, recompress: Callable[[Path, Path, str], Path], chest: Chest
) -> None:
    write_dicom(tmp_path / "1.dcm", chest, InstanceNumber=1)
    plain = write_dicom(tmp_path / "2.dcm", chest, InstanceNumber=2)
    packed = recompress(plain, plain, SYNTAXES["JPEGLosslessProcess14_1"])
    content = packed.read_bytes()
    packed.write_bytes(content[:-400] + bytes(400))
    slices = read_slices(tmp_path)
    assert next(slices).origin.file.endswith("1.dcm")
    with pytest.raises(ImageError, match=r"2\.dcm: "):
        list(slices)


def test_importing_readers_leaves_pydicom_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys, groundglass.imaging.read; print([m for m in ('pydicom', 'nibabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_identifiers_are_kept_apart_and_in_no_representation(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    path = write_dicom(tmp_path / "a.dcm", chest, PatientName="Doe^Jane", PatientBirthDate="19500102")
    origin = read_slice(path).origin
    assert origin.patient == Patient("Doe^Jane", "secret", "19500102")
    assert "Jane" not in repr(origin)
    assert "1950" not in repr(read_slice(path))
    nameless = write_dicom(tmp_path / "b.dcm", chest, PatientName=None, PatientID=None)
    assert read_slice(nameless).origin.patient == Patient()


def test_a_damaged_name_costs_no_slice(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    path = write_dicom(tmp_path / "a.dcm", chest, PatientName="Doe^Jane")
    content = path.read_bytes()
    assert content.count(b"Doe^Jane") == 1
    path.write_bytes(content.replace(b"Doe^Jane", b"\xff\x00\x1b[\n\xfe^\xff"))
    patient = read_slice(path).origin.patient
    assert patient is not None
    assert patient.name is None or patient.name.isprintable()


@pytest.mark.parametrize("length", [140, 200, 400])
def test_a_truncated_header_is_reported_in_a_folder_too(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, length: int
) -> None:
    write_dicom(tmp_path / "a.dcm", chest)
    path = write_dicom(tmp_path / "b.dcm", chest)
    path.write_bytes(path.read_bytes()[:length])
    errors: list[ImageError] = []
    assert len(list(read_slices(tmp_path, on_error=errors.append))) == 1
    assert [error.path for error in errors] == [str(path)]


def test_a_localizer_is_no_slice(tmp_path: Path, write_dicom: WriteDicom, chest: Chest) -> None:
    path = write_dicom(tmp_path / "scout.dcm", chest, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(NotASliceError, match=r"scout\.dcm: a localizer"):
        read_slice(path)
    axial = write_dicom(tmp_path / "axial.dcm", chest, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    assert read_slice(axial).pixels.shape == chest.shape
