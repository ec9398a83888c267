"""DICOM files come in as Hounsfield units and the lung window, whatever their header does to values."""

import io
import os
import re
import signal
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.fileset import FileSet
from pydicom.pixels import convert_color_space
from tests.imaging.conftest import CHEST, GREY, assert_refused, read_all, recompress, write_ct

from groundglass.errors import NotASliceError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.dicom import open_dataset
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Patient
from groundglass.imaging.source import DEFAULT_LIMITS, FileSource
from groundglass.imaging.window import LUNG

pytestmark = pytest.mark.usefixtures("quiet")
equal = np.testing.assert_array_equal
CT, ENHANCED_CT, CAPTURE, MR = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "7", "4"))
UNRESCALED = {"RescaleSlope": None, "RescaleIntercept": None}
AXIAL = [1, 0, 0, 0, 1, 0]
JPEGS = [("50", "RGB"), ("50", "YBR_FULL_422"), ("55", "RGB"), ("55", "YBR_FULL_422"), ("91", "YBR_RCT")]
PLACES = {"ImagePositionPatient": [0, 1], "ImageOrientationPatient": [1, 0, 0, 0, 1], "PixelSpacing": [0.7]}


def read(folder: Path, stored: np.ndarray = CHEST, **elements: object) -> CTSlice:
    """The slice of a CT file, ``a.dcm``, that is written with these values and elements."""
    return read_slice(write_ct(folder / "a.dcm", stored, **elements))


def spoil(path: Path, before: bytes, after: bytes) -> Path:
    """Replace the first place of a text in a file by one of the same length."""
    content = path.read_bytes()
    path.write_bytes(content.replace(before, after, 1))
    assert before in content
    return path


def order(folder: Path) -> str:
    """The names of the files in a folder, which are digits, as their slices come."""
    return "".join(Path(item.origin.file).stem for item in read_slices(folder))


def pack_frame(path: Path, frame: bytes, syntax: str) -> Path:
    """Give a DICOM file a frame for its pixels, in a UID's or usual UID's last number's compression."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax if "." in syntax else f"1.2.840.10008.1.2.4.{syntax}"
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    return path


def write_coded(path: Path, syntax: str) -> Path:
    """Write the chest in 12-bit JPEG (51), or High-Throughput JPEG 2000."""
    if syntax == "51":
        stored = np.clip(CHEST + 1024, 0, 4095).astype(np.uint16)
        write_ct(path, stored, RescaleIntercept=-1024, BitsStored=12)
        return pack_frame(path, imagecodecs.jpeg8_encode(stored, level=100, bitspersample=12), syntax)
    return pack_frame(write_ct(path), imagecodecs.htj2k_encode(CHEST.copy()), syntax)


def write_bare(path: Path, first: str, encoding: str) -> None:
    """Without preamble and meta header, and begun by this element."""
    whole, bare = pydicom.dcmread(write_ct(path)), Dataset()
    setattr(bare, first, BEGINNINGS[first])
    bare.update({tag: whole[tag] for tag in sorted(whole.keys()) if tag > bare[first].tag})
    little = encoding != "big-endian"
    bare["PixelData"].value = CHEST.astype("<i2" if little else ">i2").tobytes()
    bare.save_as(path, implicit_vr=encoding == "implicit", little_endian=little)
    assert path.read_bytes()[128:132] != b"DICM"


def write_deflated(path: Path) -> None:
    dataset = pydicom.dcmread(write_ct(path))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.file_meta.FileMetaInformationVersion = bytes(9_000)  # so that the syntax is far from the file's start
    dataset.save_as(path)


def floats(keyword: str, kind: str) -> dict[str, object]:
    stored = CHEST.astype(kind) + 0.25
    removed = dict.fromkeys(("PixelData", "BitsStored", "PixelRepresentation"))
    pixels = {keyword: stored.tobytes(), "BitsAllocated": 8 * stored.itemsize}
    return {**removed, **pixels, "RescaleIntercept": -0.25}


ct, bare = partial(partial, write_ct), partial(partial, write_bare)
POSITIVE, DARKER, TWICE = (CHEST + 1024).astype(np.uint16), CHEST + np.int16(24), CHEST * np.int16(2)
INVERSE, ITEM = {"PhotometricInterpretation": "MONOCHROME1"}, Dataset()
ENCODINGS = ("implicit", "explicit", "big-endian")
GREY_NAMES = (None, "", "MONOCHROME", "monochrome2", "GREY", "RGB")
ITEM.CodeValue = "en"
BEGINNINGS: dict[str, object] = {
    "LengthToEnd": 4, "SpecificCharacterSet": "ISO_IR 100", "LanguageCodeSequence": [ITEM, Dataset()], "Modality": "CT",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "X" * 16, *["Y" * 16] * 10], "SOPClassUID": CT, "AccessionNumber": "7",
    "StudyDate": "20200101", "StudyTime": "101010", "Manufacturer": "M" * 64, "InstitutionAddress": "A" * 256,
    "ReferringPhysicianName": "B^C", "StudyDescription": "", "ReferencedStudySequence": [ITEM], "EventElapsedTimes": 2.5,
}  # fmt: skip
# What writes the chest in every way in which a file may hold it.
WRITTEN: dict[str, Any] = {
    "plain": write_ct,
    "rescaled": ct(stored=(CHEST + 1024) * np.int16(2), RescaleSlope=0.5, RescaleIntercept=-1024),
    **{f"slope {no!r}": ct(stored=DARKER, RescaleSlope=no, RescaleIntercept=-24) for no in (0, "", None)},
    **{f"intercept {no!r}": ct(stored=TWICE, RescaleSlope=0.5, RescaleIntercept=no) for no in ("", None)},
    "MONOCHROME1": ct(**INVERSE),  # no negative
    "negative": ct(stored=4095 - POSITIVE, RescaleIntercept=-1024, BitsStored=12, **INVERSE),
    **{f"grey, {name!r}": ct(PhotometricInterpretation=name, SamplesPerPixel=None) for name in GREY_NAMES},
    "float": ct(**floats("FloatPixelData", "f4")),
    **{f"{kind} from {first}": bare(first=first, encoding=kind) for kind in ENCODINGS for first in BEGINNINGS},
    **{f"4.{syntax}": partial(write_coded, syntax=syntax) for syntax in ("51", "201", "202", "203")},
}
KINDS: dict[str, tuple[np.ndarray, dict[str, object]]] = {
    "signed": (CHEST, {}),
    "signed 12 bits": (CHEST, {"BitsStored": 12}),
    "unsigned 12 bits": (POSITIVE, {"RescaleIntercept": -1024, "BitsStored": 12}),
    "8 bits": (GREY, {"RescaleIntercept": -1350, "RescaleSlope": 6}),
    "several frames": (np.stack([CHEST, CHEST[::-1], CHEST + 5]), {}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_chest_is_the_same_however_it_is_written(tmp_path: Path, name: str) -> None:
    WRITTEN[name](tmp_path / "a.dcm")
    image = read_slice(tmp_path / "a.dcm")
    np.testing.assert_allclose(image.hounsfield, CHEST, atol=1 if name == "4.51" else 0)
    assert (image.origin.file_format, image.origin.series) == ("DICOM", "1.2.3.4")


@pytest.mark.parametrize("step", [0, 10])
@pytest.mark.parametrize("padding", [-2000, 2**16 - 2000, 3000])
@pytest.mark.parametrize(("dtype", "bits"), [("i2", 16), ("u2", 16), ("u2", 12)])
def test_padding_becomes_air(tmp_path: Path, step: int, padding: int, dtype: str, bits: int) -> None:
    """Of either sign, and a range of paddings as well."""
    stored = CHEST.astype(dtype) if dtype == "i2" else (CHEST + 1024).astype(dtype)
    stored[:5], stored[:2] = (np.array((padding + more) % 2**bits).astype(dtype) for more in (step, 0))
    path = write_ct(tmp_path / "a.dcm", stored, BitsStored=bits, RescaleIntercept=-1024 * (dtype == "u2"))
    dataset = pydicom.dcmread(path)
    for tag, more in [(0x00280120, 0), (0x00280121, step)][: 2 if step else 1]:
        dataset.add_new(tag, "US" if padding >= 0 else "SS", padding + more)
    dataset.save_as(path)
    hounsfield = read_slice(path).hounsfield
    assert (hounsfield[:5] == -1024).all()
    equal(hounsfield[5:], CHEST[5:])


def windowed(values: np.ndarray, level: float, width: float) -> np.ndarray:
    """Grey by the linear function of a window (DICOM PS3.3 C.11.2.1.2.1)."""
    return np.clip((values - (level - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


@pytest.mark.parametrize("unit", [None, "", "HU", "Houndsfield Unit", "US", "OD", "Z_EFF", "HU_MOD"])
@pytest.mark.parametrize("kind", [CT, ENHANCED_CT, CAPTURE, MR, ""])
@pytest.mark.parametrize("modality", ["CT", "OT", ""])
def test_units_are_stated_or_of_a_ct(tmp_path: Path, kind: str, modality: str, unit: str | None) -> None:
    window = {"WindowCenter": [-500, 40], "WindowWidth": [1400, 400], "RescaleIntercept": -24}
    image = read(tmp_path, DARKER, SOPClassUID=kind, Modality=modality, RescaleType=unit, **window)
    of_ct = kind in {CT, ENHANCED_CT, ""} and modality != "OT"
    if unit in {"HU", "Houndsfield Unit"} or (of_ct and unit in {None, "", "US"}):
        equal(image.hounsfield, CHEST)
        equal(image.pixels, LUNG.apply(image.hounsfield), "whatever window the header asks for")
    else:
        assert image.hounsfield is None
        np.testing.assert_allclose(image.pixels, windowed(CHEST, -500, 1400), atol=0.51)


@pytest.mark.parametrize("kind", [CT, CAPTURE])
@pytest.mark.parametrize("unit", ["HU", "US", ""])
@pytest.mark.parametrize("scale", [("u1", 0), ("u1", -1024), ("u2", 0)])
@pytest.mark.parametrize("shown", ["MONOCHROME1", "MONOCHROME2"])
def test_captures_without_air_are_grey(tmp_path: Path, kind: str, unit: str, scale: Any, shown: str) -> None:
    dtype, intercept = scale
    elements = {"SOPClassUID": kind, "RescaleType": unit, "PhotometricInterpretation": shown}
    window = {"RescaleIntercept": intercept, "WindowCenter": 128 + intercept, "WindowWidth": 256}
    stored = np.stack([GREY, GREY[::-1]]).astype(dtype)
    images = list(read_slices(write_ct(tmp_path / "a.dcm", stored, **elements, **window)))
    assert [image.hounsfield for image in images] == [None, None]
    equal([image.pixels for image in images], 255 - stored if shown == "MONOCHROME1" else stored)


@pytest.mark.parametrize("case", [(1000, 2000, 1), (424, 1500, 1), (-600, 1500, 0), (40, 400, 0), (9000, 100, 0)])
def test_a_window_counts_that_meets_the_values(tmp_path: Path, case: tuple[int, int, int]) -> None:
    level, width, counts = case
    window = {"WindowCenter": [level, 5], "WindowWidth": [width, 6]}
    image = read(tmp_path, POSITIVE, RescaleSlope=None, RescaleIntercept="", **window)
    assert image.hounsfield is None
    expected = windowed(POSITIVE, level, width) if counts else POSITIVE / 4095 * 255
    np.testing.assert_allclose(image.pixels, expected, atol=0.51)


def write_coloured(path: Path, kind: str, tint: float = 1.0) -> Path:
    """The grey chest in colours, such as ``RGB planar`` or ``PALETTE 16``, with so much of its green and blue."""
    name, _, variant = kind.partition(" ")
    elements: dict[str, object] = {**UNRESCALED, "SOPClassUID": CAPTURE, "PhotometricInterpretation": name}
    shades = np.outer((1, tint, tint), np.arange(256)).astype(np.uint8)
    if name == "PALETTE":
        elements["PhotometricInterpretation"] = "PALETTE COLOR"
        for channel, shade in zip(("Red", "Green", "Blue"), shades, strict=True):
            table = shade.astype("<u2") * 257 if variant == "16" else shade
            elements[f"{channel}PaletteColorLookupTableDescriptor"] = [256, 0, int(variant)]
            elements[f"{channel}PaletteColorLookupTableData"] = table.tobytes()
        return write_ct(path, GREY, **elements)
    rgb = np.moveaxis(shades[:, GREY], 0, -1)
    stored = convert_color_space(rgb, "RGB", name) if name == "YBR_FULL" else rgb
    stored = stored.astype(np.uint16) * 257 if variant == "16" else stored
    elements |= {"SamplesPerPixel": 3, "PlanarConfiguration": int(variant == "planar")}
    elements |= {"Rows": 48, "Columns": 64, "NumberOfFrames": None}
    return write_ct(path, stored.transpose(2, 0, 1) if variant == "planar" else stored, **elements)


@pytest.mark.parametrize("kind", ["RGB", "RGB planar", "RGB 16", "YBR_FULL", "PALETTE 8", "PALETTE 16"])
def test_grey_in_colours_is_grey_and_colours_are_refused(tmp_path: Path, kind: str) -> None:
    image = read_slice(write_coloured(tmp_path / "a.dcm", kind))
    equal(image.pixels, GREY)
    assert image.hounsfield is None
    coloured = write_coloured(tmp_path / "a.dcm", kind, tint=0.3)
    assert isinstance(assert_refused(coloured, r"a\.dcm: a colour image .*are coloured"), NotASliceError)


@pytest.mark.parametrize("syntax", ["5", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91"])
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_pixels_are_those_of_the_uncompressed_file(tmp_path: Path, syntax: str, kind: str) -> None:
    plain = write_ct(tmp_path / "plain.dcm", KINDS[kind][0], **KINDS[kind][1])
    packed = recompress(plain, tmp_path / "packed.dcm", f"1.2.840.10008.1.2.{syntax}")
    dataset = pydicom.dcmread(packed)
    assert dataset.file_meta.TransferSyntaxUID.endswith(f".{syntax}")
    expected = [image.hounsfield for image in read_slices(plain)]
    assert expected[0] is not None
    equal([image.hounsfield for image in read_slices(packed)], expected)
    if kind == "signed" and syntax != "5":  # RLE, whose frames have no header
        dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows
        dataset.save_as(packed)
        assert_refused(packed, r"packed\.dcm: .*do not fit the header's 48 x 64")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("syntax", "photometric"), JPEGS)
def test_eight_bit_captures_in_jpeg(tmp_path: Path, mode: str, photometric: str, syntax: str) -> None:
    stream = io.BytesIO()
    options = {"no_jp2": True} if syntax == "91" else {"quality": 95, "progressive": syntax == "55"}
    Image.fromarray(GREY).convert(mode).save(stream, "JPEG2000" if syntax == "91" else "JPEG", **options)
    colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": photometric}
    path = write_ct(tmp_path / "a.dcm", GREY, **UNRESCALED, **(colours if mode == "RGB" else {}))
    image = read_slice(pack_frame(path, stream.getvalue(), syntax))
    np.testing.assert_allclose(image.pixels * 1.0, np.asarray(Image.open(stream).convert("L")), atol=1)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_frames_are_decoded_by_one_child_that_ends_with_the_block_or_is_replaced(tmp_path: Path) -> None:
    path, layout = write_ct(tmp_path / "a.dcm"), ("jpeg8", 1, CHEST.nbytes)
    lossless = pydicom.dcmread(recompress(path, path, "1.2.840.10008.1.2.4.70"))
    frame, before = bytes(get_frame(lossless.PixelData, 0, number_of_frames=1)), children()
    with FrameDecoder() as decoder:
        assert children() == before
        for _ in range(3):
            assert decoder.decode(frame, *layout) == CHEST.tobytes()
            (child,) = children() - before
        os.kill(int(child), signal.SIGKILL)
        while "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
            sleep(0.01)
        for damaged in (frame[:9], b"\xff" * 99):
            assert decoder.decode(frame, *layout) == CHEST.tobytes()
            with pytest.raises(ValueError, match="cannot be decoded"):
                decoder.decode(damaged, *layout)
    assert children() == before
    with FrameDecoder(timeout=0.0) as decoder, pytest.raises(ValueError, match="cannot be decoded"):
        decoder.decode(frame, *layout)


def test_real_files(dicom_samples: Path) -> None:
    for path in (dicom_samples / "compressed").glob("*.dcm"):
        equal(read_slice(path).hounsfield, np.maximum(pydicom.dcmread(path).pixel_array * 1.0 - 1024, -1024))
    for item in read_slices(dicom_samples / "mixed"):
        assert -1024 <= item.hounsfield.min() < 100 < item.hounsfield.max() < 8000
    heights = [item.origin.position[2] for item in read_slices(dicom_samples / "lung-series")]
    assert (len(heights), heights) == (25, sorted(heights))


def group(sequence: str, **elements: object) -> Dataset:
    """A data set of one sequence, whose only item has these elements."""
    inner, outer = Dataset(), Dataset()
    inner.update(elements)
    setattr(outer, sequence, [inner])
    return outer


def write_enhanced(path: Path, units: Any = ("HU",) * 3) -> Path:
    """Three frames that are not in order, each with a rescaling of its own."""
    shared = group("PlaneOrientationSequence", ImageOrientationPatient=AXIAL)
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8]))
    shared.update(group("FrameVOILUTSequence", WindowCenter=-500, WindowWidth=1000))
    own = []
    for index, (height, unit) in enumerate(zip([10.0, -5.0, 2.5], units, strict=True)):
        item = group("PlanePositionSequence", ImagePositionPatient=[0, 0, height])
        rescaling = {"RescaleSlope": 1, "RescaleIntercept": -1000 - index, "RescaleType": unit}
        item.update(group("PixelValueTransformationSequence", **rescaling))
        own.append(item)
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    elements = {**UNRESCALED, "SOPClassUID": ENHANCED_CT, "WindowCenter": 9000, "WindowWidth": 2, **groups}
    return write_ct(path, np.stack([CHEST + 1024] * 3), **elements)


@pytest.mark.parametrize("units", [["HU"] * 3, [""] * 3, ["HU", "US", "MGML"]])
def test_enhanced_multi_frame(tmp_path: Path, units: list[str]) -> None:
    images = list(read_slices(write_enhanced(tmp_path / "a.dcm", units)))
    places = [(item.origin.frame, item.origin.position) for item in images]
    assert places == [(1, (0, 0, -5)), (2, (0, 0, 2.5)), (0, (0, 0, 10))]
    for item in images:
        assert item.origin.spacing == (0.7, 0.8)
        expected = np.maximum(CHEST + 24.0 - item.origin.frame, -1024)
        if units[item.origin.frame] == "MGML":
            assert item.hounsfield is None
            np.testing.assert_allclose(item.pixels, np.clip((expected + 1000) / 999 * 255, 0, 255), atol=0.51)
        else:
            equal(item.hounsfield, expected)


@pytest.mark.parametrize("tilt", [0.0, 0.005, 0.3, -0.8])
@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("wrong", ["nothing", "a number", "an orientation", "all orientations"])
def test_a_series_rises_without_a_jump(tmp_path: Path, tilt: float, jitter: float, wrong: str) -> None:
    """Sorted along the slice normal: names, instance numbers and x coordinates all mislead."""
    tilt = 0.0 if wrong == "all orientations" else tilt  # heights along an unknown normal are not to be had
    for index, height in enumerate([30.0, -10.0, 0.0, 20.0, 10.0]):
        sine = tilt + jitter * (-1) ** index
        zero = wrong == "all orientations" or (wrong == "an orientation" and index == 1)
        orientation = [0] * 6 if zero else [1, 0, 0, 0, round(np.sqrt(1 - sine**2), 9), round(sine, 9)]
        position = [100 - height, round(-170 - tilt * height, 9), round(height * np.sqrt(1 - tilt**2), 9)]
        place = {"ImageOrientationPatient": orientation, "ImagePositionPatient": position}
        path = write_ct(tmp_path / f"{index}.dcm", InstanceNumber=70012300 + index, **place)
        if wrong == "a number":
            bad = [b"A0012300", b"1\\2", b"", b"1.5x", b"\xff\xfe01"][index].ljust(8)
            spoil(path, f"{70012300 + index}".encode(), bad)
    assert order(tmp_path) == "12430"
    assert (next(read_slices(tmp_path)).origin.orientation is None) == ("orientation" in wrong)
    if wrong == "a number" and jitter < 1e-3:
        heights = [item.origin.height for item in read_slices(tmp_path)]
        np.testing.assert_allclose(np.diff(heights), 6 if tilt < -0.5 else 10, rtol=1e-4 if tilt else 0)


@pytest.mark.parametrize("bad", ["0,1234", "abcdef", "0.0\\1 ", "NaN   ", "1e200"])
@pytest.mark.parametrize("keyword", [*PLACES, "RescaleSlope", "RescaleIntercept"])
def test_a_bad_place_is_missing_and_a_bad_rescaling_named(tmp_path: Path, keyword: str, bad: str) -> None:
    path = write_ct(tmp_path / "a.dcm", **{keyword: [*PLACES.get(keyword, []), 0.123456]})
    spoil(path, b"0.123456", bad.encode().ljust(8))
    if keyword in PLACES:
        origin = read_slice(path).origin
        assert (origin.position, origin.orientation, origin.spacing) == (None, None, None)
    else:
        assert_refused(path, re.escape(f"{keyword} is no number but {bad.strip()!r}"))


def test_series_are_kept_apart_and_directories_passed_over(tmp_path: Path) -> None:
    files = FileSet()
    study = {"StudyInstanceUID": "1.2", "StudyID": "1", "StudyDate": "20200101", "StudyTime": "101010"}
    for index in range(6):
        place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0, 0, -index]}
        series = {"SeriesInstanceUID": f"1.2.{index % 2}", "SeriesNumber": index % 2, "InstanceNumber": index}
        files.add(pydicom.dcmread(write_ct(tmp_path / f"{index}.dcm", **place, **study, **series, AccessionNumber="")))
    assert order(tmp_path) == "420531"
    files.write(tmp_path / "disc")
    assert [item.origin.series for item in read_slices(tmp_path / "disc")] == ["1.2.0"] * 3 + ["1.2.1"] * 3
    assert_refused(tmp_path / "disc" / "DICOMDIR", r"DICOMDIR: a DICOMDIR, .*; name its folder instead")


def packed(frame: bytes, syntax: str) -> Any:
    return lambda path: pack_frame(write_ct(path), frame + bytes(40), syntax)


OTHERS = {"102": "MPEG-4", "107": "HEVC", "52": "JPEG", "92": "JPEG 2000", "1.2.3.4": r"\(1\.2\.3\.4\)"}
DAMAGED = (ct(Rows=60), ct(BitsAllocated=13), ct(PhotometricInterpretation="PALETTE COLOR"))
DAMAGED += tuple(packed(frame, "51") for frame in (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0"))
REFUSED: list[tuple[Any, str]] = [
    (write_deflated, r"its compression \(Deflated .* is not supported; store it uncompressed"),
    *((ct(PixelData=nothing), "no pixel data") for nothing in (None, b"")),
    (ct(SegmentedRedPaletteColorLookupTableData=b"\1\0\xff\xff\0\0"), "a segmented palette"),
    (ct(SamplesPerPixel=3, PhotometricInterpretation="RGB", Modality="US"), "modality US"),
    (ct(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer"),
    (ct(Rows=40_000, Columns=40_000), "more than the limit"),
    (ct(NumberOfFrames=10**6), "frames"),
    (ct(BitsStored=12, HighBit=15), "do not begin at the lowest bit"),
    *((packed(b"\xff\x0a", key), f"its compression .*{OTHERS[key]}.* is not supported") for key in OTHERS),
    *((write, "damaged or not valid DICOM") for write in DAMAGED),
]


@pytest.mark.parametrize(("write", "reason"), REFUSED)
def test_what_is_no_ct_slice_or_cannot_be_decoded_is_refused(tmp_path: Path, write: Any, reason: str) -> None:
    write(tmp_path / "a.dcm")
    error = assert_refused(tmp_path / "a.dcm", rf"a\.dcm: .*{reason}")
    assert isinstance(error, NotASliceError) == bool(re.search("modality|colour|localizer", reason))


def test_identifiers_are_kept_apart_and_a_damaged_name_costs_no_slice(tmp_path: Path) -> None:
    image = read(tmp_path, PatientBirthDate="19500102")
    assert image.origin.patient == Patient("Doe^Jane", "secret", "19500102")
    assert not re.search("Jane|secret|1950", repr(image) + repr(image.origin))
    assert read(tmp_path, PatientName=None, PatientID=None).origin.patient == Patient()
    path = spoil(write_ct(tmp_path / "a.dcm"), b"Doe^Jane", b"\xff\x00\x1b[\n\xfe^\xff")
    name = read_slice(path).origin.patient.name
    assert name is None or name.isprintable()
    assert open_dataset(FileSource(path), DEFAULT_LIMITS, ["Modality"]).buffer is None, "nor is a whole file kept"


@pytest.mark.parametrize("length", [140, 200, 400])
def test_a_truncated_header_is_reported_in_a_folder_too(tmp_path: Path, length: int) -> None:
    (tmp_path / "b.dcm").write_bytes(write_ct(tmp_path / "a.dcm").read_bytes()[:length])
    files, reasons = read_all(tmp_path)
    assert (files, list(reasons)) == (["a.dcm"], ["b.dcm"])
