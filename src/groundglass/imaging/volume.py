"""Axial CT slices from volumes: NIfTI by nibabel, MetaImage and NRRD by SimpleITK."""

from __future__ import annotations

import gzip
import io
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.imaging.slice import LABELS, CTSlice, Origin, VoxelGrid
from groundglass.imaging.source import DEFAULT_LIMITS, FileSource, Limits, Source, identify
from groundglass.imaging.window import find_scale

_HEADER_BYTES = 2**20
_COMPRESSED = re.compile(rb"^\s*CompressedData\s*[=:]\s*[Tt1Yy]", re.MULTILINE)
_REQUIRED = {b"NDims": rb"\d+", b"DimSize": rb"-?\d+([ \t]+-?\d+)+", b"ElementType": rb"MET_\w+"}
_DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:](.*)\n?", re.MULTILINE | re.IGNORECASE)
_DIMENSIONS = re.compile(rb"\s*NDims\b")
# MetaIO has room for 10 dimensions and 255 letters of a name, NrrdIO for some 1,000 letters of a field.
_SAYS_SOMETHING = re.compile(rb"\s*(?!Name\b|NDims\b(?!\s*[=:]\s*[1-9]\s*$))[^=:\s][^=:]*[=:]\s*\S")
_NOT_IN_NRRD = re.compile(rb"[\r\n][ \t\v\f]*(data\s*file\s*:|encoding\s*:\s*bz|byte\s*skip\s*:\s*-)", re.IGNORECASE)
_TEXT = re.compile(rb"^\s*BinaryData\s*[=:]\s*[Ff0Nn]", re.MULTILINE)
_FARTHEST = 1e9  # mm, in which no patient is measured
_LABEL_INTENTS = frozenset({1002, 1003})  # NIfTI's intents of label maps
_MM = {1: 1000.0, 3: 0.001}  # of a metre and a micrometre, by the code of NIfTI
_LPS = np.array([-1.0, -1.0, 1.0])  # from mm rightwards, forwards and upwards (RAS) to DICOM's and ITK's axes, and back


def read_nifti(source: Source, limits: Limits) -> Iterator[CTSlice]:
    """Every axial plane of a NIfTI-1 or NIfTI-2 volume, gzip-compressed or not.

    Raises an error where it is damaged, not one real-valued volume, or beyond the limits.
    """
    from nibabel import Nifti1Header, Nifti2Header  # noqa: PLC0415 - slow to import

    content = source.read(limits)
    head = _plain(content, 540)
    kind = Nifti2Header if head[4:8] in {b"n+2\0", b"ni2\0"} else Nifti1Header
    size = kind.template_dtype.itemsize
    # Neither extensions nor nibabel's own repairs, which it logs to standard error, are wanted.
    header = kind(head[:size], check=False)
    shape = _check_shape(header.get_data_shape(), header.get_data_dtype(), source.name, limits)
    if bytes(header["magic"]).startswith(b"ni"):
        raise ImageError(source.name, "the header of a .hdr and .img pair; save both as one .nii file")
    start = float(header["vox_offset"])
    dtype = header.get_data_dtype()
    if not size + 4 <= start <= limits.file_bytes - prod(shape) * dtype.itemsize or start % 1:
        raise ImageError(source.name, f"its vox_offset, {start:g}, is no place for voxels; set it to {size + 4}")
    end = int(start) + prod(shape) * dtype.itemsize
    plain = _plain(content, end)
    if len(plain) < end:
        raise ValueError(f"truncated: {len(plain):,} of {end:,} bytes")
    values = np.frombuffer(plain, dtype, offset=int(start)).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    mode = LABELS if int(header["intent_code"]) in _LABEL_INTENTS else dtype.name
    origin = Origin(file=source.name, file_format="NIfTI", mode=mode)
    scale = (slope or 1.0, intercept or 0.0)
    yield from slices_of_voxels(values, _nifti_affine(header), origin, limits, scale)


def _nifti_affine(header: Any) -> NDArray[np.float64]:
    """The first usable of sform, qform and the voxels' sizes alone."""
    sizes, handed = np.nan_to_num(header["pixdim"][1:4], posinf=0, neginf=0), header["pixdim"][0]
    header["pixdim"][1:4] = np.where(sizes == 0, 1, np.abs(sizes))
    header["pixdim"][0] = -1 if handed == -1 else 1
    for read in (header.get_sform, header.get_qform):
        with suppress(ValueError):  # the quaternion is none
            affine, code = read(coded=True)
            if code and np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3:
                return in_mm(affine, header)
    return in_mm(header.get_base_affine(), header)


def in_mm(affine: NDArray[Any], header: Any) -> NDArray[np.float64]:
    """An affine, shape (4, 4), of which its NIfTI header may say that it is in metres or micrometres."""
    return np.asarray(np.diag([_MM.get(int(header["xyzt_units"]) % 8, 1.0)] * 3 + [1.0]) @ affine)


def header_of(source: Source) -> Source | None:
    """The MetaImage header beside a file that is no image of its own but holds that header's voxels, or None."""
    name = PurePath(source.member or source.name).name
    match = re.fullmatch(r"([^:]+?)\.(img|z?raw|bin|dat)(\.gz)?", name, re.IGNORECASE)
    header = source.sibling(f"{match[1]}.mhd") if match else None
    return header if header is not None and os.fsencode(name) in header.head() else None


def is_gzipped_nifti(head: bytes) -> bool:
    """Whether a gzip-compressed file's beginning is that of a NIfTI volume."""
    with suppress(OSError, zlib.error):
        return identify(_plain(head, 348)) == "NIfTI"
    return False


def _plain(content: bytes, count: int) -> bytes:
    """The first ``count`` bytes of content, or fewer where it ends; no more are decompressed where it is gzip."""
    if not content.startswith(b"\x1f\x8b"):
        return content[:count]
    plain = bytearray()
    with suppress(EOFError), gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        while len(plain) < count and (part := stream.read1(count - len(plain))):
            plain += part
    return bytes(plain)


def _check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, limits: Limits) -> tuple[int, int, int]:
    """A volume's shape without trailing axes of length 1, before anything is allocated."""
    shape = tuple(int(length) for length in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    said = " x ".join(map(str, shape))
    if dtype.kind not in "iuf":
        raise ImageError(name, f"voxels of type {dtype}, not a CT")
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise ImageError(name, f"an image of shape {said}, not one CT volume")
    limits.check_pixels(max(shape), sorted(shape)[-2], name)
    if min(shape) > limits.frames or prod(shape) > limits.file_bytes // dtype.itemsize:
        raise ImageError(name, f"{said} voxels are more than the limits allow")
    width, height, depth = (*shape, 1)[:3]
    return width, height, depth


def read_itk(source: Source, limits: Limits) -> Iterator[CTSlice]:
    """Every axial plane of a MetaImage (.mha; .mhd with .raw or .zraw) or NRRD volume (.nrrd).

    ITK never sees the file name that a header gives for its voxels, which could be any file of the machine: it
    reads a copy of the header beside the voxels, which are searched in the header's own folder only. Raises an error
    where SimpleITK is not installed; or damaged, the voxels missing, not one real volume, or beyond the limits.
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
        header, voxels = (_nrrd if is_nrrd else _meta_image)(source, Path(folder), limits)
        reader.SetFileName(str(header))
        try:
            reader.ReadImageInformation()
            itk = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # such as "16-bit signed integer"
            kind = re.fullmatch(r"(\d+)-bit (?:(u)nsigned |s(i)gned )?(?:integer|(f)loat)", itk)
            if kind is None:
                raise ImageError(source.name, f"voxels of type {itk}, not a CT")
            dtype = np.dtype(f"{kind[2] or kind[3] or kind[4]}{int(kind[1]) // 8}")
            shape = _check_shape(reader.GetSize(), dtype, source.name, limits)
            if voxels:
                _check_voxels(header, voxels, prod(shape) * dtype.itemsize)
            image = reader.Execute()
        except (EOFError, RuntimeError, zlib.error) as error:  # ITK's text quotes the temporary folder
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
    values: NDArray[np.generic],
    affine: NDArray[np.float64],
    origin: Origin,
    limits: Limits = DEFAULT_LIMITS,
    rescale: tuple[float, float] = (1.0, 0.0),
) -> Iterator[CTSlice]:
    """Every axial plane of a volume in memory, from the feet to the head, the patient's right at the image's left.

    Values have the shape (I, J, K), or (I, J); axes of length 1 may follow. The ``affine``, shape (4, 4), leads from
    voxel indices to mm in RAS; the axes nearest to the patient's are taken, and nothing is resampled, so that a tilted
    volume stays tilted. ``rescale`` are slope and intercept that make Hounsfield units, or what else is meant, of the
    values.

    Raises:
        ImageError: it is not one real-valued volume, or beyond ``limits``.
        ValueError: its orientation is degenerate.
    """
    from nibabel import orientations  # noqa: PLC0415 - slow to import

    shape = _check_shape(values.shape, values.dtype, origin.file, limits)
    axes = orientations.io_orientation(affine) if np.abs(affine).max() < _FARTHEST else np.full(1, np.nan)
    if np.isnan(axes).any():
        raise ValueError("the orientation is degenerate, or a length is none")
    upright = orientations.apply_orientation(values.reshape(shape, order="F"), axes)
    scale = find_scale(upright, origin.file, *rescale)
    # Columns and rows run against the axes of RAS.
    runs = tuple((int(axis), int(-way if axis < 2 else way)) for axis, way in axes)
    grid = VoxelGrid(shape, tuple(map(tuple, affine.tolist())), runs)
    turned = affine @ orientations.inv_ornt_aff(axes, shape)
    lengths = np.linalg.norm(turned[:3, :3], axis=0)
    along_row, along_column = (-turned[:3, axis] / lengths[axis] * _LPS + 0.0 for axis in (0, 1))
    for index in range(upright.shape[2]):
        pixels, hounsfield = scale.apply(upright[::-1, ::-1, index].T)
        first = (turned @ (upright.shape[0] - 1, upright.shape[1] - 1, index, 1))[:3] * _LPS
        place = replace(
            origin,
            frame=index,
            position=tuple(first.tolist()),
            orientation=(*along_row.tolist(), *along_column.tolist()),
            spacing=(float(lengths[1]), float(lengths[0])),
            grid=grid,
        )
        yield CTSlice(pixels, place, hounsfield)


def _nrrd(source: Source, folder: Path, limits: Limits) -> tuple[Path, None]:
    """The volume, once it is known that its header names no other file."""
    head = source.head(_HEADER_BYTES)
    if _NOT_IN_NRRD.search(head):
        reason = "voxels in other files, at its end or packed by bzip2 are not read; save it as one .nrrd with gzip"
        raise ImageError(source.name, reason)
    end = re.search(rb"\n\r?\n", head)
    if end is None or re.search(rb"[\r\n](?!#|[^:\r\n]*:=)[^\r\n]{500}", head[: end.end()]):
        raise ValueError("the header has no end, or a field of more than 500 letters")
    return _placed(source, folder / "volume.nrrd", limits), None


def _meta_image(source: Source, folder: Path, limits: Limits) -> tuple[Path, Path]:
    """A header in ``folder`` that refers to voxels in it and to nothing else, and the file of these voxels.

    MetaIO wants the dimensions first and complains of lines that say nothing; whoever wrote them does not care.
    """
    head = source.head(_HEADER_BYTES)
    end = _DATA_FILE.search(head)
    if end is None:
        raise ValueError("the header has no end")
    if b"elementdatafile" in head[: end.start()].lower():  # behind white space that MetaIO takes for a line's end
        raise ValueError("its header names the voxels twice")
    name, voxels = end[1].decode("utf-8", "replace").strip(), folder / "voxels"
    lines = [line + b"\n" for line in head[: end.start()].split(b"\n") if _SAYS_SOMETHING.match(line)]
    header = b"".join(sorted(lines, key=lambda line: _DIMENSIONS.match(line) is None))
    for key, value in _REQUIRED.items():  # MetaIO prints what it misses
        if not re.search(rb"^\s*%b\s*[=:]\s*%b\s*$" % (key, value), header, re.MULTILINE):
            raise ValueError(f"its header has no {key.decode()} that can be read")
    if name.upper() == "LOCAL":
        voxels.write_bytes(source.read(limits)[end.end() :])
    elif re.fullmatch(r"LIST|.*%\d*d.*", name, re.IGNORECASE):
        raise ImageError(source.name, "voxels in several files are not read; save it as one .mha")
    elif data := source.sibling(name):
        _placed(data, voxels, limits)
    else:
        raise ImageError(source.name, f"its voxels are missing: no file {name[:120]!r} beside it")
    copied = folder / "header.mhd"
    copied.write_bytes(header + f"ElementDataFile = {voxels.name}\n".encode())
    return copied, voxels


def _placed(source: Source, target: Path, limits: Limits) -> Path:
    """A file under another name: a link where it lies on disk."""
    source.check_size(limits)
    if isinstance(source, FileSource) and os.name != "nt":  # where links need a privilege
        target.symlink_to(source.path.resolve())
    else:
        target.write_bytes(source.read(limits))
    return target


def _check_voxels(header: Path, voxels: Path, size: int) -> None:
    """Whether a MetaImage has all its voxels: MetaIO does not see all damage, and prints the rest."""
    about = header.read_bytes()
    if _TEXT.search(about):
        raise ValueError("its voxels are text (BinaryData = False), which cannot be read; save them as binary")
    if _COMPRESSED.search(about):
        found = len(zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(voxels.read_bytes(), size))
    else:
        found = voxels.stat().st_size
    if found < size:
        raise EOFError
