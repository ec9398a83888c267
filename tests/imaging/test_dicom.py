"""DICOM files come in as Hounsfield units and the lung window, whatever their header does to values."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
@pytest.mark.parametrize(
    ("dtype", "intercept", "bits"), [("i2", 0, 16), ("u2", -1024, 16), ("u2", -1024, 12)]
)
def test_padding_of_either_sign_becomes_air(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, padding: int, dtype: str, intercept: int, bits: int
) -> None:
    import pydicom

    stored = (chest - intercept).astype(dtype)
    stored[:5] = np.array(padding % 2**bits).astype(dtype)
    elements = {"RescaleIntercept": intercept, "BitsStored": bits, "HighBit": bits - 1}
    path = write_dicom(tmp_path / "a.dcm", stored, **elements)
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


CT, ENHANCED_CT, CAPTURE, MR = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "7", "4"))


def _grey_by_pydicom(path: Path) -> NDArray[np.float64]:
    """Grey as pydicom's pipeline has it: modality, then the first window; 0 black to 255 white."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(path)
    grey = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset) * 1.0
    count = 2 ** int(dataset.BitsStored)
    low = (-count / 2 if dataset.PixelRepresentation else 0) * float(dataset.get("RescaleSlope", 1))
    return (grey - low - float(dataset.get("RescaleIntercept", 0))) / (count - 1) * 255


@pytest.mark.parametrize("unit", [None, "", "HU", "Houndsfield Unit", "US", "OD", "Z_EFF", "HU_MOD"])
@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        (CT, "CT"),
        (CT, ""),
        (ENHANCED_CT, "CT"),
        ("", "CT"),
        (CT, "OT"),
        (CAPTURE, "CT"),
        (CAPTURE, "OT"),
        (MR, "CT"),
    ],
)
def test_values_are_hounsfield_units_where_the_file_says_so_or_is_a_ct_image(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, kind: str, modality: str, unit: str | None
) -> None:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    elements = {"RescaleType": unit} if unit is not None else {}
    window = {"WindowCenter": [-500, 40], "WindowWidth": [1400, 400], "RescaleIntercept": -24}
    path = write_dicom(
        tmp_path / "a.dcm", chest + np.int16(24), SOPClassUID=kind, Modality=modality, **window, **elements
    )
    read, dataset = read_slice(path), pydicom.dcmread(path)
    of_ct = kind in {CT, ENHANCED_CT, ""} and modality != "OT"
    if unit in {"HU", "Houndsfield Unit"} or (of_ct and unit in {None, "", "US"}):
        np.testing.assert_array_equal(_hounsfield(read), apply_modality_lut(dataset.pixel_array, dataset))
        np.testing.assert_array_equal(read.pixels, LUNG.apply(_hounsfield(read)))
    else:
        assert read.hounsfield is None
        np.testing.assert_allclose(read.pixels, _grey_by_pydicom(path), atol=0.51)


@pytest.mark.parametrize("kind", [CT, CAPTURE])
@pytest.mark.parametrize("unit", ["HU", "US", ""])
@pytest.mark.parametrize(("dtype", "intercept"), [("u1", 0), ("u1", -1024), ("u2", 0)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_captures_that_cannot_reach_from_air_to_water_are_grey(
    tmp_path: Path,
    write_dicom: WriteDicom,
    chest: Chest,
    kind: str,
    unit: str,
    dtype: str,
    intercept: int,
    photometric: str,
) -> None:
    grey = LUNG.apply(chest).astype(dtype)
    elements = {"RescaleType": unit, "RescaleIntercept": intercept, "PhotometricInterpretation": photometric}
    window = {"WindowCenter": 128 + intercept, "WindowWidth": 256}
    path = write_dicom(
        tmp_path / "a.dcm", np.stack([grey, grey[::-1]]), SOPClassUID=kind, **elements, **window
    )
    for read, expected in zip(read_slices(path), (grey, grey[::-1]), strict=True):
        assert read.hounsfield is None
        np.testing.assert_array_equal(
            read.pixels, 255 - expected if photometric == "MONOCHROME1" else expected
        )


@pytest.mark.parametrize(
    ("window", "counts"),
    [
        ((1000, 2000), True),
        ((424, 1500), True),
        ((-600, 1500), False),
        ((40, 400), False),
        ((9000, 100), False),
    ],
)
def test_values_without_rescaling_are_shown_in_a_window_that_meets_them(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, window: tuple[int, int], counts: bool
) -> None:
    elements = {"RescaleSlope": None, "RescaleIntercept": "", "WindowCenter": [window[0], 5]}
    stored = (chest + 1024).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, **elements, WindowWidth=[window[1], 6])
    read = read_slice(path)
    assert read.hounsfield is None
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.RescaleIntercept
    dataset.save_as(path)
    expected = _grey_by_pydicom(path) if counts else stored / 4095 * 255
    np.testing.assert_allclose(read.pixels, expected, atol=0.51)


@pytest.mark.parametrize(
    ("slope", "intercept", "meant"),
    [(0, -24, (1, -24)), ("", -24, (1, -24)), (None, -24, (1, -24)), (2, "", (2, 0)), (2, None, (2, 0))],
)
def test_a_rescaling_that_is_zero_empty_or_missing_in_part(
    tmp_path: Path,
    write_dicom: WriteDicom,
    chest: Chest,
    slope: object,
    intercept: object,
    meant: tuple[int, int],
) -> None:
    path = write_dicom(tmp_path / "a.dcm", chest, RescaleSlope=slope, RescaleIntercept=intercept)
    expected = np.maximum(chest * 1.0 * meant[0] + meant[1], -1024)
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), expected)


def _spoil(path: Path, before: bytes, after: bytes) -> Path:
    """Replace the first place of a text in a file by one of the same length."""
    content = path.read_bytes()
    assert before in content
    assert len(before) == len(after)
    path.write_bytes(content.replace(before, after, 1))
    return path


@pytest.mark.parametrize("bad", ["1,0625", "1.0\\62", "abcdef", "NaN   ", "1e9999"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescaling_that_is_no_number_is_named(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, keyword: str, bad: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", chest, **{keyword: "1.0625"})
    _spoil(path, b"1.0625", bad.encode())
    with pytest.raises(ImageError, match=rf"a\.dcm: .*{keyword} is no number but '") as error:
        read_slice(path)
    assert repr(bad.strip()) in str(error.value)


@pytest.mark.parametrize("photometric", [None, "", "MONOCHROME", "monochrome2", "GREY", "RGB"])
def test_one_sample_is_grey_whatever_it_is_called(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, photometric: str | None
) -> None:
    elements = {"PhotometricInterpretation": photometric, "SamplesPerPixel": None}
    np.testing.assert_array_equal(
        _hounsfield(read_slice(write_dicom(tmp_path / "a.dcm", chest, **elements))), chest
    )


def _coloured(kind: str, grey: NDArray[np.uint8], share: float) -> tuple[NDArray[Any], dict[str, object]]:
    """Stored values and elements of a grey image as colours; a share of its columns is red."""
    rgb = np.stack([grey] * 3, axis=-1)
    rgb[:, : round(share * grey.shape[1]), 1:] = 0
    elements: dict[str, object] = {"RescaleSlope": None, "RescaleIntercept": None, "SOPClassUID": CAPTURE}
    if "PALETTE" in kind:
        entries = np.arange(256)
        for channel, name in enumerate(("Red", "Green", "Blue")):
            ramp = 255 - entries if channel == 0 or not share else np.zeros(256, int)
            width = int(kind.rsplit(maxsplit=1)[-1])
            table = (ramp * 257).astype("<u2") if width == 16 else ramp.astype(np.uint8)
            elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, width]
            elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
        return 255 - grey, {**elements, "PhotometricInterpretation": "PALETTE COLOR"}
    if kind == "YBR_FULL":
        from pydicom.pixels import convert_color_space

        rgb = convert_color_space(rgb, "RGB", kind)
    if kind == "RGB 16":
        rgb = rgb.astype(np.uint16) * 257
    planar = kind == "RGB planar"
    elements |= {
        "SamplesPerPixel": 3,
        "PlanarConfiguration": int(planar),
        "PhotometricInterpretation": kind.split(maxsplit=1)[0],
    }
    elements |= {"Rows": grey.shape[0], "Columns": grey.shape[1], "NumberOfFrames": None}
    return (rgb.transpose(2, 0, 1) if planar else rgb), elements


@pytest.mark.parametrize("kind", ["RGB", "RGB planar", "RGB 16", "YBR_FULL", "PALETTE 8", "PALETTE 16"])
def test_grey_in_colours_is_grey_and_colours_are_refused(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, kind: str
) -> None:
    grey = LUNG.apply(chest)
    stored, elements = _coloured(kind, grey, 0.0)
    read = read_slice(write_dicom(tmp_path / "grey.dcm", stored, **elements))
    np.testing.assert_array_equal(read.pixels, grey)
    assert read.hounsfield is None
    stored, elements = _coloured(kind, np.full_like(grey, 200), 0.5)
    with pytest.raises(NotASliceError, match=r"red\.dcm: a colour image .*are coloured"):
        read_slice(write_dicom(tmp_path / "red.dcm", stored, **elements))


SYNTAXES = {
    "RLELossless": "1.2.840.10008.1.2.5",
    "JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEGLSNearLossless": "1.2.840.10008.1.2.4.81",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "JPEG2000": "1.2.840.10008.1.2.4.91",
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
@pytest.mark.parametrize("kind", ["signed", "signed 12 bits", "unsigned 12 bits", "8 bits", "several frames"])
def test_compressed_pixels_are_those_of_the_uncompressed_file(
    tmp_path: Path,
    write_dicom: WriteDicom,
    recompress: Callable[[Path, Path, str], Path],
    chest: Chest,
    syntax: str,
    kind: str,
) -> None:
    import pydicom

    stored, elements = chest, {"BitsStored": 12, "HighBit": 11} if "12 bits" in kind else {}
    if kind == "unsigned 12 bits":
        stored, elements = (chest + 1024).astype(np.uint16), {"RescaleIntercept": -1024, **elements}
    elif kind == "8 bits":
        stored, elements = LUNG.apply(chest), {"RescaleIntercept": -1350, "RescaleSlope": 6}
    elif kind == "several frames":
        stored = np.stack([chest, chest[::-1], chest + 5])
    plain = write_dicom(tmp_path / "plain.dcm", stored, **elements)
    packed = recompress(plain, tmp_path / "packed.dcm", syntax)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == syntax
    pairs = list(zip(read_slices(plain), read_slices(packed), strict=True))
    assert len(pairs) == (3 if kind == "several frames" else 1)
    for expected, read in pairs:
        np.testing.assert_array_equal(_hounsfield(read), _hounsfield(expected))


@pytest.mark.parametrize(("syntax", "error"), [("51", 1), ("201", 0), ("202", 0), ("203", 0)])
def test_twelve_bit_jpeg_and_high_throughput_jpeg_2000(
    tmp_path: Path, write_coded: Callable[[Path, str], NDArray[np.int16]], syntax: str, error: int
) -> None:
    expected = write_coded(tmp_path / "a.dcm", syntax)
    np.testing.assert_allclose(_hounsfield(read_slice(tmp_path / "a.dcm")), expected, atol=error)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize(("file_format", "syntax"), [("JPEG", "50"), ("JPEG", "55"), ("JPEG2000", "91")])
def test_eight_bit_captures_in_jpeg(
    tmp_path: Path,
    write_dicom: WriteDicom,
    pack_frame: Callable[[Path, bytes, str], Path],
    chest: Chest,
    mode: str,
    photometric: str,
    file_format: str,
    syntax: str,
) -> None:
    from PIL import Image

    if file_format == "JPEG2000" and mode == "RGB":
        photometric = "YBR_RCT"
    grey, stream = LUNG.apply(chest), io.BytesIO()
    options = (
        {"no_jp2": True} if file_format == "JPEG2000" else {"quality": 95, "progressive": syntax == "55"}
    )
    Image.fromarray(grey).convert(mode).save(stream, file_format, **options)
    removed = {"RescaleSlope": None, "RescaleIntercept": None}
    colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": photometric}
    path = write_dicom(tmp_path / "a.dcm", grey, **removed, **(colours if mode == "RGB" else {}))
    read = read_slice(pack_frame(path, stream.getvalue(), syntax))
    np.testing.assert_allclose(read.pixels * 1.0, np.asarray(Image.open(stream).convert("L")), atol=1)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        *(
            ("110", r"4\.110"),
            ("102", "MPEG-4"),
            ("107", "HEVC"),
            ("52", "JPEG"),
            ("92", "JPEG 2000"),
        ),
        ("1.2.3.4", r"1\.2\.3\.4"),
    ],
)
def test_a_compression_that_is_not_supported_is_called_so(
    tmp_path: Path,
    write_dicom: WriteDicom,
    pack_frame: Callable[[Path, bytes, str], Path],
    chest: Chest,
    syntax: str,
    name: str,
) -> None:
    known = "102" if syntax == "110" else syntax  # pydicom does not write what it does not know
    path = pack_frame(write_dicom(tmp_path / "a.dcm", chest), b"\xff\x0a" + bytes(40), known)
    if known != syntax:
        _spoil(path, b"1.2.4.102", b"1.2.4.110")
    with pytest.raises(ImageError, match=rf"a\.dcm: its compression \(.*{name}.*\) is not supported"):
        read_slice(path)


@pytest.mark.parametrize("frame", [b"\xff\xd8", b"\xff\x4f\xff\x51" + bytes(8), bytes(100)])
def test_a_compressed_frame_that_contradicts_its_header_is_damaged(
    tmp_path: Path,
    write_dicom: WriteDicom,
    pack_frame: Callable[[Path, bytes, str], Path],
    chest: Chest,
    frame: bytes,
) -> None:
    path = pack_frame(write_dicom(tmp_path / "a.dcm", chest), frame, "51")
    with pytest.raises(ImageError, match=r"a\.dcm: damaged or not valid DICOM"):
        read_slice(path)


def test_a_compressed_frame_of_another_size_is_damaged(
    tmp_path: Path, write_dicom: WriteDicom, recompress: Callable[[Path, Path, str], Path], chest: Chest
) -> None:
    import pydicom

    for name, syntax in SYNTAXES.items():
        path = recompress(write_dicom(tmp_path / "a.dcm", chest), tmp_path / f"{name}.dcm", syntax)
        dataset = pydicom.dcmread(path)
        dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows
        dataset.save_as(path)
        if name != "RLELossless":  # whose frames have no header
            with pytest.raises(ImageError, match=rf"{name}\.dcm: .*do not fit the header's 48 x 64"):
                read_slice(path)


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


def _enhanced(
    path: Path, write_dicom: WriteDicom, frames: NDArray[np.int16], units: list[str], jitter: float
) -> Path:
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    elements = {"RescaleSlope": None, "RescaleIntercept": None, "WindowCenter": 9000, "WindowWidth": 2}
    write_dicom(path, frames, SOPClassUID=ENHANCED_CT, **elements)
    dataset = pydicom.dcmread(path)

    def group(sequence: str, **elements: object) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        setattr(outer, sequence, Sequence([inner]))
        return outer

    shared = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8]))
    shared.update(group("FrameVOILUTSequence", WindowCenter=-500, WindowWidth=1000))
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
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
    dataset.PerFrameFunctionalGroupsSequence = Sequence(own)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("jitter", [0.0, 1e-6, 4e-4])
@pytest.mark.parametrize("units", [["HU"] * 3, [""] * 3, ["HU", "US", "MGML"]])
def test_enhanced_multi_frame(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, units: list[str], jitter: float
) -> None:
    path = _enhanced(tmp_path / "a.dcm", write_dicom, np.stack([chest + 1024] * 3), units, jitter)
    read = list(read_slices(path))
    assert [item.origin.frame for item in read] == [1, 2, 0]
    assert [item.origin.position for item in read] == [(0, 0, -5), (0, 0, 2.5), (0, 0, 10)]
    assert {item.origin.spacing for item in read} == {(0.7, 0.8)}
    for item in read:
        frame = item.origin.frame or 0
        expected = np.maximum(chest + 1024.0 - 1000 - frame, -1024)
        assert item.origin.grid is not None
        assert item.origin.grid.frames == (1, 2, 0)
        if units[frame] == "MGML":
            assert item.hounsfield is None
            np.testing.assert_allclose(item.pixels, np.clip((expected + 1000) / 999 * 255, 0, 255), atol=0.51)
        else:
            np.testing.assert_array_equal(_hounsfield(item), expected)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_floating_point_pixels(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, keyword: str, dtype: str
) -> None:
    stored = chest.astype(dtype) + 0.25
    removed = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    elements = {keyword: stored.tobytes(), "BitsAllocated": 8 * stored.itemsize, "RescaleIntercept": -1}
    path = write_dicom(tmp_path / "a.dcm", chest, **removed, **elements)
    np.testing.assert_array_equal(_hounsfield(read_slice(path)), chest - 0.75)


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


@pytest.mark.parametrize("tilt", [0.0, 0.005, 0.3])
@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("wrong", ["nothing", "a number", "an orientation", "all orientations"])
def test_a_series_rises_without_a_jump(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, tilt: float, jitter: float, wrong: str
) -> None:
    tilt = 0.0 if wrong == "all orientations" else tilt  # heights along an unknown normal are not to be had
    heights = [30.0, -10.0, 0.0, 20.0, 10.0]
    for index, height in enumerate(heights):
        sine = tilt + jitter * (-1) ** index
        zero = wrong == "all orientations" or (wrong == "an orientation" and index == 1)
        orientation = [0] * 6 if zero else [1, 0, 0, 0, round(np.sqrt(1 - sine**2), 9), round(sine, 9)]
        position = [-170, round(-170 - tilt * height, 9), round(height * np.sqrt(1 - tilt**2), 9)]
        path = write_dicom(
            tmp_path / f"{index}.dcm",
            chest,
            InstanceNumber=70012300 + index,
            ImageOrientationPatient=orientation,
            ImagePositionPatient=position,
        )
        if wrong == "a number":
            bad = [b"A0012300", b"1\\2", b"", b"1.5x", b"\xff\xfe01"][index].ljust(8)
            _spoil(path, f"{70012300 + index}".encode(), bad)
    read = list(read_slices(tmp_path))
    assert [int(Path(item.origin.file).stem) for item in read] == [1, 2, 4, 3, 0]
    assert (read[0].origin.orientation is None) == ("orientation" in wrong)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("bad", ["0,1234", "abcdef", "0.1234", "0.0\\1 ", "NaN   "])
def test_a_position_that_cannot_be_counts_as_missing(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, keyword: str, bad: str
) -> None:
    sound = {"ImagePositionPatient": [0, 1, 0.123456], "ImageOrientationPatient": [1, 0.123456, 0, 0, 1, 0]}
    path = write_dicom(
        tmp_path / "a.dcm", chest, **{keyword: {**sound, "PixelSpacing": [0.7, 0.123456]}[keyword]}
    )
    _spoil(path, b"0.123456", bad.encode().ljust(8))
    origin, name = read_slice(path).origin, {"PixelSpacing": "spacing"}.get(keyword, keyword[5:-7].lower())
    expected = (0, 1, 0.1234) if bad == "0.1234" and name == "position" else None
    expected = (0.7, 0.1234) if bad == "0.1234" and name == "spacing" else expected
    assert getattr(origin, name) == expected or (name == "orientation" and bad == "0.1234")


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


@pytest.mark.parametrize("encoding", ["implicit", "explicit", "big-endian"])
@pytest.mark.parametrize(
    ("first", "value"),
    [
        *(("LengthToEnd", 4), ("SpecificCharacterSet", "ISO_IR 100"), ("LanguageCodeSequence", [])),
        *(("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "X" * 16, *["Y" * 16] * 10]), ("SOPClassUID", CT)),
        *(("StudyDate", "20200101"), ("StudyTime", "101010"), ("AccessionNumber", "7"), ("Modality", "CT")),
        *(("Manufacturer", "M" * 64), ("InstitutionAddress", "A" * 256), ("ReferringPhysicianName", "B^C")),
        *(("StudyDescription", ""), ("ReferencedStudySequence", 1), ("EventElapsedTimes", 2.5)),
    ],
)
def test_a_file_without_preamble_and_meta_header(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest, encoding: str, first: str, value: Any
) -> None:
    import pydicom
    from pydicom.dataset import Dataset

    whole = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", chest))
    dataset = Dataset()
    if (isinstance(value, list) and "Sequence" in first) or value == 1:
        value = [Dataset(), Dataset()]
        value[0].CodeValue = "en"
    setattr(dataset, first, value)
    dataset.update({tag: whole[tag] for tag in sorted(whole.keys()) if tag > dataset[first].tag})
    if encoding == "big-endian":
        dataset["PixelData"].value = chest.astype(">i2").tobytes()
    dataset.save_as(
        tmp_path / "bare", implicit_vr=encoding == "implicit", little_endian=encoding != "big-endian"
    )
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(_hounsfield(read_slice(tmp_path / "bare")), chest)


@pytest.mark.parametrize(
    "head", [b"\x08\x00", b"\x00\x08", b"\x08\x00\x05\x00cs\x0a\x00", b"\x02\x00\x10\x00XY"]
)
@pytest.mark.parametrize(
    "rest", [bytes(600), b"\xff" * 600, b"\x08\x00" * 300, b"\x00\x08" * 300, b"text " * 200]
)
def test_what_only_begins_like_a_data_set_is_no_image(tmp_path: Path, head: bytes, rest: bytes) -> None:
    (tmp_path / "other").write_bytes(head + rest)
    with pytest.raises(ImageError, match="not an image that can be read"):
        read_slice(tmp_path / "other")


def test_a_dicomdir_named_by_itself_is_told_what_to_do(
    tmp_path: Path, write_dicom: WriteDicom, chest: Chest
) -> None:
    import pydicom
    from pydicom.fileset import FileSet

    write_dicom(
        tmp_path / "a.dcm", chest, StudyInstanceUID="1.2", StudyID="1", SeriesNumber=1, InstanceNumber=1
    )
    files = FileSet()
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "101010", ""
    files.add(dataset)
    files.write(tmp_path / "disc")
    with pytest.raises(ImageError, match=r"DICOMDIR: a DICOMDIR, .*; name its folder instead"):
        read_slice(tmp_path / "disc" / "DICOMDIR")
    (read,) = read_slices(tmp_path / "disc")
    np.testing.assert_array_equal(_hounsfield(read), chest)


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
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Modality": "US"}, "modality US"),
        ({"SamplesPerPixel": 4, "PhotometricInterpretation": "ARGB"}, r"colour image \(ARGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "damaged or not valid"),
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
