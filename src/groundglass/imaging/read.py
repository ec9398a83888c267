"""Slices from whatever a path holds: a picture, a DICOM file, a volume, a folder or zip archive of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from groundglass.errors import ImageError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    RASTER,
    FileFormat,
    Limits,
    OnError,
    Source,
    directories_below,
    guard_each,
    identify,
    natural_key,
    open_archive,
    open_file,
    raise_error,
    reported,
    split_member,
)
from groundglass.imaging.window import Scale

Skip = Callable[[str], bool]
Image = tuple[Source, FileFormat]

_KNOWN = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage, NRRD or zip"
# In a folder, a file that is no image is an error only where its name says that it should be one.
# fmt: off
_PACKED = ".gz .bz2 .xz .zst .lz .lz4 .lzma .z .br"
_CLAIMING = """
    .png .jpg .jpeg .jfif .tif .tiff .bmp .dib .dcm .dicom .dic .ima .nii .mhd .mha .nrrd .nhdr .zip
    .heic .heif .hif .avif .webp .gif .jp2 .j2k .j2c .jpc .jpf .jpx .jph .jxl .jls .jxr .wdp .exr .psd .psb
    .xcf .pgm .ppm .pnm .pbm .pfm .pam .tga .pcx .dds .dng .npy .npz .h5 .hdf5 .mnc .nc .fits .fit .fts
    .hdr .img .mgh .mgz .par .rec .gipl .mif .mih .brik .isq .vti .ecat .czi .nd2 .lif
    .tar .tgz .tbz .tbz2 .txz .7z .rar .cab .iso .dmg .arj .lzh .ace .z01 .001
"""
_DOCUMENTS = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub", ".jar", ".whl")
_TEXTS = ".txt .csv .tsv .json .jsonl .log .md .html .xml .yaml .yml .sql .py .pdf"
# fmt: on


class Scaled(NamedTuple):
    """A path, and what the numbers of pictures deeper than 8 bits mean there, which is found out otherwise."""

    path: Path
    scale: Scale

    def __str__(self) -> str:
        return str(self.path)


def lying_in(folder: Path) -> Skip:
    """Leaves out what lies in a folder, such as one that is written to."""
    own = os.path.realpath(folder)
    return lambda file: Path(os.path.realpath(file)).is_relative_to(own)


def read_slices(
    path: str | PathLike[str] | Source | Scaled,
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError | None = None,
    skip: Skip | None = None,
    *,
    decoder: FrameDecoder | None = None,
) -> Iterator[CTSlice]:
    """All slices that a file, folder, zip archive or member of one (``archive.zip!member``) holds, or a file in memory.

    Order and memory are those of :func:`images_within`. Volumes come as axial planes from feet to head.

    ``limits`` are what a single input may ask for. ``on_error`` is called with the error of each file that cannot be
    read, which is then left out, and of ``path`` where nothing in it is an image; without it the first one is raised.
    ``skip``, called with a file's name as ``Origin.file`` has it, says whether the file is left out unread. A
    ``decoder`` may serve many paths; without it the call has one of its own.

    Raises:
        ImageError: naming the file at fault, or ``path`` where nothing in it is an image.
    """
    path, scale = path if isinstance(path, Scaled) else (path, None)
    with nullcontext(decoder) if decoder else FrameDecoder() as used:
        for source, file_format in images_within(path, limits, on_error, skip):
            with reported(on_error or raise_error):
                yield from _decode(source, file_format, used, limits, scale)


def read_slice(path: str | PathLike[str] | Scaled) -> CTSlice:
    """The one slice of a file or archive member; ``ImageError`` where it cannot be read or holds several."""
    slices = list(islice(read_slices(path), 2))
    if len(slices) != 1:
        raise ImageError(str(path), "holds several slices where one is wanted; a manifest's column `slice` names one")
    return slices[0]


@contextmanager
def open_source(path: str | PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Iterator[Source]:
    """The file or archive member (``archive.zip!member``) that a path names, readable while the block lasts.

    Raises:
        ImageError: there is no such file or member, or the archive is damaged or refused.
    """
    split = split_member(path)
    if split is None:
        yield open_file(Path(path))
        return
    archive, name = split
    refused: dict[str, ImageError] = {}
    with open_archive(archive, limits, lambda error: refused.update({error.path: error})) as members:
        for found in members:
            if found.member == name:
                yield found
                return
    raise refused.get(f"{archive}!{name}") or ImageError(path, "the archive has no such member")


def read_bytes(path: str | PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The content of a file or archive member; ``ImageError`` as of :func:`open_source` and ``Source.read``."""
    with open_source(path, limits) as source:
        return source.read(limits)


def images_within(
    path: str | PathLike[str] | Source,
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError | None = None,
    skip: Skip | None = None,
    *,
    open_archives: bool = True,
) -> Iterator[Image]:
    """The images within a path, with their formats; each can be read until the next is asked for.

    Formats are identified by content, not by name. A directory's own files come before its sub-directories, both in
    natural order; a directory's DICOM files, and those of a zip archive, come after its other images, series by
    series, sorted along the slice normal. So memory holds the names of one directory and the places of its DICOM
    files, of which only the headers are read. Files that are no images, and do not claim to be by their suffix, are
    left out, and so is junk, see :func:`groundglass.imaging.source.is_junk`. Arguments and errors are those of
    :func:`read_slices`; where archives are not to be opened each is one image.
    """
    finder = _Finder(limits, on_error or raise_error, skip)
    if not isinstance(path, Source) and os.path.isdir(path):
        images = finder.images(path, directories_below(Path(path), finder.report))
    else:
        images = finder.alone(path)
    for source, file_format in images:
        if file_format != "zip" or not open_archives:
            yield source, file_format
            continue
        within = _Finder(limits, on_error or raise_error, skip)
        with reported(finder.report), open_archive(source, limits, within.report) as members:
            yield from within.images(source.name, [members])


class _Finder:
    """Finds the images among files, and notes whether there was anything that could have been one."""

    def __init__(self, limits: Limits, on_error: OnError, skip: Skip | None) -> None:
        self._limits, self._on_error, self._skip, self._anything = limits, on_error, skip, False

    def report(self, error: ImageError) -> None:
        self._anything = True
        self._on_error(error)

    def alone(self, path: str | PathLike[str] | Source) -> Iterator[Image]:
        """The image, or archive, that a single file is."""
        opened = nullcontext(path) if isinstance(path, Source) else open_source(path, self._limits)
        with reported(self.report), opened as source:
            if self._skip is None or not self._skip(source.name):
                yield source, _format_of(source)

    def images(self, path: str | PathLike[str], groups: Iterable[Iterable[Source]]) -> Iterator[Image]:
        """The images of each group; an error where there is neither one, nor a file that is left out or fails.

        They come as they are, then DICOM files series by series, each sorted along the slice normal.
        """
        for group in groups:
            series: dict[str, list[tuple[Origin, Source]]] = {}
            for source in group:
                if self._skip is not None and self._skip(source.name):
                    self._anything = True
                    continue
                with reported(self.report), suppress(_PassedOverError):
                    file_format = _format_of(source)
                    if file_format != "DICOM":
                        self._anything = True
                        yield source, file_format
                        continue
                    from groundglass.imaging.dicom import place_in_series, stack_order  # noqa: PLC0415 - for DICOM alone

                    if placed := place_in_series(source, self._limits):
                        series.setdefault(placed[0] or source.name, []).append((placed[1], source))
            for files in series.values():
                self._anything = True
                files.sort(key=lambda item: natural_key(item[1].name))
                yield from ((files[at][1], "DICOM") for at in stack_order([place for place, _ in files]))
        if not self._anything:
            self.report(ImageError(path, f"holds no image; looked for {_KNOWN}"))


class _PassedOverError(ImageError):
    """A file is no image of its own, and among others nobody misses it."""


def _format_of(source: Source) -> FileFormat:
    """The format of a file that is neither empty, of another kind, nor an archive within an archive."""
    head = source.head()
    file_format = identify(head)
    if file_format == "zip" and source.name.lower().endswith(_DOCUMENTS):
        raise _PassedOverError(source.name, "a document or package, no archive of images")
    if file_format == "zip" and source.member is not None:
        raise ImageError(source.name, "an archive within an archive; unpack it first")
    if file_format not in {None, "gzip"}:
        return file_format
    from groundglass.imaging.volume import header_of, is_gzipped_nifti  # noqa: PLC0415 - not for most files

    if file_format is not None and is_gzipped_nifti(head):
        return file_format
    if header := header_of(source):
        raise _PassedOverError(source.name, f"the voxels of {header.name}; name that file")
    base, suffix = os.path.splitext(source.name.lower())
    packed_image = suffix in _PACKED.split() and os.path.splitext(base)[1] not in _TEXTS.split()
    # A colon in a zip hides what a name says on Windows.
    claims = suffix in _CLAIMING.split() or packed_image or ":" in (source.member or "")
    reason = f"not an image that can be read ({_KNOWN}); convert or unpack it" if head else "the file is empty"
    raise (ImageError if claims else _PassedOverError)(source.name, reason)


def _decode(
    source: Source, file_format: FileFormat, decoder: FrameDecoder, limits: Limits, scale: Scale | None
) -> Iterator[CTSlice]:
    """The slices of an image, by the reader of its format, which is imported with its first file."""
    if file_format == "DICOM":
        from groundglass.imaging.dicom import read_dicom  # noqa: PLC0415

        return guard_each(read_dicom(source, decoder, limits), source.name, "DICOM")
    if file_format in RASTER:
        from groundglass.imaging.raster import read_raster  # noqa: PLC0415

        return guard_each(read_raster(source, limits, scale), source.name, "picture")
    from groundglass.imaging.volume import read_itk, read_nifti  # noqa: PLC0415

    if file_format in {"MetaImage", "NRRD"}:
        return guard_each(read_itk(source, limits), source.name, "MetaImage or NRRD")
    return guard_each(read_nifti(source, limits), source.name, "NIfTI")
