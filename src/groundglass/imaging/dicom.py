"""CT slices from DICOM files, in Hounsfield units and the lung window."""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.files import one_line
from groundglass.imaging.lossless import FrameLayout, LosslessDecoder
from groundglass.imaging.slice import CTSlice, Hounsfield, Origin, Patient, VoxelGrid, is_uid
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source, guard, guarded
from groundglass.imaging.window import AIR, LUNG, Window, as_hounsfield, extent, interpret

if TYPE_CHECKING:
    from pydicom import Dataset

# JPEG Lossless (Process 14, and Selection Value 1), JPEG-LS Lossless and Near-Lossless: decoded by GDCM in a process
# of its own; pydicom decodes RLE, Pillow the other JPEG and JPEG 2000.
_LOSSLESS_JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 81))
_RLE = "1.2.840.10008.1.2.5"
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED, _EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_NATIVE = frozenset({_IMPLICIT, _EXPLICIT, _DEFLATED, _EXPLICIT_BIG_ENDIAN})

_IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate")
_PLACE = (
    *_IDENTIFIERS,
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "Rows", "Columns"),
    *("NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_LONGEST_TEXT = 324  # of a Person Name: five components of 64 characters, and the carets between them
_EVEN = 0.01
"""Most mm by which a step between two frames of an even stack may differ from their mean."""
_MODALITIES = frozenset({"CT", "OT", "SC", ""})
_MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})


@dataclass(frozen=True)
class _Frame:
    """One image of a DICOM file without its pixels; lengths in mm, None where the file does not say."""

    index: int  # from 0, in the file
    slope: float | None  # from stored values to Hounsfield units
    intercept: float
    position: tuple[float, ...] | None  # of the first pixel's centre
    orientation: tuple[float, ...] | None  # direction cosines of rows, then columns
    spacing: tuple[float, ...] | None  # between rows and between columns

    def height(self) -> float | None:
        """Position along the slice normal."""
        if self.position is None or self.orientation is None:
            return None
        return float(np.dot(self.position, np.cross(self.orientation[:3], self.orientation[3:])))


@dataclass(frozen=True, order=True)
class Place:
    """Where a DICOM file belongs; places of one series sort along the slice normal.

    Attributes:
        series: what its series is known by; empty for a file that belongs to none.
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
    frames = _frames(dataset, limits)
    grid = _grid(frames, int(dataset.Columns), int(dataset.Rows))
    for frame in frames:
        ct_slice = _slice(dataset, frame, _stored(dataset, frame.index, decoder), source.name)
        if len(frames) > 1:
            origin = replace(ct_slice.origin, frame=frame.index, grid=grid)
            ct_slice = replace(ct_slice, origin=origin)
        yield ct_slice


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
        frame = _frames(dataset, limits)[0]
        study, series, stack = (
            _text(dataset, "StudyInstanceUID"),
            _text(dataset, "SeriesInstanceUID"),
            _stack(dataset, frame),
        )
        folder = "" if is_uid(series) else source.name.rpartition("/")[0]
        return Place(
            series=f"{study} {series} {stack} {folder}" if stack else "",
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
    deflated = _is_deflated(source.head())
    if deflated:
        _check_deflated(source.read(limits), limits)
    whole = deflated or tags is None
    with io.BytesIO(source.read(limits)) if whole else source.open() as stream:
        dataset = dcmread(stream, force=True, stop_before_pixels=tags is not None, specific_tags=tags)
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        explicit = _EXPLICIT if little else _EXPLICIT_BIG_ENDIAN
        dataset.file_meta.TransferSyntaxUID = _IMPLICIT if implicit else explicit
    return dataset


def _is_deflated(head: bytes) -> bool:
    return head[128:132] == b"DICM" and _DEFLATED.encode() in head[:4096]


def _check_deflated(content: bytes, limits: Limits) -> None:
    """Inflate a deflated data set piecewise, since pydicom would do it at once and without a bound."""
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
    of = f"modality {modality or 'unknown'}"
    if "PixelData" not in dataset:
        raise ImageError(name, f"holds no pixel data ({of}, SOP class {kind or 'unknown'})")
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1 or photometric not in _MONOCHROME:
        raise NotASliceError(
            name, f"a colour image ({photometric or 'unknown colours'}, {of}), not a CT slice"
        )
    if modality not in _MODALITIES:
        raise NotASliceError(name, f"{of}, not a CT slice")
    if "LOCALIZER" in str(dataset.get("ImageType", "")).upper():
        raise NotASliceError(name, "a localizer, not a slice")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows < 1 or columns < 1:
        raise ImageError(name, f"an image of {columns} x {rows} pixels")
    if rows * columns > limits.pixels:
        raise ImageError(name, f"{columns} x {rows} pixels are more than the limit of {limits.pixels:,}")


def _frames(dataset: Dataset, limits: Limits) -> list[_Frame]:
    """The frames of a data set; sorted along the slice normal where all of them have a position."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if not 1 <= count <= limits.frames:
        raise ValueError(f"{count:,} frames, 1 to {limits.frames:,} can be read")
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    by_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    frames = [
        _frame(index, [by_frame[index] if index < len(by_frame) else None, shared], dataset)
        for index in range(count)
    ]
    if any(frame.height() is None for frame in frames):
        return frames
    return sorted(frames, key=lambda frame: (frame.height() or 0.0, frame.index))


def _frame(index: int, groups: list[Dataset | None], dataset: Dataset) -> _Frame:
    """A frame's geometry and rescaling from its functional groups, else from the data set itself."""

    def numbers(sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        places = [_first(group, sequence) for group in groups if group is not None] + [dataset]
        found = (_numbers(place, keyword, count) for place in places if place is not None)
        return next((values for values in found if values is not None), None)

    slope = numbers("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept", 1)
    return _Frame(
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
    """Bits per sample of a JPEG Lossless or JPEG-LS stream, once it is sure to be of the header's size."""
    position = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in _START_OF_FRAME and position + 10 <= len(frame):
            height, width = (int.from_bytes(frame[position + at : position + at + 2], "big") for at in (5, 7))
            if (height, width) != (rows, columns) or frame[position + 9] != 1:
                raise ValueError(
                    f"pixel data of {width} x {height} do not fit the header's {columns} x {rows}"
                )
            return frame[position + 4]
        if marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("the compressed pixel data hold no JPEG frame header")


def _grid(frames: Sequence[_Frame], columns: int, rows: int) -> VoxelGrid | None:
    """The voxels of sorted frames; None where they are not one evenly spaced stack."""
    first, positions = frames[0], [frame.position for frame in frames]
    alike = all((frame.orientation, frame.spacing) == (first.orientation, first.spacing) for frame in frames)
    if first.orientation is None or first.spacing is None or None in positions or not alike:
        return None
    places = np.array(positions, np.float64)
    steps = np.diff(places, axis=0)
    if not len(steps) or np.abs(steps - steps.mean(axis=0)).max() > _EVEN or not np.any(steps[0]):
        return None
    along_row, along_column = np.reshape(first.orientation, (2, 3))
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [along_row * first.spacing[1], along_column * first.spacing[0], steps.mean(axis=0), places[0]]
    )
    affine[:2] *= -1  # to RAS
    order = tuple(frame.index for frame in frames)
    return VoxelGrid((columns, rows, len(frames)), tuple(map(tuple, affine.tolist())), frames=order)


def _slice(dataset: Dataset, frame: _Frame, stored: NDArray[np.generic], name: str) -> CTSlice:
    if stored.ndim != 2:
        raise ValueError(f"pixel data of shape {stored.shape}")
    origin = Origin(
        file=name,
        file_format="DICOM",
        mode=str(dataset.PhotometricInterpretation),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        number=_instance_number(dataset),
        stack=_stack(dataset, frame),
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


def _instance_number(dataset: Dataset) -> int | None:
    try:
        return int(str(dataset.get("InstanceNumber")))
    except Exception:  # noqa: BLE001 - as for _text
        return None


def _stack(dataset: Dataset, frame: _Frame) -> str | None:
    """Four hexadecimal digits of patient and geometry; None for a file that says nothing of a series.

    So two patients or two geometries under the same UIDs are two series. The digits are too few to find out who
    the patient is: many people have the same.
    """
    uids = tuple(_text(dataset, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID"))
    if uids[1] is None and frame.position is None and _instance_number(dataset) is None:
        return None
    who = tuple((_text(dataset, keyword) or "").casefold().rstrip("^ ") for keyword in _IDENTIFIERS)
    # Steps of a third and of 4 %, set off so that no usual value lies near the end of one: what is written with
    # other decimals in another slice is the same.
    towards = [math.floor(3 * cosine + 0.137) for cosine in frame.orientation or ()]
    apart = [math.floor(18 * math.log2(length) + 0.137) for length in frame.spacing or () if length > 0]
    shape = (dataset.get("Rows"), dataset.get("Columns"), towards, apart)
    return hashlib.blake2b(repr((uids, who, shape)).encode(), digest_size=2).hexdigest()


def _hounsfield(dataset: Dataset, slope: float, intercept: float, stored: NDArray[np.generic]) -> Hounsfield:
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    # MONOCHROME1 only says that a viewer shall show low values bright, but some makers store negatives with it:
    # where the border is not air, they are inverted within the range that the stored bits span.
    if dataset.PhotometricInterpretation == "MONOCHROME1" and not np.median(border) < -500:
        ends = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1  # lowest plus highest
        values = np.float32(ends) * np.float32(slope) + 2 * np.float32(intercept) - values
    hounsfield = as_hounsfield(values)
    padding = _numbers(dataset, "PixelPaddingValue", 1)
    if padding is not None:  # outside the scanner's field of view
        first, bits = int(padding[0]), int(dataset.BitsAllocated)
        if dataset.PixelRepresentation and first >= 2 ** (bits - 1):  # written as unsigned by mistake
            first -= 2**bits
        limit = _numbers(dataset, "PixelPaddingRangeLimit", 1)
        low, high = sorted((first, first if limit is None else int(limit[0])))
        hounsfield[np.greater_equal(stored, low) & np.less_equal(stored, high)] = AIR
    return hounsfield


def _capture(dataset: Dataset, stored: NDArray[np.generic], origin: Origin) -> CTSlice:
    """A slice whose file does not say how its values relate to Hounsfield units."""
    pixels, hounsfield = interpret(stored, *extent(stored))
    level, width = (_numbers(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    if hounsfield is None and level and width and width[0] > 0:
        pixels = Window(level[0], width[0]).apply(stored)
    if hounsfield is None and dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = np.subtract(255, pixels, dtype=np.uint8)
    return CTSlice(pixels, origin, hounsfield)
