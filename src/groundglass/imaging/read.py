"""Slices from whatever a path holds: a picture, a DICOM file, a volume, a folder or zip archive of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from groundglass.errors import ImageError
from groundglass.imaging.dicom import Orientation, describe_frames, open_dataset, read_dicom
from groundglass.imaging.lossless import LosslessDecoder
from groundglass.imaging.raster import read_raster
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    HEAD_BYTES,
    RASTER,
    FileFormat,
    FileSource,
    Limits,
    Source,
    files_below,
    guard,
    identify,
    natural_key,
    open_archive,
    split_member,
)
from groundglass.imaging.volume import inflate, is_nifti, read_metaimage, read_nifti

if TYPE_CHECKING:
    from pydicom import Dataset

_Item = TypeVar("_Item")
OnError = Callable[[ImageError], None]
Skip = Callable[[str], bool]
_Wanted = Callable[[Source], bool]

_KNOWN = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage or zip"
# In a folder, a file that is no image is an error only where its name says that it should be one.
_CLAIMING_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"),
    *(".nii", ".nii.gz", ".mhd", ".mha", ".zip"),
)
_GEOMETRY = (
    "SOPClassUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "Rows",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


def read_slices(
    path: str | PathLike[str],
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError | None = None,
    skip: Skip | None = None,
    *,
    decoder: LosslessDecoder | None = None,
    of_folder: bool = False,
) -> Iterator[CTSlice]:
    """All slices that a file, folder or zip archive holds.

    Formats are told by content, not by name. Folders are read with all their sub-folders and archives, in
    natural order of the names; what is no image (and no junk, see ``source.is_junk``) is passed over. DICOM
    files come series by series, sorted along the slice normal; volumes as axial planes from feet to head.

    Args:
        path: a file, folder, zip archive, or a member of one (``archive.zip!member``).
        limits: what a single input may ask for.
        on_error: called with the error of each file of a folder or archive that cannot be read, which is then
            left out, and of ``path`` where nothing in it is an image; without it the first one is raised.
        skip: told a file's name as ``Origin.file`` has it, says whether the file is left out unread.
        decoder: to be used for many paths; one of this call's own unless given.
        of_folder: ``path`` is one of a folder's files: passed over like those where it is no image.

    Raises:
        ImageError: naming the file at fault, or ``path`` where nothing in it is an image.
    """
    path = Path(path)
    encountered = 0

    def report(error: ImageError) -> None:
        nonlocal encountered
        encountered += 1
        (on_error or _raise)(error)

    def wanted(source: Source) -> bool:
        nonlocal encountered
        left_out = skip is not None and skip(source.name)
        encountered += left_out
        return not left_out

    with ExitStack() as stack:
        decoder = decoder or stack.enter_context(LosslessDecoder())
        found = _find(path, limits, stack)
        if found is not None and not wanted(found):
            return
        if found is not None and of_folder:
            images = _reporting(_images(found, limits, stack, report, wanted), report)
        elif found is not None and (kind := _identify(found)) is not FileFormat.ZIP:
            yield from _decode(found, kind, decoder, limits)
            return
        else:
            images = _collect(path, limits, stack, report, wanted)
        for source, file_format in _in_order(images, limits, report):
            for image in _reporting(_decode(source, file_format, decoder, limits), report):
                encountered += 1
                yield image
    if encountered == 0 and not of_folder:
        report(no_image(path))


def read_source(source: Source, decoder: LosslessDecoder, limits: Limits) -> Iterator[CTSlice]:
    """All slices of one file that is no archive, wherever its bytes are.

    Raises:
        ImageError: it cannot be read, or is an archive.
    """
    yield from _decode(source, _identify(source), decoder, limits)


def read_slice(path: str | PathLike[str], limits: Limits = DEFAULT_LIMITS) -> CTSlice:
    """The one slice of a file.

    Raises:
        ImageError: it cannot be read, or holds more than one slice.
    """
    slices = list(islice(read_slices(path, limits), 2))
    if len(slices) != 1:
        raise ImageError(path, "holds several slices where one is wanted")
    return slices[0]


def no_image(path: str | PathLike[str]) -> ImageError:
    """The error of a folder or archive in which nothing is an image."""
    return ImageError(path, f"holds no image; looked for {_KNOWN}")


def _raise(error: ImageError) -> None:
    raise error


def _reporting(items: Iterator[_Item], report: OnError) -> Iterator[_Item]:
    """The items up to the first ``ImageError``, which is reported."""
    try:
        yield from items
    except ImageError as error:
        report(error)


def _find(path: Path, limits: Limits, stack: ExitStack) -> Source | None:
    """The file or archive member that a path names, None for a folder; archives stay open with ``stack``."""
    with guard(str(path), "a file"):
        if path.is_dir():
            return None
        if path.is_file():
            return FileSource(path)
        member = split_member(path)
        if member is None:
            raise ImageError(
                path, "neither a file nor a folder" if path.exists() else "no such file or folder"
            )
        for source in stack.enter_context(open_archive(member[0], limits)):
            if source.member == member[1]:
                return source
    raise ImageError(path, "the archive has no such member")


def _identify(source: Source, *, among_others: bool = False) -> FileFormat | None:
    """The format of a file; None only ``among_others``, for a file that neither is nor claims to be an image.

    Raises:
        ImageError: it is empty, no image, or an archive within an archive.
    """
    with guard(source.name, "a file"):
        head = source.head(HEAD_BYTES)
        file_format = identify(head)
        if file_format is FileFormat.GZIP and not is_nifti(inflate(head, 348, exact=False)):
            file_format = None
    if file_format is FileFormat.ZIP and not isinstance(source, FileSource):
        raise ImageError(source.name, "an archive within an archive; unpack it first")
    if file_format is not None:
        return file_format
    if among_others and not source.name.lower().endswith(_CLAIMING_SUFFIXES):
        return None
    raise ImageError(
        source.name, f"not an image that can be read ({_KNOWN})" if head else "the file is empty"
    )


def _decode(
    source: Source, file_format: FileFormat | None, decoder: LosslessDecoder, limits: Limits
) -> Iterator[CTSlice]:
    if file_format is FileFormat.DICOM:
        return read_dicom(source, decoder, limits)
    if file_format is FileFormat.META_IMAGE:
        return read_metaimage(source, limits)
    return read_raster(source, limits) if file_format in RASTER else read_nifti(source, limits)


def _collect(
    path: Path, limits: Limits, stack: ExitStack, report: OnError, wanted: _Wanted
) -> Iterator[tuple[Source, FileFormat]]:
    """The images in a folder or archive with their formats; archives stay open until ``stack`` closes."""
    if path.is_dir():
        sources: Iterable[Source] = files_below(path, report)
    else:
        sources = stack.enter_context(open_archive(path, limits))
    for source in filter(wanted, sources):
        yield from _reporting(_images(source, limits, stack, report, wanted), report)


def _images(
    source: Source, limits: Limits, stack: ExitStack, report: OnError, wanted: _Wanted
) -> Iterator[tuple[Source, FileFormat]]:
    """A file with its format, or an archive's members with theirs; nothing where it is no image."""
    file_format = _identify(source, among_others=True)
    if file_format is FileFormat.ZIP and isinstance(source, FileSource):
        for member in filter(wanted, stack.enter_context(open_archive(source.path, limits))):
            yield from _reporting(_images(member, limits, stack, report, wanted), report)
    elif file_format is not None:
        yield source, file_format


@dataclass(frozen=True)
class _Place:
    """Where a DICOM file belongs among the others of its series."""

    series: str
    orientation: Orientation | tuple[()]
    height: float
    number: int
    name: str

    def key(self) -> tuple[object, ...]:
        return self.orientation, self.height, self.number, natural_key(self.name)


def _in_order(
    images: Iterable[tuple[Source, FileFormat]], limits: Limits, report: OnError
) -> Iterator[tuple[Source, FileFormat]]:
    """Images as they come, except that a DICOM series comes together and sorted where its first file came."""
    order: list[tuple[Source, FileFormat] | str] = []
    series: dict[str, list[tuple[_Place, Source]]] = {}
    for source, file_format in images:
        if file_format is not FileFormat.DICOM:
            order.append((source, file_format))
            continue
        try:
            place = _place(source, limits)
        except ImageError as error:
            report(error)
            continue
        if place is None:
            continue
        if place.series not in series:
            order.append(place.series)
        series.setdefault(place.series, []).append((place, source))
    for entry in order:
        if isinstance(entry, str):
            ordered = sorted(series[entry], key=lambda item: item[0].key())
            yield from ((source, FileFormat.DICOM) for _, source in ordered)
        else:
            yield entry


def _place(source: Source, limits: Limits) -> _Place | None:
    """A DICOM file's place in its series, or None where it is a directory, a report or the like."""
    with guard(source.name, "DICOM"):
        dataset = open_dataset(source, limits, _GEOMETRY)
        if "Rows" not in dataset:
            if _may_be_image(dataset):
                raise ImageError(source.name, "a DICOM file without an image; it may be truncated")
            return None
        frame = describe_frames(dataset, limits)[0]
        orientation = frame.orientation or ()
        return _Place(
            series=str(dataset.get("SeriesInstanceUID", "") or source.name),
            orientation=tuple(round(cosine, 2) + 0.0 for cosine in orientation),  # type: ignore[arg-type]
            height=round(frame.height() or 0.0, 3),
            number=int(dataset.get("InstanceNumber", 0) or 0),
            name=source.name,
        )


def _may_be_image(dataset: Dataset) -> bool:
    """Whether a DICOM file that holds no image should hold one: its class says so, or is lost."""
    from pydicom.uid import UID  # noqa: PLC0415 - slow to import

    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if kind:
        return "Image Storage" in UID(str(kind)).name
    return getattr(dataset, "preamble", None) is not None
