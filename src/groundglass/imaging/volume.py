"""Axial CT slices from MetaImage volumes (.mhd with .raw or .zraw, .mha), as LUNA16 comes.

Read here rather than by ITK because a header names the file of its voxels: that name is followed only within
the header's own folder, and sizes are checked before anything is allocated. Format:
https://itk.org/Wiki/ITK/MetaIO/Documentation

A volume of any orientation as axial slices the way radiologists see them.

Axial CT slices from NIfTI volumes (.nii, .nii.gz).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.files import one_line
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source, guarded
from groundglass.imaging.window import extent, interpret

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """Stored values and what they mean.

    Attributes:
        values: shape (I, J, K), real.
        affine: shape (4, 4), from voxel indices to mm rightwards, forwards and upwards (RAS).
        slope: from stored values to Hounsfield units.
        intercept: likewise.
    """

    values: NDArray[np.generic]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0


def check_shape(shape: tuple[int, ...], name: str, limits: Limits) -> tuple[int, int, int]:
    """A volume's shape without trailing axes of length 1, before anything is allocated.

    Raises:
        ImageError: not a volume of two or three dimensions, or larger than ``limits`` allow.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise ImageError(name, f"an image of shape {' x '.join(map(str, shape))}, not one CT volume")
    if len(shape) == 2:
        shape = (*shape, 1)
    if sorted(shape)[0] > limits.frames or shape[0] * shape[1] * shape[2] / min(shape) > limits.pixels:
        raise ImageError(name, f"{' x '.join(map(str, shape))} voxels are more than the limits allow")
    return shape[0], shape[1], shape[2]


def axial_slices(volume: Volume, origin: Origin) -> Iterator[CTSlice]:
    """Axial planes from the feet to the head: the patient's right at the image's left, anterior up.

    The axes nearest to the patient's are taken; nothing is resampled, so that a tilted volume stays tilted.

    Args:
        volume: stored values.
        origin: what all slices have in common; frame, position, orientation and spacing are filled in.

    Raises:
        ValueError: the affine is degenerate, or there is no finite voxel.
    """
    from nibabel import orientations  # noqa: PLC0415 - slow to import

    if not np.isfinite(volume.affine).all():
        raise ValueError("the orientation is not finite")
    axes = orientations.io_orientation(volume.affine)
    if np.isnan(axes).any():
        raise ValueError("the orientation is degenerate")
    upright = orientations.apply_orientation(volume.values, axes)
    affine = volume.affine @ orientations.inv_ornt_aff(axes, volume.values.shape)
    minimum, maximum = sorted(end * volume.slope + volume.intercept for end in extent(upright))

    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    along_row, along_column = (-affine[:3, axis] / lengths[axis] * _RAS_TO_LPS for axis in (0, 1))
    rx, ry, rz, cx, cy, cz = (float(cosine) + 0.0 for cosine in (*along_row, *along_column))
    width, height, count = upright.shape
    for index in range(count):
        plane = upright[::-1, ::-1, index].T.astype(np.float32)
        values = plane * np.float32(volume.slope) + np.float32(volume.intercept)
        pixels, hounsfield = interpret(values, minimum, maximum)
        corner = (affine @ (width - 1, height - 1, index, 1))[:3] * _RAS_TO_LPS
        place = replace(
            origin,
            frame=index,
            position=(float(corner[0]), float(corner[1]), float(corner[2])),
            orientation=(rx, ry, rz, cx, cy, cz),
            spacing=(float(lengths[1]), float(lengths[0])),
        )
        yield CTSlice(pixels, place, hounsfield)


_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540
_REAL_KINDS = "iuf"


@guarded("NIfTI")
def read_nifti(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """Every axial plane of a NIfTI-1 or NIfTI-2 volume, gzip-compressed or not.

    Raises:
        ImageError: damaged, a ``.hdr``/``.img`` pair, not one real-valued volume, or beyond ``limits``.
    """
    content = source.read(limits)
    compressed = content.startswith(_GZIP)
    header = inflate(content, _HEADER_BYTES, exact=False) if compressed else content[:_HEADER_BYTES]
    if header[344:348] == b"ni1\0" or header[4:8] == b"ni2\0":
        raise ImageError(source.name, "a NIfTI header without its voxels; convert the pair to one .nii file")
    if not is_nifti(header):
        raise ImageError(source.name, "gzip-compressed, but not a NIfTI volume")
    volume, mode = _volume(content, header, source.name, limits)
    yield from axial_slices(volume, Origin(file=source.name, file_format="NIfTI", mode=mode))


def is_nifti(header: bytes) -> bool:
    """Whether a decompressed file begins as a single-file NIfTI-1 or NIfTI-2 volume does."""
    return header[344:348] == b"n+1\0" or header[4:8] == b"n+2\0"


def inflate(content: bytes, count: int, *, exact: bool = True) -> bytes:
    """The first ``count`` bytes of gzip- or zlib-compressed content; no more is ever decompressed.

    Raises:
        ValueError: ``exact`` and there are fewer.
        zlib.error: damaged.
    """
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    plain = stream.decompress(content, count)
    if exact and len(plain) < count:
        raise ValueError(f"truncated: {len(plain):,} of {count:,} bytes")
    return plain


def _volume(content: bytes, head: bytes, name: str, limits: Limits) -> tuple[Volume, str]:
    from nibabel import Nifti1Header, Nifti2Header  # noqa: PLC0415 - slow to import
    from nibabel.imageglobals import LoggingOutputSuppressor  # noqa: PLC0415 - slow to import

    kind = Nifti1Header if head[344:348] == b"n+1\0" else Nifti2Header
    with LoggingOutputSuppressor():
        header = kind.from_fileobj(io.BytesIO(head))
        affine = header.get_best_affine()
        slope, intercept = header.get_slope_inter()
    shape = check_shape(tuple(int(length) for length in header.get_data_shape()), name, limits)
    dtype = header.get_data_dtype()
    if dtype.kind not in _REAL_KINDS:
        raise ImageError(name, f"voxels of type {header.get_value_label('datatype')}, not a CT")
    start = int(header.get_data_offset())
    end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if end > limits.file_bytes:
        raise ImageError(name, f"{end:,} bytes are more than the limit of {limits.file_bytes:,}")
    plain = inflate(content, end) if content.startswith(_GZIP) else content
    if start < 0 or len(plain) < end:
        raise ValueError(f"truncated: {len(plain):,} of {end:,} bytes")
    count = (end - start) // dtype.itemsize
    values = np.frombuffer(plain, dtype, count=count, offset=start).reshape(shape, order="F")
    return Volume(values, np.asarray(affine, np.float64), slope or 1.0, intercept or 0.0), dtype.name


_HEADER_BYTES_METAIMAGE = 65536
_ELEMENT_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SYNONYMS = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "ElementSize": "ElementSpacing",
    "BinaryDataByteOrderMSB": "ElementByteOrderMSB",
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@guarded("MetaImage")
def read_metaimage(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """Every axial plane of a MetaImage volume.

    Raises:
        ImageError: damaged, its voxels are missing or elsewhere, not one real volume, or beyond ``limits``.
    """
    fields, local = _header(source)
    shape = check_shape(_shape(fields), source.name, limits)
    element = fields.get("ElementType", "").upper()
    if element not in _ELEMENT_TYPES or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ImageError(source.name, f"elements of type {one_line(element, 40) or '?'}, not a CT")
    order = ">" if _is_true(fields, "ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + _ELEMENT_TYPES[element])
    count = int(np.prod(shape, dtype=np.int64))
    if count * dtype.itemsize > limits.file_bytes:
        raise ImageError(
            source.name, f"{count * dtype.itemsize:,} bytes are more than the limit of {limits.file_bytes:,}"
        )
    content, name = _voxels(source, fields, local, limits)
    content = _decompressed(content, fields, count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ImageError(name, f"truncated: {len(content):,} of {count * dtype.itemsize:,} bytes of voxels")
    values = np.frombuffer(content, dtype, count=count).reshape(shape, order="F")
    origin = Origin(file=source.name, file_format="MetaImage", mode=dtype.name)
    yield from axial_slices(Volume(values, _affine(fields)), origin)


def _header(source: Source) -> tuple[dict[str, str], int]:
    """The header's fields, and where voxels in the same file would begin."""
    head = source.head(_HEADER_BYTES_METAIMAGE)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        if end < 0:
            end = len(head)
        key, equals, value = head[position:end].decode("utf-8", "replace").partition("=")
        if not equals and key.strip():
            raise ValueError("a header line without '='")
        if equals:
            fields[_SYNONYMS.get(key.strip(), key.strip())] = value.strip()
        position = end + 1
        if position > len(head) and "ElementDataFile" not in fields:
            raise ValueError("a header without ElementDataFile")
    return fields, position


def _shape(fields: Mapping[str, str]) -> tuple[int, ...]:
    shape = tuple(int(length) for length in fields["DimSize"].split()) if "DimSize" in fields else ()
    if not shape or len(shape) != int(fields.get("NDims", len(shape))) or len(shape) > 8:
        raise ValueError("DimSize does not fit NDims")
    return shape


def _is_true(fields: Mapping[str, str], key: str) -> bool:
    return fields.get(key, "False").lower() in {"true", "1", "t", "yes"}


def _voxels(source: Source, fields: Mapping[str, str], local: int, limits: Limits) -> tuple[bytes, str]:
    """The bytes of the voxels, still compressed, and the name of the file they come from."""
    file = fields["ElementDataFile"]
    if file.upper() == "LOCAL":
        return source.read(limits)[local:], source.name
    if file.upper() == "LIST" or "%" in file:
        raise ImageError(source.name, "voxels spread over several files; convert it to one .mha file")
    data = source.sibling(file)
    if data is None:
        raise ImageError(source.name, f"its voxels are missing: no file {file[:120]!r} beside it")
    content = data.read(limits)
    skip = int(fields.get("HeaderSize", "0"))
    if skip == -1 and not _is_true(fields, "CompressedData"):  # the voxels are the file's last bytes
        return content[-_stored_bytes(fields) :], data.name
    if skip < 0 or skip > len(content):
        raise ValueError(f"HeaderSize {skip}")
    return content[skip:], data.name


def _stored_bytes(fields: Mapping[str, str]) -> int:
    itemsize = np.dtype(_ELEMENT_TYPES[fields["ElementType"].upper()]).itemsize
    return int(np.prod(_shape(fields), dtype=np.int64)) * itemsize


def _decompressed(content: bytes, fields: Mapping[str, str], size: int) -> bytes:
    return inflate(content, size) if _is_true(fields, "CompressedData") else content


def _affine(fields: Mapping[str, str]) -> NDArray[np.float64]:
    """From voxel indices to mm in RAS. MetaImage's axes are LPS; its matrix lists one axis after another."""
    dimensions = int(fields.get("NDims", "3"))
    used = min(dimensions, 3)

    def numbers(key: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
        text = fields.get(key)
        values = default if text is None else np.array([float(number) for number in text.split()])
        if values.size != default.size:
            raise ValueError(f"{key} holds {values.size} numbers instead of {default.size}")
        return values.reshape(default.shape)

    matrix, spacing, offset = np.eye(3), np.ones(3), np.zeros(3)
    matrix[:used, :used] = numbers("TransformMatrix", np.eye(dimensions))[:used, :used]
    spacing[:used] = numbers("ElementSpacing", np.ones(dimensions))[:used]
    offset[:used] = numbers("Offset", np.zeros(dimensions))[:used]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ (matrix.T * spacing)
    affine[:3, 3] = _LPS_TO_RAS @ offset
    return affine
