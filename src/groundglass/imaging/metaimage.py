"""Axial CT slices from MetaImage volumes (.mhd with .raw or .zraw, .mha), as LUNA16 comes.

Read here rather than by ITK because a header names the file of its voxels: that name is followed only within
the header's own folder, and sizes are checked before anything is allocated. Format:
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.imaging.guard import guarded, one_line
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.nifti import inflate
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import Source
from groundglass.imaging.volume import Volume, axial_slices, check_shape

_HEADER_BYTES = 65536
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
    origin = Origin(file=source.name, container="MetaImage", mode=dtype.name)
    yield from axial_slices(Volume(values, _affine(fields)), origin)


def _header(source: Source) -> tuple[dict[str, str], int]:
    """The header's fields, and where voxels in the same file would begin."""
    head = source.head(_HEADER_BYTES)
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
