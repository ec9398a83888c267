"""DICOM files come in as Hounsfield units and the lung window, whatever their header does to values."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.fileset import FileSet
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space
from tests.imaging.conftest import CHEST, GREY, pack_frame, recompress, write_coded, write_ct

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Patient
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG

equal = np.testing.assert_array_equal
CT, ENHANCED_CT, CAPTURE, MR = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "7", "4"))
UNRESCALED = {"RescaleSlope": None, "RescaleIntercept": None}
AXIAL = [1, 0, 0, 0, 1, 0]


def read(folder: Path, stored: NDArray[Any] = CHEST, **elements: object) -> CTSlice:
    """The slice of a CT file, ``a.dcm``, that is written with these values and elements."""
    return read_slice(write_ct(folder / "a.dcm", stored, **elements))


def spoil(path: Path, before: bytes, after: bytes) -> Path:
    """Replace the first place of a text in a file by one of the same length."""
    content = path.read_bytes()
    assert before in content
    assert len(before) == len(after)
    path.write_bytes(content.replace(before, after, 1))
    return path


def stems(slices: Iterable[CTSlice]) -> str:
    """The names of the slices' files, which are digits."""
    return "".join(Path(item.origin.file).stem for item in slices)


@pytest.mark.parametrize("window", [(40, 400), ([40, -600], [400, 1500])])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, 0), (2, -1500), (0.5, -1024)])
def test_values_are_rescaled_and_shown_in_the_lung_window_whatever_the_header_asks_for(
    tmp_path: Path, slope: float, intercept: float, window: tuple[object, object]
) -> None:
    stored = np.rint((CHEST - intercept) / slope).astype(np.int16)
    shown = {"WindowCenter": window[0], "WindowWidth": window[1]}
    image = read(tmp_path, stored, RescaleSlope=slope, RescaleIntercept=intercept, **shown)
    np.testing.assert_allclose(image.hounsfield, CHEST, atol=slope / 2)
    equal(image.pixels, LUNG.apply(image.hounsfield))
    assert (image.origin.file_format, image.origin.series) == ("DICOM", "1.2.3.4")


@pytest.mark.parametrize("padding", [-2000, 2**16 - 2000, 3000])
@pytest.mark.parametrize(
    ("dtype", "intercept", "bits"), [("i2", 0, 16), ("u2", -1024, 16), ("u2", -1024, 12)]
)
def test_padding_of_either_sign_becomes_air(
    tmp_path: Path, padding: int, dtype: str, intercept: int, bits: int
) -> None:
    stored = (CHEST - intercept).astype(dtype)
    stored[:5] = np.array(padding % 2**bits).astype(dtype)
    path = write_ct(tmp_path / "a.dcm", stored, RescaleIntercept=intercept, BitsStored=bits)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00280120, "US" if padding >= 0 else "SS", padding)
    dataset.save_as(path)
    hounsfield = read_slice(path).hounsfield
    assert (hounsfield[:5] == -1024).all()
    equal(hounsfield[5:], CHEST[5:])
    stored[:2] += np.array(10).astype(dtype)
    dataset.PixelData = stored.tobytes()
    dataset.add_new(0x00280121, "US" if padding >= 0 else "SS", padding + 10)
    dataset.save_as(path)
    assert (read_slice(path).hounsfield[:5] == -1024).all(), "a range of paddings"


def test_monochrome1_turns_values_round_only_where_they_are_negatives(tmp_path: Path) -> None:
    inverse = {"PhotometricInterpretation": "MONOCHROME1"}
    equal(read(tmp_path, **inverse).hounsfield, CHEST)
    negative = (4095 - (CHEST + 1024)).astype(np.uint16)
    equal(read(tmp_path, negative, RescaleIntercept=-1024, BitsStored=12, **inverse).hounsfield, CHEST)


def grey_by_pydicom(path: Path) -> NDArray[np.float64]:
    """Grey as pydicom's pipeline has it: modality, then the first window; 0 black to 255 white."""
    dataset = pydicom.dcmread(path)
    if dataset.RescaleIntercept is None:
        del dataset.RescaleIntercept
    grey = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset) * 1.0
    count = 2 ** int(dataset.BitsStored)
    low = (-count / 2 if dataset.PixelRepresentation else 0) * float(dataset.get("RescaleSlope", 1))
    return (grey - low - float(dataset.get("RescaleIntercept", 0))) / (count - 1) * 255


@pytest.mark.parametrize("unit", [None, "", "HU", "Houndsfield Unit", "US", "OD", "Z_EFF", "HU_MOD"])
@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        *((CT, "CT"), (CT, ""), (ENHANCED_CT, "CT"), ("", "CT")),
        *((CT, "OT"), (CAPTURE, "CT"), (CAPTURE, "OT"), (MR, "CT")),
    ],
)
def test_values_are_hounsfield_units_where_the_file_says_so_or_is_a_ct_image(
    tmp_path: Path, kind: str, modality: str, unit: str | None
) -> None:
    elements = {} if unit is None else {"RescaleType": unit}
    window = {"WindowCenter": [-500, 40], "WindowWidth": [1400, 400], "RescaleIntercept": -24}
    image = read(tmp_path, CHEST + np.int16(24), SOPClassUID=kind, Modality=modality, **window, **elements)
    of_ct = kind in {CT, ENHANCED_CT, ""} and modality != "OT"
    if unit in {"HU", "Houndsfield Unit"} or (of_ct and unit in {None, "", "US"}):
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        equal(image.hounsfield, apply_modality_lut(dataset.pixel_array, dataset))
        equal(image.pixels, LUNG.apply(image.hounsfield))
    else:
        assert image.hounsfield is None
        np.testing.assert_allclose(image.pixels, grey_by_pydicom(tmp_path / "a.dcm"), atol=0.51)


@pytest.mark.parametrize("kind", [CT, CAPTURE])
@pytest.mark.parametrize("unit", ["HU", "US", ""])
@pytest.mark.parametrize(("dtype", "intercept"), [("u1", 0), ("u1", -1024), ("u2", 0)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_captures_that_cannot_reach_from_air_to_water_are_grey(
    tmp_path: Path, kind: str, unit: str, dtype: str, intercept: int, photometric: str
) -> None:
    elements = {"SOPClassUID": kind, "RescaleType": unit, "PhotometricInterpretation": photometric}
    window = {"RescaleIntercept": intercept, "WindowCenter": 128 + intercept, "WindowWidth": 256}
    stored = np.stack([GREY, GREY[::-1]]).astype(dtype)
    images = list(read_slices(write_ct(tmp_path / "a.dcm", stored, **elements, **window)))
    assert [image.hounsfield for image in images] == [None, None]
    equal([image.pixels for image in images], 255 - stored if photometric == "MONOCHROME1" else stored)


@pytest.mark.parametrize(
    ("level", "width", "counts"),
    [(1000, 2000, True), (424, 1500, True), (-600, 1500, False), (40, 400, False), (9000, 100, False)],
)
def test_values_without_rescaling_are_shown_in_a_window_that_meets_them(
    tmp_path: Path, level: int, width: int, counts: bool
) -> None:
    stored = (CHEST + 1024).astype(np.uint16)
    window = {"WindowCenter": [level, 5], "WindowWidth": [width, 6]}
    image = read(tmp_path, stored, RescaleSlope=None, RescaleIntercept="", **window)
    assert image.hounsfield is None
    expected = grey_by_pydicom(tmp_path / "a.dcm") if counts else stored / 4095 * 255
    np.testing.assert_allclose(image.pixels, expected, atol=0.51)


@pytest.mark.parametrize(
    ("slope", "intercept", "meant"),
    [(0, -24, (1, -24)), ("", -24, (1, -24)), (None, -24, (1, -24)), (2, "", (2, 0)), (2, None, (2, 0))],
)
def test_a_rescaling_that_is_zero_empty_or_missing_in_part(
    tmp_path: Path, slope: object, intercept: object, meant: tuple[int, int]
) -> None:
    image = read(tmp_path, RescaleSlope=slope, RescaleIntercept=intercept)
    equal(image.hounsfield, np.maximum(CHEST * 1.0 * meant[0] + meant[1], -1024))


@pytest.mark.parametrize("bad", ["1,0625", "1.0\\62", "abcdef", "NaN   ", "1e9999"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescaling_that_is_no_number_is_named(tmp_path: Path, keyword: str, bad: str) -> None:
    path = spoil(write_ct(tmp_path / "a.dcm", **{keyword: "1.0625"}), b"1.0625", bad.encode())
    reason = re.escape(f"{keyword} is no number but {bad.strip()!r}")
    with pytest.raises(ImageError, match=rf"a\.dcm: .*{reason}"):
        read_slice(path)


@pytest.mark.parametrize("photometric", [None, "", "MONOCHROME", "monochrome2", "GREY", "RGB"])
def test_one_sample_is_grey_whatever_it_is_called(tmp_path: Path, photometric: str | None) -> None:
    image = read(tmp_path, PhotometricInterpretation=photometric, SamplesPerPixel=None)
    equal(image.hounsfield, CHEST)


def coloured(kind: str, grey: NDArray[np.uint8], share: float) -> tuple[NDArray[Any], dict[str, object]]:
    """Stored values and elements of a grey image as colours; a share of its columns is red."""
    elements: dict[str, object] = {**UNRESCALED, "SOPClassUID": CAPTURE}
    name, _, variant = kind.partition(" ")
    elements["PhotometricInterpretation"] = name
    if name == "PALETTE":
        ramp, dark = np.arange(255, -1, -1), np.zeros(256, int)
        for channel in ("Red", "Green", "Blue"):
            entries = dark if share and channel != "Red" else ramp
            table = (entries * 257).astype("<u2") if variant == "16" else entries.astype(np.uint8)
            elements[f"{channel}PaletteColorLookupTableDescriptor"] = [256, 0, int(variant)]
            elements[f"{channel}PaletteColorLookupTableData"] = table.tobytes()
        return 255 - grey, {**elements, "PhotometricInterpretation": "PALETTE COLOR"}
    rgb = np.stack([grey] * 3, axis=-1)
    rgb[:, : round(share * grey.shape[1]), 1:] = 0
    if name == "YBR_FULL":
        rgb = convert_color_space(rgb, "RGB", name)
    if variant == "16":
        rgb = rgb.astype(np.uint16) * 257
    shape = {"Rows": grey.shape[0], "Columns": grey.shape[1], "NumberOfFrames": None}
    elements |= {"SamplesPerPixel": 3, "PlanarConfiguration": int(variant == "planar"), **shape}
    return (rgb.transpose(2, 0, 1) if variant == "planar" else rgb), elements


@pytest.mark.parametrize("kind", ["RGB", "RGB planar", "RGB 16", "YBR_FULL", "PALETTE 8", "PALETTE 16"])
def test_grey_in_colours_is_grey_and_colours_are_refused(tmp_path: Path, kind: str) -> None:
    stored, elements = coloured(kind, GREY, 0.0)
    image = read(tmp_path, stored, **elements)
    equal(image.pixels, GREY)
    assert image.hounsfield is None
    stored, elements = coloured(kind, np.full_like(GREY, 200), 0.5)
    with pytest.raises(NotASliceError, match=r"a\.dcm: a colour image .*are coloured"):
        read(tmp_path, stored, **elements)


SYNTAXES = {
    "RLELossless": "1.2.840.10008.1.2.5",
    "JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEGLSNearLossless": "1.2.840.10008.1.2.4.81",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "JPEG2000": "1.2.840.10008.1.2.4.91",
}
KINDS: dict[str, tuple[NDArray[Any], dict[str, object]]] = {
    "signed": (CHEST, {}),
    "signed 12 bits": (CHEST, {"BitsStored": 12}),
    "unsigned 12 bits": ((CHEST + 1024).astype(np.uint16), {"RescaleIntercept": -1024, "BitsStored": 12}),
    "8 bits": (GREY, {"RescaleIntercept": -1350, "RescaleSlope": 6}),
    "several frames": (np.stack([CHEST, CHEST[::-1], CHEST + 5]), {}),
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_pixels_are_those_of_the_uncompressed_file(tmp_path: Path, syntax: str, kind: str) -> None:
    stored, elements = KINDS[kind]
    plain = write_ct(tmp_path / "plain.dcm", stored, **elements)
    packed = recompress(plain, tmp_path / "packed.dcm", syntax)
    dataset = pydicom.dcmread(packed)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    pairs = list(zip(read_slices(plain), read_slices(packed), strict=True))
    assert len(pairs) == (len(stored) if stored.ndim == 3 else 1)
    for expected, image in pairs:
        assert expected.hounsfield is not None
        equal(image.hounsfield, expected.hounsfield)
    if kind == "signed" and syntax != SYNTAXES["RLELossless"]:  # whose frames have no header
        dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows
        dataset.save_as(packed)
        with pytest.raises(ImageError, match=r"packed\.dcm: .*do not fit the header's 48 x 64"):
            read_slice(packed)


@pytest.mark.parametrize(("syntax", "error"), [("51", 1), ("201", 0), ("202", 0), ("203", 0)])
def test_twelve_bit_jpeg_and_high_throughput_jpeg_2000(tmp_path: Path, syntax: str, error: int) -> None:
    image = read_slice(write_coded(tmp_path / "a.dcm", syntax))
    np.testing.assert_allclose(image.hounsfield, CHEST, atol=error)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize(("file_format", "syntax"), [("JPEG", "50"), ("JPEG", "55"), ("JPEG2000", "91")])
def test_eight_bit_captures_in_jpeg(
    tmp_path: Path, mode: str, photometric: str, file_format: str, syntax: str
) -> None:
    stream = io.BytesIO()
    jpeg = {"quality": 95, "progressive": syntax == "55"}
    options: dict[str, Any] = {"no_jp2": True} if file_format == "JPEG2000" else jpeg
    Image.fromarray(GREY).convert(mode).save(stream, file_format, **options)
    photometric = "YBR_RCT" if file_format == "JPEG2000" else photometric
    colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": photometric}
    path = write_ct(tmp_path / "a.dcm", GREY, **UNRESCALED, **(colours if mode == "RGB" else {}))
    image = read_slice(pack_frame(path, stream.getvalue(), syntax))
    np.testing.assert_allclose(image.pixels * 1.0, np.asarray(Image.open(stream).convert("L")), atol=1)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        *(("110", r"4\.110"), ("102", "MPEG-4"), ("107", "HEVC"), ("52", "JPEG"), ("92", "JPEG 2000")),
        ("1.2.3.4", r"1\.2\.3\.4"),
    ],
)
def test_a_compression_that_is_not_supported_is_called_so(tmp_path: Path, syntax: str, name: str) -> None:
    known = "102" if syntax == "110" else syntax  # pydicom does not write what it does not know
    path = pack_frame(write_ct(tmp_path / "a.dcm"), b"\xff\x0a" + bytes(40), known)
    if known != syntax:
        spoil(path, b"1.2.4.102", b"1.2.4.110")
    with pytest.raises(ImageError, match=rf"a\.dcm: its compression \(.*{name}.*\) is not supported"):
        read_slice(path)


@pytest.mark.parametrize("frame", [b"\xff\xd8", b"\xff\x4f\xff\x51" + bytes(8), bytes(100)])
def test_a_compressed_frame_that_contradicts_its_header_is_damaged(tmp_path: Path, frame: bytes) -> None:
    with pytest.raises(ImageError, match=r"a\.dcm: damaged or not valid DICOM"):
        read_slice(pack_frame(write_ct(tmp_path / "a.dcm"), frame, "51"))


def test_real_files(dicom_samples: Path) -> None:
    for path in sorted((dicom_samples / "compressed").glob("*.dcm")):
        image = read_slice(path)
        equal(image.hounsfield, np.maximum(pydicom.dcmread(path).pixel_array * 1.0 - 1024, -1024))
        # Chest CT in the lung window: air around and in the lungs, white tissue.
        assert 0.2 < (image.pixels < 100).mean() < 0.8
        assert (image.pixels > 200).mean() > 0.1
    images = {Path(item.origin.file).stem: item for item in read_slices(dicom_samples / "mixed")}
    assert len(images) == 6
    assert images["coronal-toshiba-616"].pixels.shape == (616, 616)
    for item in images.values():
        assert item.hounsfield.min() >= -1024
        assert 100 < item.hounsfield.max() < 8000
        assert item.origin.orientation is not None
        assert item.origin.position is not None
    heights = [item.origin.position[2] for item in read_slices(dicom_samples / "lung-series")]
    assert len(heights) == 25
    assert heights == sorted(heights)


def group(sequence: str, **elements: object) -> Dataset:
    """A data set of one sequence, whose only item has these elements."""
    inner, outer = Dataset(), Dataset()
    inner.update(elements)
    setattr(outer, sequence, [inner])
    return outer


@pytest.mark.parametrize("jitter", [0.0, 1e-6, 4e-4])
@pytest.mark.parametrize("units", [["HU"] * 3, [""] * 3, ["HU", "US", "MGML"]])
def test_enhanced_multi_frame(tmp_path: Path, units: list[str], jitter: float) -> None:
    shared = group("PlaneOrientationSequence", ImageOrientationPatient=AXIAL)
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8]))
    shared.update(group("FrameVOILUTSequence", WindowCenter=-500, WindowWidth=1000))
    own = []
    for index, (height, unit) in enumerate(zip([10.0, -5.0, 2.5], units, strict=True)):
        item = group("PlanePositionSequence", ImagePositionPatient=[0, 0, height])
        rescaling = {"RescaleSlope": 1, "RescaleIntercept": -1000 - index, "RescaleType": unit}
        item.update(group("PixelValueTransformationSequence", **rescaling))
        if jitter:
            sine = (0.005, 0.005 + jitter, 0.005 - jitter)[index]
            orientation = [1, 0, 0, 0, round(np.sqrt(1 - sine**2), 12), sine]
            item.update(group("PlaneOrientationSequence", ImageOrientationPatient=orientation))
        own.append(item)
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    elements = {**UNRESCALED, "SOPClassUID": ENHANCED_CT, "WindowCenter": 9000, "WindowWidth": 2, **groups}
    images = list(read_slices(write_ct(tmp_path / "a.dcm", np.stack([CHEST + 1024] * 3), **elements)))
    assert [item.origin.frame for item in images] == [1, 2, 0]
    assert [item.origin.position for item in images] == [(0, 0, -5), (0, 0, 2.5), (0, 0, 10)]
    for item in images:
        assert item.origin.spacing == (0.7, 0.8)
        assert item.origin.grid.frames == (1, 2, 0)
        expected = np.maximum(CHEST + 24.0 - item.origin.frame, -1024)
        if units[item.origin.frame] == "MGML":
            assert item.hounsfield is None
            np.testing.assert_allclose(item.pixels, np.clip((expected + 1000) / 999 * 255, 0, 255), atol=0.51)
        else:
            equal(item.hounsfield, expected)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_floating_point_pixels(tmp_path: Path, keyword: str, dtype: str) -> None:
    stored = CHEST.astype(dtype) + 0.25
    removed = dict.fromkeys(("PixelData", "BitsStored", "PixelRepresentation"))
    elements = {keyword: stored.tobytes(), "BitsAllocated": 8 * stored.itemsize, "RescaleIntercept": -1}
    equal(read(tmp_path, **removed, **elements).hounsfield, CHEST - 0.75)


HEIGHTS = [30.0, -10.0, 0.0, 20.0, 10.0]  # of the slices of a series, in the order of their names


@pytest.mark.parametrize("tilt", [0.0, 0.005, 0.3, -0.8])
@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("wrong", ["nothing", "a number", "an orientation", "all orientations"])
def test_a_series_rises_without_a_jump(tmp_path: Path, tilt: float, jitter: float, wrong: str) -> None:
    """Sorted along the slice normal: names, instance numbers and x coordinates all mislead."""
    tilt = 0.0 if wrong == "all orientations" else tilt  # heights along an unknown normal are not to be had
    for index, height in enumerate(HEIGHTS):
        sine = tilt + jitter * (-1) ** index
        zero = wrong == "all orientations" or (wrong == "an orientation" and index == 1)
        orientation = [0] * 6 if zero else [1, 0, 0, 0, round(np.sqrt(1 - sine**2), 9), round(sine, 9)]
        position = [100 - height, round(-170 - tilt * height, 9), round(height * np.sqrt(1 - tilt**2), 9)]
        place = {"ImageOrientationPatient": orientation, "ImagePositionPatient": position}
        path = write_ct(tmp_path / f"{index}.dcm", InstanceNumber=70012300 + index, **place)
        if wrong == "a number":
            bad = [b"A0012300", b"1\\2", b"", b"1.5x", b"\xff\xfe01"][index].ljust(8)
            spoil(path, f"{70012300 + index}".encode(), bad)
    images = list(read_slices(tmp_path))
    assert stems(images) == "12430"
    assert (images[0].origin.orientation is None) == ("orientation" in wrong)


@pytest.mark.parametrize("bad", ["0,1234", "abcdef", "0.1234", "0.0\\1 ", "NaN   "])
@pytest.mark.parametrize(
    ("keyword", "name", "sound", "read_so"),
    [
        ("ImagePositionPatient", "position", [0, 1, 0.123456], (0, 1, 0.1234)),
        ("ImageOrientationPatient", "orientation", [1, 0.123456, 0, 0, 1, 0], None),
        ("PixelSpacing", "spacing", [0.7, 0.123456], (0.7, 0.1234)),
    ],
)
def test_a_position_that_cannot_be_counts_as_missing(
    tmp_path: Path, keyword: str, name: str, sound: list[float], read_so: object, bad: str
) -> None:
    path = spoil(write_ct(tmp_path / "a.dcm", **{keyword: sound}), b"0.123456", bad.encode().ljust(8))
    assert getattr(read_slice(path).origin, name) == (read_so if bad == "0.1234" else None)


def test_series_are_kept_apart_and_directories_passed_over(tmp_path: Path) -> None:
    for index in range(6):
        place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0, 0, -index]}
        write_ct(tmp_path / f"{index}.dcm", SeriesInstanceUID=f"1.2.{index % 2}", **place)
    directory = {"SOPClassUID": "1.2.840.10008.1.3.10", "PixelData": None, "Rows": None, "Columns": None}
    write_ct(tmp_path / "DICOMDIR", **directory)
    images = list(read_slices(tmp_path))
    assert stems(images) == "420531"
    assert [item.origin.series for item in images] == ["1.2.0"] * 3 + ["1.2.1"] * 3


@pytest.mark.parametrize("encoding", ["implicit", "explicit", "big-endian"])
@pytest.mark.parametrize(
    ("first", "value"),
    [
        *(("LengthToEnd", 4), ("SpecificCharacterSet", "ISO_IR 100"), ("LanguageCodeSequence", [])),
        *(("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "X" * 16, *["Y" * 16] * 10]), ("SOPClassUID", CT)),
        *(("StudyDate", "20200101"), ("StudyTime", "101010"), ("AccessionNumber", "7"), ("Modality", "CT")),
        *(("Manufacturer", "M" * 64), ("InstitutionAddress", "A" * 256), ("ReferringPhysicianName", "B^C")),
        *(("StudyDescription", ""), ("ReferencedStudySequence", []), ("EventElapsedTimes", 2.5)),
    ],
)
def test_a_file_without_preamble_and_meta_header(
    tmp_path: Path, encoding: str, first: str, value: Any
) -> None:
    whole, bare = pydicom.dcmread(write_ct(tmp_path / "a.dcm")), Dataset()
    if "Sequence" in first:
        value = [Dataset(), Dataset()]
        value[0].CodeValue = "en"
    setattr(bare, first, value)
    bare.update({tag: whole[tag] for tag in sorted(whole.keys()) if tag > bare[first].tag})
    little = encoding != "big-endian"
    bare["PixelData"].value = CHEST.astype("<i2" if little else ">i2").tobytes()
    bare.save_as(tmp_path / "bare", implicit_vr=encoding == "implicit", little_endian=little)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    equal(read_slice(tmp_path / "bare").hounsfield, CHEST)


def test_a_dicomdir_named_by_itself_is_told_what_to_do(tmp_path: Path) -> None:
    study = {"StudyInstanceUID": "1.2", "StudyID": "1", "StudyDate": "20200101", "StudyTime": "101010"}
    write_ct(tmp_path / "a.dcm", **study, AccessionNumber="", SeriesNumber=1, InstanceNumber=1)
    files = FileSet()
    files.add(pydicom.dcmread(tmp_path / "a.dcm"))
    files.write(tmp_path / "disc")
    with pytest.raises(ImageError, match=r"DICOMDIR: a DICOMDIR, .*; name its folder instead"):
        read_slice(tmp_path / "disc" / "DICOMDIR")
    (image,) = read_slices(tmp_path / "disc")
    equal(image.hounsfield, CHEST)


def test_deflated_data_sets_are_read_and_bombs_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(path)
    equal(read_slice(path).hounsfield, CHEST)
    head = path.read_bytes()[: 144 + int.from_bytes(path.read_bytes()[140:144], "little")]
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(head + packer.compress(bytes(50_000_000)) + packer.flush())
    with pytest.raises(ImageError, match=r"a\.dcm: .*larger than the limit"):
        read_slice(path, Limits(file_bytes=10_000_000))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Modality": "US"}, "modality US"),
        ({"SamplesPerPixel": 4, "PhotometricInterpretation": "ARGB"}, r"colour image \(ARGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "damaged or not valid"),
        ({"Modality": "MR"}, "modality MR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"Rows": 40_000, "Columns": 40_000}, "more than the limit"),
        ({"Rows": 60}, "damaged or not valid"),
        ({"NumberOfFrames": 10**6}, "frames"),
        ({"BitsAllocated": 13}, "damaged or not valid"),
    ],
)
def test_what_is_no_ct_slice_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], elements: dict[str, object], reason: str
) -> None:
    with pytest.raises(ImageError, match=rf"a\.dcm: .*{reason}") as caught:
        read(tmp_path, **elements)
    assert isinstance(caught.value, NotASliceError) == bool(re.search("modality|colour|localizer", reason))
    assert capfd.readouterr().err == ""


def test_identifiers_are_kept_apart_and_in_no_representation(tmp_path: Path) -> None:
    image = read(tmp_path, PatientBirthDate="19500102")
    assert image.origin.patient == Patient("Doe^Jane", "secret", "19500102")
    assert not re.search("Jane|secret|1950", repr(image) + repr(image.origin))
    assert read(tmp_path, PatientName=None, PatientID=None).origin.patient == Patient()


def test_a_damaged_name_costs_no_slice(tmp_path: Path) -> None:
    path = spoil(write_ct(tmp_path / "a.dcm"), b"Doe^Jane", b"\xff\x00\x1b[\n\xfe^\xff")
    name = read_slice(path).origin.patient.name
    assert name is None or name.isprintable()


@pytest.mark.parametrize("length", [140, 200, 400])
def test_a_truncated_header_is_reported_in_a_folder_too(tmp_path: Path, length: int) -> None:
    write_ct(tmp_path / "a.dcm")
    path = write_ct(tmp_path / "b.dcm")
    path.write_bytes(path.read_bytes()[:length])
    errors: list[ImageError] = []
    assert len(list(read_slices(tmp_path, on_error=errors.append))) == 1
    assert [error.path for error in errors] == [str(path)]
