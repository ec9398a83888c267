"""Axial CT slices from NIfTI volumes (.nii, .nii.gz)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np

from groundglass.errors import ImageError
from groundglass.imaging.guard import guarded
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import Source
from groundglass.imaging.volume import Volume, axial_slices, check_shape

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
    yield from axial_slices(volume, Origin(file=source.name, container="NIfTI", mode=mode))


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
