"""CT slices from DICOM files, in Hounsfield units and the lung window."""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.files import one_line
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.raster import COLOURED_SHARE, coloured_share
from groundglass.imaging.slice import CTSlice, Grey, Hounsfield, Origin, Patient, is_uid
from groundglass.imaging.source import Limits, Source, guard
from groundglass.imaging.window import AIR, LUNG, SURELY_HOUNSFIELD, Window, as_hounsfield, extent, find_scale

if TYPE_CHECKING:
    from pydicom import Dataset

_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_EXPLICIT_BIG_ENDIAN, _RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
# Pixels that pydicom reads by itself: not compressed, or by RLE.
_PLAIN = frozenset({_IMPLICIT, _EXPLICIT, _EXPLICIT_BIG_ENDIAN, _RLE})
# Those that imagecodecs decodes: every Huffman-coded JPEG, JPEG-LS, JPEG 2000 and High-Throughput JPEG 2000.
_CODED = frozenset(
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70, 80, 81, 90, 91, 201, 202, 203)
)
_UNSUPPORTED = "is not supported; store it uncompressed, in JPEG, JPEG-LS, JPEG 2000 or RLE"
_JPEG, _JPEG_LS, _JPEG_2000 = "jpeg8", "jpegls", "jpeg2k"  # codecs of imagecodecs

_IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate")
_PLACE = (
    *_IDENTIFIERS,
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "Rows", "Columns"),
    *("NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_LONGEST_TEXT = 324  # of a Person Name: five components of 64 characters, and the carets between them
_LARGEST, _MOST_READS = 1e12, 2_000_000  # number that a header may hold; two or three are of one element
_ALIKE = 0.05  # by which two normals may differ along an axis and still be those of one stack
_MODALITIES = frozenset({"CT", "OT", "SC", ""})
_CT_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2"))  # enhanced, converted
_HOUNSFIELD = frozenset({"HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "HOUNDSFIELD UNIT"})
_DIRECTORY = "1.2.840.10008.1.3.10"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class _Frame:
    """One image of a DICOM file without its pixels; None where the file does not say."""

    origin: Origin
    slope: float | None  # from stored values to those of ``unit``
    intercept: float
    unit: str  # Rescale Type
    window: tuple[float, float] | None  # the first level and width


def stack_order(places: Sequence[Origin]) -> list[int]:
    """Indices of slices stack by stack, each from the lowest to the highest position along its normal.

    Normals that differ by less than a tolerance are one stack's, whose first one counts for all. A slice of no
    orientation has the first one that there is, or is axial. Those of no position come last; slices of one height
    are ordered by their Instance Numbers.
    """
    default = next((place.orientation for place in places if place.orientation), (1, 0, 0, 0, 1, 0))
    normals: list[NDArray[np.float64]] = []
    keys: list[tuple[int, float, int]] = []
    for place in places:
        normal = np.cross(*np.reshape(place.orientation or default, (2, 3)))
        alike = (at for at, other in enumerate(normals) if np.abs(normal - other).max() < _ALIKE)
        stack = next(alike, len(normals))
        normals += [normal] * (stack == len(normals))
        height = np.inf if place.position is None else round(float(np.dot(place.position, normals[stack])), 3)
        keys.append((stack, height, place.number or 0))
    return sorted(range(len(places)), key=keys.__getitem__)


def read_dicom(source: Source, decoder: FrameDecoder, limits: Limits) -> Iterator[CTSlice]:
    """Every frame of a DICOM file, those of a multi-frame file sorted along the slice normal.

    Stored values of a CT image are rescaled to Hounsfield units and shown in the lung window, whatever window the
    header asks for. Values of another unit, or of none (a secondary capture), are shown in their own first window.
    A file that is damaged, without pixel data, in colour, not of a CT or too large raises an error, any but an
    ``ImageError`` for the caller to guard.
    """
    dataset = open_dataset(source, limits)
    _check(dataset, source.name, limits)
    for frame in _frames(dataset, source.name, limits):
        yield _slice(dataset, frame, _stored(dataset, frame.origin.frame or 0, decoder))


def place_in_series(source: Source, limits: Limits) -> tuple[str, Origin] | None:
    """What a DICOM file's series is known by, empty where it belongs to none, and its place, from the header alone.

    None where it is a directory, a report or the like. The place is Instance Number, position and orientation.

    Raises:
        ImageError: damaged, or an image without rows.
    """
    from pydicom.uid import UID  # noqa: PLC0415 - slow to import

    with guard(source.name, "DICOM"):
        dataset = open_dataset(source, limits, _PLACE)
        if "Rows" not in dataset:
            kind = _kind(dataset)
            if "Image Storage" in UID(kind).name or (not kind and dataset.preamble is not None):
                raise ImageError(source.name, "a DICOM file without an image; it may be truncated")
            return None
        dataset.NumberOfFrames = 1  # the first one places the file
        own = _frames(dataset, source.name, limits)[0].origin
        folder = "" if is_uid(own.series) else source.name.rpartition("/")[0]
        series = f"{own.study} {own.series} {own.stack} {folder}" if own.stack else ""
        return series, Origin(own.file, "DICOM", number=own.number, position=own.position, orientation=own.orientation)


def _kind(dataset: Dataset) -> str:
    """SOP class, or nothing where the file does not say."""
    return _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID") or ""


class _Remembered:
    """A stream that keeps what was read: an archive's member is unpacked again from its beginning for a step back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, io.BytesIO()
        self.seek, self.tell = self._kept.seek, self._kept.tell

    def read(self, size: int) -> bytes:
        place = self.tell()
        if (missing := place + size - self._kept.getbuffer().nbytes) > 0:
            self.seek(0, io.SEEK_END)
            self._kept.write(self._stream.read(missing))
            self.seek(place)
        return self._kept.read(size)


def open_dataset(source: Source, limits: Limits, tags: Sequence[str] | None = None) -> Dataset:
    """The data set of a file; with ``tags`` only these elements, and nothing is read beyond the header."""
    from pydicom import dcmread  # noqa: PLC0415 - slow to import

    source.check_size(limits)
    reads = iter(range(_MOST_READS))
    with source.open() if tags else io.BytesIO(source.read(limits)) as opened:
        stream = opened if source.member is None or not tags else _Remembered(opened)

        def read(size: int | None = None) -> bytes:
            if size is None:  # pydicom asks for all the rest only to inflate it, at once and without a bound
                raise ImageError(source.name, f"its compression (Deflated Explicit VR Little Endian) {_UNSUPPORTED}")
            if next(reads, None) is None:
                raise ImageError(source.name, "more elements than a CT has")
            return stream.read(size)

        sized: Any = SimpleNamespace(read=read, seek=stream.seek, tell=stream.tell)
        dataset = dcmread(sized, force=True, stop_before_pixels=tags is not None, specific_tags=tags)
    if tags is not None:
        dataset.buffer = None  # which would keep the whole file
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = _EXPLICIT if little else _EXPLICIT_BIG_ENDIAN
        dataset.file_meta.TransferSyntaxUID = _IMPLICIT if implicit else explicit
    return dataset


def _check(dataset: Dataset, name: str, limits: Limits) -> None:
    """Refuse what is no slice of a CT, and complete what the pixels' decoders insist on."""
    modality = (_text(dataset, "Modality") or "").upper()
    of = f"modality {modality or 'unknown'}"
    if _kind(dataset) == _DIRECTORY:
        raise ImageError(name, "a DICOMDIR, which lists images and holds none; name its folder instead")
    if not any(dataset.get(keyword) for keyword in _PIXELS):
        raise ImageError(name, f"no pixel data; it may be truncated ({of}, SOP class {_kind(dataset) or 'unknown'})")
    if modality not in _MODALITIES or (modality == "OT" and _text(dataset, "Manufacturer") == "groundglass"):
        raise NotASliceError(name, f"{of}, not a CT slice")
    if "LOCALIZER" in str(dataset.get("ImageType", "")).upper():
        raise NotASliceError(name, "a localizer, not a slice")
    if "SegmentedRedPaletteColorLookupTableData" in dataset:  # which pydicom unpacks without a bound
        raise ImageError(name, "a segmented palette is not supported; store it in grey")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _PLAIN | _CODED:
        raise ImageError(name, f"its compression ({one_line(syntax.name, 80)}) {_UNSUPPORTED}")
    rows, columns, samples = (int(_number(dataset, k) or 0) for k in ("Rows", "Columns", "SamplesPerPixel"))
    limits.check_pixels(columns, rows, name)
    if (stored := _number(dataset, "BitsStored")) and (_number(dataset, "HighBit") or 0) >= stored:
        raise ImageError(name, "its values do not begin at the lowest bit, which is not supported; convert it")
    dataset.SamplesPerPixel = samples = samples or 1
    photometric = (_text(dataset, "PhotometricInterpretation") or "").upper()
    if samples == 1:  # one sample is grey, whatever it is called, unless a palette gives it a colour
        known = {"MONOCHROME1", "PALETTE COLOR"}
        dataset.PhotometricInterpretation = photometric if photometric in known else "MONOCHROME2"
    elif samples == 3:
        dataset.PhotometricInterpretation = photometric or "RGB"
        dataset.PlanarConfiguration = int(_number(dataset, "PlanarConfiguration") or 0)
    else:
        raise NotASliceError(name, f"a colour image ({photometric or 'unknown'}, {of}), not a CT slice")


def _frames(dataset: Dataset, name: str, limits: Limits) -> list[_Frame]:
    """The frames of a data set; sorted along the slice normal where all of them have a position."""
    count = int(_number(dataset, "NumberOfFrames") or 1) or 1
    if not 1 <= count <= limits.frames:
        raise ValueError(f"{count:,} frames, 1 to {limits.frames:,} can be read")
    numbers = _numbers(dataset, "InstanceNumber", 1)
    whole = Origin(
        file=name,
        file_format="DICOM",
        mode=str(dataset.get("PhotometricInterpretation")),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        number=int(numbers[0]) if numbers else None,
        description=_text(dataset, "SeriesDescription"),
        patient=Patient(*(_text(dataset, keyword) for keyword in _IDENTIFIERS)),
    )
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    by_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    origins = [replace(whole, frame=index) for index in range(count)] if count > 1 else [whole]
    frames = [_frame(each, [*by_frame[at : at + 1], shared], dataset) for at, each in enumerate(origins)]
    if any(frame.origin.position is None for frame in frames):
        return frames
    return [frames[index] for index in stack_order([frame.origin for frame in frames])]


def _frame(origin: Origin, groups: list[Dataset | None], dataset: Dataset) -> _Frame:
    """A frame's geometry and rescaling from its functional groups, else from the data set itself."""

    def found(sequence: str, keyword: str, read: Callable[..., Any], *count: int) -> Any:
        places = [_first(group, sequence) for group in groups if group is not None] + [dataset]
        values = (read(place, keyword, *count) for place in places if place is not None)
        return next((value for value in values if value is not None), None)

    slope = found("PixelValueTransformationSequence", "RescaleSlope", _number)
    intercept = found("PixelValueTransformationSequence", "RescaleIntercept", _number)
    thickness = found("PixelMeasuresSequence", "SliceThickness", _numbers, 1)
    spacing = found("PixelMeasuresSequence", "PixelSpacing", _numbers, 2)
    level = found("FrameVOILUTSequence", "WindowCenter", _numbers)
    width = found("FrameVOILUTSequence", "WindowWidth", _numbers)
    origin = replace(
        origin,
        position=found("PlanePositionSequence", "ImagePositionPatient", _numbers, 3),
        orientation=found("PlaneOrientationSequence", "ImageOrientationPatient", _directions),
        spacing=spacing if spacing and min(spacing) > 0 else None,
        thickness=thickness[0] if thickness else None,
    )
    return _Frame(
        origin=replace(origin, stack=_stack_digits(dataset, origin)),
        slope=None if slope is None and intercept is None else slope or 1.0,  # 0 would leave nothing
        intercept=intercept or 0.0,
        unit=(found("PixelValueTransformationSequence", "RescaleType", _text) or "").upper(),
        window=(level[0], width[0]) if level and width and width[0] >= 1 else None,
    )


def _first(dataset: Dataset, sequence: str) -> Any:
    items = dataset.get(sequence)
    return items[0] if items else None


def _is_huge(dataset: Dataset, keyword: str) -> bool:
    """Whether an element that is not read yet is longer than any of its kind is."""
    raw = getattr(dataset.get_item(keyword), "value", None)
    return isinstance(raw, bytes) and len(raw) > 4096


def _numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """The element's numbers, ``count`` where given; None where it is missing, empty, malformed or absurd."""
    try:
        value: Any = None if _is_huge(dataset, keyword) else dataset.get(keyword)
        one = value is None or isinstance(value, str | bytes) or not isinstance(value, Sequence)
        values = tuple(float(number) for number in ([value] if one else value))
    except Exception:  # noqa: BLE001 - pydicom converts when asked, and raises whatever the value provokes
        return None
    return values if count in {None, len(values)} and values and np.abs(values).max() < _LARGEST else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    """The element's number, None where it is missing or empty; ValueError where it is something else."""
    raw, values = dataset.get_item(keyword), _numbers(dataset, keyword, 1)
    text = "" if raw is None or raw.value is None else raw.value
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    if values is None and text.strip(" \0"):
        raise ValueError(f"{keyword} is no number but {one_line(text, 40)!r}")
    return values[0] if values else None


def _directions(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Direction cosines of rows and columns; None where they are missing, or no two directions at right angles."""
    values = _numbers(dataset, keyword, 6)
    if values is None:
        return None
    products = np.reshape(values, (2, 3)) @ np.reshape(values, (2, 3)).T
    return values if np.abs(products - np.eye(2)).max() < 0.1 else None


def _stored(dataset: Dataset, index: int, decoder: FrameDecoder) -> NDArray[Any]:
    """Stored values of one frame, shape (rows, columns), or (rows, columns, 3) in red, green and blue."""
    from pydicom.encaps import get_frame  # noqa: PLC0415 - slow to import
    from pydicom.pixels import convert_color_space, pixel_array  # noqa: PLC0415 - slow to import

    syntax, bits = dataset.file_meta.TransferSyntaxUID, dataset.get("BitsAllocated", 0)
    if syntax in _PLAIN - {_RLE}:
        return np.asarray(pixel_array(dataset, index=index))
    frame = get_frame(dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1))
    if syntax == _RLE:  # which pydicom unpacks before it looks at the size
        if len(frame) > 1024 + 0.14 * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * bits:
            raise ValueError("its frame is larger than what it holds")
        return np.asarray(pixel_array(dataset, index=index))
    codec, precision, *shape = _frame_header(frame)
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    if shape != [rows, columns, samples]:
        raise ValueError(f"pixel data of {shape[1]} x {shape[0]} do not fit the header's {columns} x {rows}")
    allocated = next(bits for bits in (8, 16, 32) if precision <= bits)
    unused = allocated - min(int(dataset.BitsStored), allocated if codec == _JPEG else precision)
    pixels = decoder.decode(frame, codec, samples, rows * columns * samples * allocated // 8)
    kind = "i" if dataset.PixelRepresentation else "u"
    stored = np.frombuffer(pixels, f"<{kind}{allocated // 8}").reshape(rows, columns, samples)
    stored = (stored << unused) >> unused  # the sign bit is the highest stored one
    # JFIF is by definition in these colours, whatever the header calls them.
    if samples == 3 and (dataset.PhotometricInterpretation.startswith("YBR_FULL") or frame[6:10] == b"JFIF"):
        return np.asarray(convert_color_space(stored, "YBR_FULL", "RGB"))
    return stored[..., 0] if samples == 1 else stored


def _frame_header(frame: bytes) -> tuple[str, int, int, int, int]:
    """What a compressed frame says of itself: its codec, bits per sample, rows, columns, samples per pixel."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # of JPEG 2000, maybe behind the boxes of a file
    if frame[:2] != b"\xff\xd8" and start >= 0:
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        samples, bits = struct.unpack_from(">HB", frame, start + 40)
        return _JPEG_2000, (bits & 0x7F) + 1, height - top, width - left, samples
    position = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while position + 10 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}:
            return _JPEG_LS if marker == 0xF7 else _JPEG, *struct.unpack_from(">BHHB", frame, position + 4)
        # Fill bytes may stand before a marker; every other segment up to the frame's has a length.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("the compressed pixel data hold no frame header that can be read")


def _slice(dataset: Dataset, frame: _Frame, stored: NDArray[np.generic]) -> CTSlice:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut  # noqa: PLC0415 - slow to import

        stored = apply_color_lut(stored, dataset)
    if stored.ndim == 3:
        return CTSlice(_grey(stored, frame.origin.file, dataset), frame.origin)
    if _is_hounsfield(dataset, frame, stored):
        hounsfield = _hounsfield(dataset, frame.slope or 1.0, frame.intercept, stored)
        return CTSlice(LUNG.apply(hounsfield), frame.origin, hounsfield)
    return _capture(dataset, frame, stored)


def _grey(colours: NDArray[Any], name: str, dataset: Dataset) -> Grey:
    """The grey of an image whose colours, shape (H, W, 3 or 4), are hardly any."""
    bits = 8 * colours.dtype.itemsize if dataset.SamplesPerPixel == 1 else int(dataset.BitsStored)
    rgb = np.ascontiguousarray(colours[..., :3] >> max(bits - 8, 0), np.uint8)
    if (share := coloured_share(rgb)) > COLOURED_SHARE:
        kind = f"a colour image ({dataset.PhotometricInterpretation}), not a CT slice"
        raise NotASliceError(name, f"{kind}: {share:.0%} of its pixels are coloured")
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _ends(dataset: Dataset) -> tuple[float, float]:
    """Lowest and highest value that can be stored."""
    if "PixelData" not in dataset:
        return -np.inf, np.inf
    count = 2 ** min(int(dataset.BitsStored), 64)
    return (-count // 2, count // 2 - 1) if dataset.PixelRepresentation else (0, count - 1)


def _is_hounsfield(dataset: Dataset, frame: _Frame, stored: NDArray[np.generic]) -> bool:
    """Whether rescaled values are Hounsfield units.

    The file says so, or is a CT image and says of no other unit; and its values can reach from air to water, which
    those of an 8-bit picture do not. Of the unit ``US``, unspecified, which GDCM writes into every file that it
    transcodes, are values of a CT image that do reach down to air.
    """
    if frame.slope is None:
        return False
    kind, modality = _kind(dataset), (_text(dataset, "Modality") or "").upper()
    of_ct = modality in {"CT", ""} and (kind in _CT_CLASSES or not kind)
    if frame.unit not in _HOUNSFIELD and not (of_ct and frame.unit in {"", "US"}):
        return False
    ends = extent(stored) if frame.unit == "US" else _ends(dataset)
    lowest, highest = sorted(frame.slope * end + frame.intercept for end in ends)
    return lowest < SURELY_HOUNSFIELD and highest >= 0


def _text(dataset: Dataset, keyword: str) -> str | None:
    """An element's text on one line; None where it is missing, or damaged: no slice fails for its name."""
    try:
        value = "" if _is_huge(dataset, keyword) else dataset.get(keyword, "")
        return one_line(str(value or ""), _LONGEST_TEXT) or None
    except Exception:  # noqa: BLE001 - pydicom converts when asked, and raises whatever the value provokes
        return None


def _stack_digits(dataset: Dataset, origin: Origin) -> str | None:
    """Four hexadecimal digits of patient and size, without a UID of geometry too; None for what is of no series.

    So two patients under the same UIDs are two series. The digits are too few to find out who the patient is: many
    people have the same.
    """
    if origin.series is None and origin.position is None and origin.number is None:
        return None
    who = [(_text(dataset, keyword) or "").casefold().rstrip("^ ") for keyword in _IDENTIFIERS]
    known = [origin.series, origin.study, *who, dataset.get("Rows"), dataset.get("Columns")]
    if not is_uid(origin.series):
        # Steps of a third and of 4 %, set off so that no usual value lies near the end of one: what is written with
        # other decimals in another slice is the same.
        known += [math.floor(3 * cosine + 0.137) for cosine in origin.orientation or ()]
        known += [math.floor(18 * math.log2(length) + 0.137) for length in origin.spacing or ()]
    return hashlib.blake2b(repr(known).encode(), digest_size=2).hexdigest()


def _hounsfield(dataset: Dataset, slope: float, intercept: float, stored: NDArray[np.generic]) -> Hounsfield:
    values: NDArray[np.floating] = stored.astype(np.float32 if stored.itemsize <= 2 else np.float64)
    values *= slope
    values += intercept
    # MONOCHROME1 only says that a viewer shall show low values bright, but some makers store negatives with it:
    # where the border is not air, they are inverted within the range that the stored bits span.
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    if dataset.PhotometricInterpretation == "MONOCHROME1" and not np.median(border) < -500:
        values = sum(_ends(dataset)) * slope + 2 * intercept - values
    hounsfield = as_hounsfield(values)
    padding = _numbers(dataset, "PixelPaddingValue", 1)
    if padding is not None:  # outside the scanner's field of view
        lowest, highest = _ends(dataset)
        limit = _numbers(dataset, "PixelPaddingRangeLimit", 1) or padding
        # Written with the other sign by mistake, they are brought to what is stored.
        low, high = sorted((value - lowest) % (highest - lowest + 1) + lowest for value in (*padding, *limit))
        hounsfield[np.greater_equal(stored, low) & np.less_equal(stored, high)] = AIR
    return hounsfield


def _capture(dataset: Dataset, frame: _Frame, stored: NDArray[np.generic]) -> CTSlice:
    """A slice whose values are not, or not said to be, Hounsfield units."""
    values = stored if frame.slope is None else stored.astype(np.float64) * frame.slope + frame.intercept
    lowest, highest = extent(values)
    level, width = frame.window or (np.inf, 0.0)
    # A window that does not meet the values was made for others.
    windowed = min(lowest, frame.intercept) + width / 4 <= level <= highest
    grey, hounsfield = frame.slope is not None or lowest >= SURELY_HOUNSFIELD, None
    if windowed and grey:
        pixels = Window(level - 0.5, max(width - 1, 0.01)).apply(values)  # DICOM's linear function
    else:
        pixels, hounsfield = find_scale(stored, frame.origin.file, grey=grey).apply(stored)
    if hounsfield is None and dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.subtract(255, pixels, dtype=np.uint8)
    return CTSlice(pixels, frame.origin, hounsfield)
