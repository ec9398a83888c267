"""Slices from whatever a path holds: a picture, a DICOM file, a volume, a folder or zip archive of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path

from groundglass.errors import ImageError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.dicom import Place, place_in_series, read_dicom, stack_order
from groundglass.imaging.raster import read_raster
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    RASTER,
    FileFormat,
    FileSource,
    Limits,
    OnError,
    Source,
    directories_below,
    identify,
    natural_key,
    open_archive,
    open_source,
)
from groundglass.imaging.volume import is_gzipped_nifti, read_itk, read_nifti

Skip = Callable[[str], bool]
Image = tuple[Source, FileFormat]

_KNOWN = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage, NRRD or zip"
# In a folder, a file that is no image is an error only where its name says that it should be one.
_CLAIMING_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"),
    *(".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ".zip"),
)


def read_slices(
    path: str | PathLike[str],
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError | None = None,
    skip: Skip | None = None,
    *,
    decoder: FrameDecoder | None = None,
) -> Iterator[CTSlice]:
    """All slices that a file, folder or zip archive holds.

    Order and memory are those of :func:`list_images`; a DICOM file that is a member of a zip archive is sorted
    among all members. Volumes come as axial planes from feet to head.

    Args:
        path: a file, folder, zip archive, or a member of one (``archive.zip!member``).
        limits: what a single input may ask for.
        on_error: called with the error of each file that cannot be read, which is then left out, and of
            ``path`` where nothing in it is an image; without it the first one is raised.
        skip: called with a file's name as ``Origin.file`` has it, says whether the file is left out unread.
        decoder: to be used for many paths; one of this call's own unless given.

    Raises:
        ImageError: naming the file at fault, or ``path`` where nothing in it is an image.
    """
    report = on_error or _raise
    with ExitStack() as stack:
        decoder = decoder or stack.enter_context(FrameDecoder())
        for source, file_format in list_images(path, limits, report, skip):
            with _reported(report):
                if not isinstance(source, FileSource) or file_format is not FileFormat.ZIP:
                    yield from _decode(source, file_format, decoder, limits)
                    continue
                with open_archive(source.path, limits) as members:
                    for member, member_format in _images(
                        source.path, [members], limits, _Noted(report), skip
                    ):
                        with _reported(report):
                            yield from _decode(member, member_format, decoder, limits)


def list_images(
    path: str | PathLike[str],
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError | None = None,
    skip: Skip | None = None,
) -> Iterator[Image]:
    """The images of a folder with all its sub-folders, or the one that a file is, with their formats.

    Formats are identified by content, not by name. A zip archive is one image here. A directory's own files come
    before its sub-directories, both in natural order; a directory's DICOM files come after its other images,
    series by series, sorted along the slice normal. So memory holds the names of one directory and the places
    of its DICOM files, of which only the headers are read. Files that are no images, and do not claim to be by
    their suffix, are left out, and so is junk, see :func:`groundglass.imaging.source.is_junk`.

    Args:
        path: a file, folder, or member of an archive.
        limits: what a single input may ask for.
        on_error: as in :func:`read_slices`.
        skip: as in :func:`read_slices`.

    Raises:
        ImageError: as in :func:`read_slices`.
    """
    report = on_error or _raise
    if os.path.isdir(path):
        noted = _Noted(report)
        yield from _images(Path(path), directories_below(Path(path), noted), limits, noted, skip)
        return
    with _reported(report), open_source(path, limits) as source:
        if skip is None or not skip(source.name):
            yield source, _format_of(source)


def read_source(source: Source, decoder: FrameDecoder, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """All slices of one file that is no archive, wherever its bytes are.

    Raises:
        ImageError: it cannot be read, or is an archive.
    """
    yield from _decode(source, _format_of(source), decoder, limits)


def read_slice(path: str | PathLike[str], limits: Limits = DEFAULT_LIMITS) -> CTSlice:
    """The one slice of a file or of an archive's member.

    Raises:
        ImageError: it cannot be read, or holds more than one slice.
    """
    slices = list(islice(read_slices(path, limits), 2))
    if len(slices) != 1:
        raise ImageError(path, "holds several slices where one is wanted")
    return slices[0]


def _raise(error: ImageError) -> None:
    raise error


@contextmanager
def _reported(report: OnError) -> Iterator[None]:
    """A block that ends with the first ``ImageError``, which is reported."""
    try:
        yield
    except ImageError as error:
        report(error)


class _Noted:
    """Reports errors and notes whether there was anything that could have been an image."""

    def __init__(self, report: OnError) -> None:
        self.report, self.anything = report, False

    def __call__(self, error: ImageError) -> None:
        self.anything = True
        self.report(error)


def _images(
    path: Path, groups: Iterable[Iterable[Source]], limits: Limits, noted: _Noted, skip: Skip | None
) -> Iterator[Image]:
    """The images of each group; an error where there is neither one, nor a file that is left out or fails."""
    for group in groups:
        for image in _in_order(_identified(group, noted, skip), limits, noted):
            noted.anything = True
            yield image
    if not noted.anything:
        noted.report(ImageError(path, f"holds no image; looked for {_KNOWN}"))


def _identified(sources: Iterable[Source], noted: _Noted, skip: Skip | None) -> Iterator[Image]:
    for source in sources:
        if skip is not None and skip(source.name):
            noted.anything = True
            continue
        try:
            yield source, _format_of(source)
        except _UnknownFormatError as error:
            if source.name.lower().endswith(_CLAIMING_SUFFIXES):
                noted(error)
        except ImageError as error:
            noted(error)


class _UnknownFormatError(ImageError):
    """A file is no image, or empty."""


def _format_of(source: Source) -> FileFormat:
    """The format of a file that is neither empty, of another kind, nor an archive within an archive."""
    head = source.head()
    file_format = identify(head)
    if file_format is FileFormat.GZIP and not is_gzipped_nifti(head):
        file_format = None
    if file_format is FileFormat.ZIP and not isinstance(source, FileSource):
        raise ImageError(source.name, "an archive within an archive; unpack it first")
    if file_format is None:
        reason = f"not an image that can be read ({_KNOWN})" if head else "the file is empty"
        raise _UnknownFormatError(source.name, reason)
    return file_format


def _decode(
    source: Source, file_format: FileFormat, decoder: FrameDecoder, limits: Limits
) -> Iterator[CTSlice]:
    if file_format is FileFormat.DICOM:
        return read_dicom(source, decoder, limits)
    if file_format in {FileFormat.META_IMAGE, FileFormat.NRRD}:
        return read_itk(source, limits)
    return read_raster(source, limits) if file_format in RASTER else read_nifti(source, limits)


def _in_order(images: Iterable[Image], limits: Limits, report: OnError) -> Iterator[Image]:
    """Images as they come, then DICOM files series by series, each sorted along the slice normal."""
    series: dict[str, list[tuple[Place, Source]]] = {}
    for source, file_format in images:
        if file_format is not FileFormat.DICOM:
            yield source, file_format
            continue
        with _reported(report):
            place = place_in_series(source, limits)
            if place is not None:
                series.setdefault(place.series or source.name, []).append((place, source))
    for files in series.values():
        files.sort(key=lambda item: natural_key(item[1].name))
        yield from ((files[at][1], FileFormat.DICOM) for at in stack_order([place for place, _ in files]))
