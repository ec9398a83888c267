"""CT slices from DICOM files, in Hounsfield units and the lung window."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.files import one_line
from groundglass.imaging.lossless import FrameLayout, LosslessDecoder
from groundglass.imaging.slice import CTSlice, Hounsfield, Origin, Patient
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source, guard, guarded
from groundglass.imaging.window import AIR, LUNG, Window, as_hounsfield, extent, interpret

if TYPE_CHECKING:
    from pydicom import Dataset

# Decoded by GDCM in a process of its own; pydicom decodes RLE, Pillow the other JPEG and JPEG 2000.
_LOSSLESS_JPEG = frozenset(
    {
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless (Process 14)
        "1.2.840.10008.1.2.4.70",  # the same, Selection Value 1
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
    }
)
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = frozenset({_IMPLICIT, _EXPLICIT, _DEFLATED, _EXPLICIT_BIG_ENDIAN})

_PLACE = (
    *("SOPClassUID", "SeriesInstanceUID", "InstanceNumber", "Rows", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate")
_LONGEST_TEXT = 324  # of a Person Name: five components of 64 characters, and the carets between them
_MODALITIES = frozenset({"CT", "OT", "SC", ""})
_MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})


@dataclass(frozen=True)
class Frame:
    """One image of a DICOM file, without its pixels.

    Attributes:
        index: from 0, in the file.
        slope: from stored values to Hounsfield units, or None where the file does not say.
        intercept: likewise.
        position: of the first pixel's centre in mm, or None.
        orientation: direction cosines of rows, then columns, or None.
        spacing: mm between rows and between columns, or None.
    """

    index: int
    slope: float | None
    intercept: float
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None

    def height(self) -> float | None:
        """Position in mm along the slice normal, or None where the file does not say."""
        if self.position is None or self.orientation is None:
            return None
        return float(np.dot(self.position, np.cross(self.orientation[:3], self.orientation[3:])))


@dataclass(frozen=True, order=True)
class Place:
    """Where a DICOM file belongs; places of one series sort along the slice normal.

    Attributes:
        series: Series Instance UID, empty where the file does not say.
        orientation: direction cosines of rows, then columns, to two decimals; empty where unknown.
        height: mm along the slice normal, 0 where unknown.
        number: Instance Number, 0 where unknown.
    """

    series: str
    orientation: tuple[float, ...]
    height: float
    number: int


@guarded("DICOM")
def read_dicom(
    source: Source, decoder: LosslessDecoder, limits: Limits = DEFAULT_LIMITS
) -> Iterator[CTSlice]:
    """Every frame of a DICOM file, those of a multi-frame file sorted along the slice normal.

    Stored values are rescaled to Hounsfield units and shown in the lung window, whatever window the header
    asks for. A file that states no rescaling (a secondary capture) is shown in its own first window.

    Raises:
        ImageError: damaged, no pixel data, in colour, not a CT, or larger than ``limits`` allow.
    """
    dataset = open_dataset(source, limits)
    _check(dataset, source.name, limits)
    frames = describe_frames(dataset, limits)
    for frame in frames:
        stored = _stored(dataset, frame.index, decoder)
        yield _slice(dataset, frame, stored, source.name, several=len(frames) > 1)


def place_in_series(source: Source, limits: Limits = DEFAULT_LIMITS) -> Place | None:
    """A DICOM file's place from its header alone, or None where it is a directory, a report or the like.

    Raises:
        ImageError: damaged, or an image without rows.
    """
    with guard(source.name, "DICOM"):
        dataset = open_dataset(source, limits, _PLACE)
        if "Rows" not in dataset:
            if _should_be_image(dataset):
                raise ImageError(source.name, "a DICOM file without an image; it may be truncated")
            return None
        frame = describe_frames(dataset, limits)[0]
        return Place(
            series=str(dataset.get("SeriesInstanceUID", "") or ""),
            orientation=tuple(round(cosine, 2) + 0.0 for cosine in frame.orientation or ()),
            height=round(frame.height() or 0.0, 3),
            number=int(dataset.get("InstanceNumber", 0) or 0),
        )


def _should_be_image(dataset: Dataset) -> bool:
    """Whether a DICOM file that holds no image should hold one: its class says so, or is lost."""
    from pydicom.uid import UID  # noqa: PLC0415 - slow to import

    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if kind:
        return "Image Storage" in UID(str(kind)).name
    return getattr(dataset, "preamble", None) is not None


def open_dataset(source: Source, limits: Limits, tags: Sequence[str] | None = None) -> Dataset:
    """The data set of a file; with ``tags`` only these elements, and nothing is read beyond the header."""
    from pydicom import dcmread  # noqa: PLC0415 - slow to import
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - slow to import

    source.check_size(limits)
    if tags is None or _is_deflated(source.head()):
        content = source.read(limits)
        _check_deflated(content, limits)
        stream: Any = io.BytesIO(content)
    else:
        stream = source.open()
    with stream:
        dataset = dcmread(stream, force=True, stop_before_pixels=tags is not None, specific_tags=tags)
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        explicit = _EXPLICIT if little else _EXPLICIT_BIG_ENDIAN
        dataset.file_meta.TransferSyntaxUID = _IMPLICIT if implicit else explicit
    return dataset


def _is_deflated(head: bytes) -> bool:
    return head[128:132] == b"DICM" and _DEFLATED.encode() in head


def _check_deflated(content: bytes, limits: Limits) -> None:
    """Inflate a deflated data set piecewise, since pydicom would do it at once and without a bound."""
    if not _is_deflated(content[:4096]):
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    rest, size = content[144 + int.from_bytes(content[140:144], "little") :], 0
    while rest and not inflate.eof:
        size += len(inflate.decompress(rest, 2**20))
        rest = inflate.unconsumed_tail
        if size > min(limits.file_bytes, 2**30):
            raise ValueError("the deflated data set is larger than the limit")


def _check(dataset: Dataset, name: str, limits: Limits) -> None:
    modality, photometric, kind = (
        one_line(str(dataset.get(keyword, "") or ""), 40)
        for keyword in ("Modality", "PhotometricInterpretation", "SOPClassUID")
    )
    if "PixelData" not in dataset:
        what = f"modality {modality or 'unknown'}, SOP class {kind or 'unknown'}"
        raise ImageError(name, f"holds no pixel data ({what})")
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1 or photometric not in _MONOCHROME:
        what = f"{photometric or 'unknown colours'}, modality {modality or 'unknown'}"
        raise NotASliceError(name, f"a colour image ({what}), not a CT slice")
    if modality not in _MODALITIES:
        raise NotASliceError(name, f"modality {modality}, not a CT slice")
    if "LOCALIZER" in str(dataset.get("ImageType", "")).upper():
        raise NotASliceError(name, "a localizer, not a slice")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows < 1 or columns < 1:
        raise ImageError(name, f"an image of {columns} x {rows} pixels")
    if rows * columns > limits.pixels:
        raise ImageError(name, f"{columns} x {rows} pixels are more than the limit of {limits.pixels:,}")


def describe_frames(dataset: Dataset, limits: Limits) -> list[Frame]:
    """The frames of a data set; sorted along the slice normal where all of them have a position."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if not 1 <= count <= limits.frames:
        raise ValueError(f"{count:,} frames, 1 to {limits.frames:,} can be read")
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    by_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    frames = []
    for index in range(count):
        own = by_frame[index] if index < len(by_frame) else None
        frames.append(_describe(index, [part for part in (own, shared) if part is not None], dataset))
    heights = [frame.height() for frame in frames]
    if any(height is None for height in heights):
        return frames
    return sorted(frames, key=lambda frame: (frame.height() or 0.0, frame.index))


def _describe(index: int, groups: list[Dataset], dataset: Dataset) -> Frame:
    """A frame's geometry and rescaling from its functional groups, else from the data set itself."""

    def numbers(sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        places = [_first(group, sequence) for group in groups] + [dataset]
        found = (_numbers(place, keyword, count) for place in places if place is not None)
        return next((values for values in found if values is not None), None)

    slope = numbers("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept", 1)
    return Frame(
        index=index,
        slope=None if slope is None and intercept is None else (slope or (1.0,))[0],
        intercept=(intercept or (0.0,))[0],
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=numbers("PixelMeasuresSequence", "PixelSpacing", 2),
    )


def _first(dataset: Dataset, sequence: str) -> Any:
    items = dataset.get(sequence)
    return items[0] if items else None


def _numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """The element's finite numbers, ``count`` where given; None where it is missing, empty or malformed."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    try:
        values = tuple(float(number) for number in (value if isinstance(value, Sequence | list) else [value]))
    except TypeError:
        return None
    return values if count in {None, len(values)} and values and np.isfinite(values).all() else None


def _stored(dataset: Dataset, index: int, decoder: LosslessDecoder) -> NDArray[np.generic]:
    """Stored values of one frame, shape (rows, columns), any integer type."""
    from pydicom.encaps import get_frame  # noqa: PLC0415 - slow to import
    from pydicom.pixels import pixel_array  # noqa: PLC0415 - slow to import

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax not in _LOSSLESS_JPEG:
        plugin = "" if syntax in _NATIVE else "pydicom" if syntax == _RLE else "pillow"
        values: NDArray[np.generic] = pixel_array(dataset, index=index, decoding_plugin=plugin)
        return values
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    frame = get_frame(dataset.PixelData, index, number_of_frames=count)
    rows, columns, signed = int(dataset.Rows), int(dataset.Columns), bool(dataset.PixelRepresentation)
    allocated = 8 if _jpeg_precision(frame, rows, columns) <= 8 else 16
    bits = min(int(dataset.BitsStored), allocated)
    if dataset.BitsAllocated not in {8, 16} or not 2 <= int(dataset.BitsStored) <= dataset.BitsAllocated:
        raise ValueError(f"{dataset.BitsStored} bits stored in {dataset.BitsAllocated}")
    pixels = decoder.decode(frame, FrameLayout(syntax, rows, columns, allocated, bits, signed))
    stored = np.frombuffer(pixels, f"<{'i' if signed else 'u'}{allocated // 8}")
    unused = allocated - bits if signed else 0
    return ((stored << unused) >> unused).reshape(rows, columns)  # the sign bit is the highest stored one


_START_OF_FRAME = frozenset({0xC3, 0xF7})
_WITHOUT_LENGTH = frozenset({0x01, 0xFF, *range(0xD0, 0xDA)})


def _jpeg_precision(frame: bytes, rows: int, columns: int) -> int:
    """Bits per sample of a JPEG stream, once it is sure to be as large as the DICOM header says.

    Raises:
        ValueError: no JPEG Lossless or JPEG-LS stream of one component and that size.
    """
    if frame[:2] != b"\xff\xd8":
        raise ValueError("the compressed pixel data are no JPEG stream")
    position = 2
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in _START_OF_FRAME and position + 10 <= len(frame):
            found = tuple(int.from_bytes(frame[position + at : position + at + 2], "big") for at in (5, 7))
            if found != (rows, columns) or frame[position + 9] != 1:
                raise ValueError(
                    f"compressed pixel data of {found[1]} x {found[0]} do not fit the header's {columns} x {rows}"
                )
            return frame[position + 4]
        if marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("the compressed pixel data hold no JPEG frame header")


def _slice(
    dataset: Dataset, frame: Frame, stored: NDArray[np.generic], name: str, *, several: bool
) -> CTSlice:
    if stored.ndim != 2:
        raise ValueError(f"pixel data of shape {stored.shape}")
    origin = Origin(
        file=name,
        file_format="DICOM",
        mode=str(dataset.PhotometricInterpretation),
        frame=frame.index if several else None,
        series=str(dataset.get("SeriesInstanceUID", "") or "") or None,
        position=frame.position,  # type: ignore[arg-type]
        orientation=frame.orientation,  # type: ignore[arg-type]
        spacing=frame.spacing,  # type: ignore[arg-type]
        patient=Patient(*(_text(dataset, keyword) for keyword in _IDENTIFIERS)),
    )
    if frame.slope is None:
        return _capture(dataset, stored, origin)
    hounsfield = _hounsfield(dataset, frame.slope, frame.intercept, stored)
    return CTSlice(LUNG.apply(hounsfield), origin, hounsfield)


def _text(dataset: Dataset, keyword: str) -> str | None:
    """An element's text on one line; None where it is missing, or damaged: no slice fails for its name."""
    try:
        return one_line(str(dataset.get(keyword, "") or ""), _LONGEST_TEXT) or None
    except Exception:  # noqa: BLE001 - pydicom converts when asked, and raises whatever the value provokes
        return None


def _hounsfield(dataset: Dataset, slope: float, intercept: float, stored: NDArray[np.generic]) -> Hounsfield:
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if dataset.PhotometricInterpretation == "MONOCHROME1" and not _air_around(values):
        # Stored as a negative: invert it within the range that the stored bits span.
        bits = int(dataset.BitsStored)
        ends = -1 if dataset.PixelRepresentation else 2**bits - 1  # lowest plus highest stored value
        values = np.float32(ends) * np.float32(slope) + 2 * np.float32(intercept) - values
    hounsfield = as_hounsfield(values)
    hounsfield[_padding(dataset, stored)] = AIR
    return hounsfield


def _air_around(values: NDArray[np.float32]) -> bool:
    """Whether the image's border is air, as it is in Hounsfield units: then nothing is stored as a negative.

    MONOCHROME1 only says that a viewer shall show low values bright; some makers store negatives with it.
    """
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return bool(np.median(border) < -500)


def _padding(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels outside the scanner's field of view, shape (rows, columns)."""
    found = _numbers(dataset, "PixelPaddingValue", 1)
    if found is None:
        return np.zeros(stored.shape, bool)
    bits = int(dataset.BitsAllocated)
    first = int(found[0])
    if dataset.PixelRepresentation and first >= 2 ** (bits - 1):  # written as unsigned by mistake
        first -= 2**bits
    other = _numbers(dataset, "PixelPaddingRangeLimit", 1)
    last = first if other is None else int(other[0])
    return np.asarray(
        (np.greater_equal(stored, min(first, last)) & np.less_equal(stored, max(first, last))), np.bool_
    )


def _capture(dataset: Dataset, stored: NDArray[np.generic], origin: Origin) -> CTSlice:
    """A slice whose file does not say how its values relate to Hounsfield units."""
    pixels, hounsfield = interpret(stored, *extent(stored))
    level, width = (_numbers(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    if hounsfield is None and level and width and width[0] > 0:
        pixels = Window(level[0], width[0]).apply(stored)
    if hounsfield is None and dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.subtract(255, pixels, dtype=np.uint8)
    return CTSlice(pixels, origin, hounsfield)
