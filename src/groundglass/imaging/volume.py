"""Axial CT slices from volumes: NIfTI by nibabel, MetaImage and NRRD by SimpleITK."""

from __future__ import annotations

import io
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.imaging.slice import CTSlice, Origin, VoxelGrid
from groundglass.imaging.source import DEFAULT_LIMITS, FileSource, Limits, Source, guarded
from groundglass.imaging.window import extent, interpret

_HEADER_BYTES = 65536
_COMPRESSED = re.compile(rb"^\s*CompressedData\s*[=:]\s*[Tt1Yy]", re.MULTILINE)
_LPS = np.array([-1.0, -1.0, 1.0])
"""From mm rightwards, forwards and upwards (RAS) to DICOM's and ITK's axes, and back."""


@dataclass(frozen=True)
class _Volume:
    """Stored values, shape (I, J, K), their affine to mm in RAS, and how they become Hounsfield units."""

    values: NDArray[np.generic]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0


@guarded("NIfTI")
def read_nifti(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """Every axial plane of a NIfTI-1 or NIfTI-2 volume, gzip-compressed or not.

    Raises:
        ImageError: damaged, a ``.hdr``/``.img`` pair, not one real-valued volume, or beyond ``limits``.
    """
    from nibabel import Nifti1Header, Nifti2Header  # noqa: PLC0415 - slow to import
    from nibabel.imageglobals import LoggingOutputSuppressor  # noqa: PLC0415 - slow to import

    content = source.read(limits)
    head = _plain(content, 540, exact=False)
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise ImageError(source.name, "a NIfTI header without its voxels; convert the pair to one .nii file")
    with LoggingOutputSuppressor():
        header = (Nifti1Header if head[344:348] == b"n+1\0" else Nifti2Header).from_fileobj(io.BytesIO(head))
        affine = np.asarray(header.get_best_affine(), np.float64)
        slope, intercept = header.get_slope_inter()
    shape = _check_shape(header.get_data_shape(), header.get_data_dtype(), source.name, limits)
    dtype, start = header.get_data_dtype(), int(header.get_data_offset())
    count = int(np.prod(shape, dtype=np.int64))
    plain = _plain(content, start + count * dtype.itemsize)
    values = np.frombuffer(plain, dtype, count, offset=start).reshape(shape, order="F")
    origin = Origin(file=source.name, file_format="NIfTI", mode=dtype.name)
    yield from _axial_slices(_Volume(values, affine, slope or 1.0, intercept or 0.0), origin)


def is_gzipped_nifti(head: bytes) -> bool:
    """Whether a gzip-compressed file's beginning is that of a single-file NIfTI volume."""
    try:
        plain = _plain(head, 348, exact=False)
    except zlib.error:
        return False
    return plain[344:348] == b"n+1\0" or plain[4:8] == b"n+2\0"


def _plain(content: bytes, count: int, *, exact: bool = True, zipped: bool = False) -> bytes:
    """At least the first ``count`` bytes of content, decompressed no further where it is compressed."""
    if zipped or content.startswith(b"\x1f\x8b"):
        content = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, count)
    if exact and len(content) < count:
        raise ValueError(f"truncated: {len(content):,} of {count:,} bytes")
    return content


def _check_shape(
    shape: tuple[int, ...], dtype: np.dtype[Any], name: str, limits: Limits
) -> tuple[int, int, int]:
    """A volume's shape without trailing axes of length 1, before anything is allocated."""
    shape = tuple(int(length) for length in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    said = " x ".join(map(str, shape))
    if dtype.kind not in "iuf":
        raise ImageError(name, f"voxels of type {dtype}, not a CT")
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise ImageError(name, f"an image of shape {said}, not one CT volume")
    width, height, depth = (*shape, 1)[:3]
    voxels, thinnest = width * height * depth, min(shape)
    if (
        thinnest > limits.frames
        or voxels > limits.pixels * thinnest
        or voxels * dtype.itemsize > limits.file_bytes
    ):
        raise ImageError(name, f"{said} voxels are more than the limits allow")
    return width, height, depth


@guarded("MetaImage or NRRD")
def read_itk(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """Every axial plane of a MetaImage (.mha; .mhd with .raw or .zraw) or NRRD volume (.nrrd; .nhdr).

    ITK never sees the file name that a header gives for its voxels, which could be any file of the machine: it
    reads a copy of the header beside the voxels, which are searched in the header's own folder only.

    Raises:
        ImageError: SimpleITK is not installed; or damaged, its voxels are missing or elsewhere, not one real
            volume, or beyond ``limits``.
    """
    try:
        import SimpleITK as sitk  # noqa: N813, PLC0415 - an extra
    except ModuleNotFoundError:
        reason = "MetaImage and NRRD need SimpleITK; run `pip install '.[volumes]'` in a clone"
        raise ImageError(source.name, reason) from None
    is_nrrd = source.head(4) == b"NRRD"
    with tempfile.TemporaryDirectory(prefix="groundglass-") as folder:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
        header, voxels = _copied(source, Path(folder), limits, is_nrrd=is_nrrd)
        reader.SetFileName(str(header))
        try:
            reader.ReadImageInformation()
            dtype = _dtype(sitk.GetPixelIDValueAsString(reader.GetPixelID()), source.name)
            shape = _check_shape(reader.GetSize(), dtype, source.name, limits)
            if not is_nrrd and _COMPRESSED.search(header.read_bytes()):  # ITK does not see all damage
                _plain(voxels.read_bytes(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, zipped=True)
            image = reader.Execute()
        except RuntimeError as error:  # its text quotes the temporary folder
            raise ImageError(source.name, "damaged, or fewer voxels than its header says") from error
    origin = Origin(file=source.name, file_format="NRRD" if is_nrrd else "MetaImage", mode=dtype.name)
    yield from slices_of_voxels(*itk_voxels(image), origin, limits)


def itk_voxels(image: Any) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Values, shape (I, J) or (I, J, K), and affine to mm in RAS of a SimpleITK image that outlives them.

    Raises:
        ValueError: its voxels have several components.
    """
    import SimpleITK as sitk  # noqa: N813, PLC0415 - an extra

    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError("voxels of several components, no CT")
    used = min(image.GetDimension(), 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:used, :used]
    affine[:used, :used] = direction * np.array(image.GetSpacing()[:used])
    affine[:used, 3] = image.GetOrigin()[:used]
    affine[:3] *= _LPS[:, None]
    return sitk.GetArrayViewFromImage(image).T, affine


def slices_of_voxels(
    values: NDArray[np.generic], affine: NDArray[np.float64], origin: Origin, limits: Limits = DEFAULT_LIMITS
) -> Iterator[CTSlice]:
    """Every axial plane of a volume in memory, its affine to mm in RAS; see :func:`read_nifti`.

    Raises:
        ImageError: it is not one real-valued volume, or beyond ``limits``.
    """
    shape = _check_shape(values.shape, values.dtype, origin.file, limits)
    yield from _axial_slices(_Volume(values.reshape(shape, order="F"), affine), origin)


def _dtype(itk: str, name: str) -> np.dtype[Any]:
    """NumPy's type for ITK's name of one, such as ``16-bit signed integer``."""
    found = re.fullmatch(r"(\d+)-bit (unsigned |signed )?(integer|float)", itk)
    if found is None:
        raise ImageError(name, f"voxels of type {itk}, not a CT")
    kind = "f" if found[3] == "float" else "u" if found[2] == "unsigned " else "i"
    return np.dtype(f"{kind}{int(found[1]) // 8}")


def _copied(source: Source, folder: Path, limits: Limits, *, is_nrrd: bool) -> tuple[Path, Path]:
    """A header in ``folder`` that refers to voxels in it and to nothing else, and these voxels."""
    header, file, start = _split_header(source.head(_HEADER_BYTES), is_nrrd=is_nrrd)
    voxels = folder / "voxels"
    if file is None:
        voxels.write_bytes(source.read(limits)[start:])
    elif file.upper().startswith("LIST") or "%" in file:
        raise ImageError(source.name, "voxels spread over several files; convert it to one file")
    else:
        data = source.sibling(file)
        if data is None:
            raise ImageError(source.name, f"its voxels are missing: no file {file[:120]!r} beside it")
        data.check_size(limits)
        if isinstance(data, FileSource):
            voxels.symlink_to(data.path.resolve())
        else:
            voxels.write_bytes(data.read(limits))
    copied = folder / ("header.nhdr" if is_nrrd else "header.mhd")
    copied.write_bytes(header + (b"data file: voxels\n" if is_nrrd else b"ElementDataFile = voxels\n"))
    return copied, voxels


def _split_header(head: bytes, *, is_nrrd: bool) -> tuple[bytes, str | None, int]:
    """A header without the line that names the voxels' file; that name; and where voxels in this file begin.

    The name is None for voxels in the same file. MetaImage ends with that line, NRRD with an empty one.
    """
    kept, file, position = b"", None, 0
    for line in head.splitlines(keepends=True):
        position += len(line)
        text = line.decode("utf-8", "replace").strip()
        if is_nrrd and not text:
            return kept, file, position
        key, value = (*re.split(r"\s*[:=]\s*", text, maxsplit=1), "")[:2]
        key = key.lower().replace(" ", "")
        if is_nrrd and key == "datafile":
            file = value
        elif not is_nrrd and "elementdatafile" in key:
            return kept, None if value.upper() == "LOCAL" else value, position
        else:
            kept += line
    if file is None:
        raise ValueError("the header has no end")
    return kept, file, position


def _axial_slices(volume: _Volume, origin: Origin) -> Iterator[CTSlice]:
    """Axial planes from the feet to the head: the patient's right at the image's left, anterior up.

    The axes nearest to the patient's are taken; nothing is resampled, so that a tilted volume stays tilted.
    """
    from nibabel import orientations  # noqa: PLC0415 - slow to import

    axes = (
        orientations.io_orientation(volume.affine) if np.isfinite(volume.affine).all() else np.full(1, np.nan)
    )
    if np.isnan(axes).any():
        raise ValueError("the orientation is degenerate or not finite")
    upright = orientations.apply_orientation(volume.values, axes)
    affine = volume.affine @ orientations.inv_ornt_aff(axes, volume.values.shape)
    minimum, maximum = sorted(end * volume.slope + volume.intercept for end in extent(upright))
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    along_row, along_column = (-affine[:3, axis] / lengths[axis] * _LPS for axis in (0, 1))
    rx, ry, rz, cx, cy, cz = (float(cosine) + 0.0 for cosine in (*along_row, *along_column))
    width, height, count = upright.shape
    # Columns and rows run against the axes of RAS.
    runs = tuple((int(axis), int(-way if axis < 2 else way)) for axis, way in axes)
    grid = VoxelGrid(volume.values.shape, tuple(map(tuple, volume.affine.tolist())), runs)
    for index in range(count):
        plane = upright[::-1, ::-1, index].T.astype(np.float32)
        values = plane * np.float32(volume.slope) + np.float32(volume.intercept)
        pixels, hounsfield = interpret(values, minimum, maximum)
        x, y, z = ((affine @ (width - 1, height - 1, index, 1))[:3] * _LPS).tolist()
        place = replace(
            origin,
            frame=index,
            position=(x, y, z),
            orientation=(rx, ry, rz, cx, cy, cz),
            spacing=(float(lengths[1]), float(lengths[0])),
            grid=grid,
        )
        yield CTSlice(pixels, place, hounsfield)
