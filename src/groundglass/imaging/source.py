"""Files to be read: in a folder, a zip archive or memory; bounded, and identified by their content."""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Literal

from groundglass.errors import GroundglassError, ImageError
from groundglass.files import one_line
from groundglass.imaging.slice import CTSlice

OnError = Callable[[ImageError], None]


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated or decompressed."""

    pixels: int = 64_000_000  # per image or plane, rows times columns, and half its longer side squared
    file_bytes: int = 4 * 2**30  # of one file or archive member, after decompression
    archive_bytes: int = 32 * 2**30  # of all members of an archive together, after decompression
    ratio: float = 200.0  # of decompressed to compressed size of an archive member that is not small
    members: int = 100_000  # files in an archive
    frames: int = 20_000  # images, frames or planes in one file

    def check_pixels(self, width: int, height: int, name: str) -> None:
        """Raise ``ImageError`` for the file of that name where its image is empty or too large."""
        if width < 1 or height < 1:
            raise ImageError(name, f"an image of {width} x {height} pixels")
        if max(width * height, max(width, height) ** 2 // 4) > self.pixels:
            raise ImageError(name, f"{width} x {height} pixels are more than the limit of {self.pixels:,}")


DEFAULT_LIMITS = Limits()
"""Generous for every CT that a scanner makes, far below what a decompression bomb needs."""

HEAD_BYTES = 4096
"""As much of a file's beginning as ``identify`` needs."""

_JUNK_FOLDERS = frozenset({"__MACOSX", "PaxHeader", "PaxHeaders"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})
_LONGEST_ENTRY = 1000  # bytes of a member's in an archive's directory, name included
_SMALL = 16 * 2**20  # bytes that may have any compression ratio: an empty picture compresses very well
_PACKED = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # others unpack more than is asked for

FileFormat = Literal["PNG", "JPEG", "TIFF", "BMP", "DICOM", "NIfTI", "MetaImage", "NRRD", "gzip", "zip"]
"""A file format that can be read."""

RASTER: frozenset[FileFormat] = frozenset({"PNG", "JPEG", "TIFF", "BMP"})
"""Picture formats."""

# How files begin; of some the sign lies behind bytes that may be anything.
_SIGNS: dict[FileFormat, bytes] = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "NRRD": rb"NRRD000",
    "zip": rb"PK(\x03\x04|\x05\x06)",
    "gzip": rb"\x1f\x8b\x08",
    "NIfTI": rb".{344}n[+i]1\0|.{4}n[+i]2\0",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}",  # the header's size
    "MetaImage": rb"[^\0]*?^[ \t]*NDims[ \t]*[=:][ \t]*\d",  # whatever comes before
}
_DICOM_VALUES = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def identify(head: bytes) -> FileFormat | None:
    """The format of a file from its first ``HEAD_BYTES`` bytes, or None where it is none of ``FileFormat``."""
    # A DICOM preamble may hold anything, a TIFF header included: the four letters after it decide.
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "DICOM"
    flags = re.MULTILINE | re.DOTALL
    return next((file_format for file_format, sign in _SIGNS.items() if re.match(sign, head, flags)), None)


def _is_bare_dicom(head: bytes) -> bool:
    """Whether the head looks like a data set without preamble, as old archives hold them, in any encoding.

    It begins with an element of group 2 or 8 and at most 256 bytes. Where no letters say of which kind that is, a
    later element follows, or the first item of a sequence.
    """
    if len(head) < 16:
        return False
    for order in "<>":
        group, _, kind, length = struct.unpack_from(f"{order}HH2sH", head)  # 0 where the length comes later
        if group in {0x0002, 0x0008} and kind in _DICOM_VALUES and length <= 256:
            return True
    group, element, length = struct.unpack_from("<HHI", head)
    start = 8 + length if length <= min(256, len(head) - 12) else 8
    following = struct.unpack_from("<HH", head, start)
    later = start == 8 + length and (group, element) < following < (0x7FE0, 0xFFFF)
    return group == 0x0008 and (later or following == (0xFFFE, 0xE000))


class Source(ABC):
    """A file to be read: its name, as messages and ``Origin.file`` have it, and decompressed size in bytes."""

    name: str
    size: int
    member: str | None = None  # its path in a zip archive

    @abstractmethod
    def open(self) -> IO[bytes]:
        """A stream of its bytes."""

    def sibling(self, relative: str) -> Source | None:
        """The file of that relative path from this file's folder, or None where there is none.

        Raises:
            ImageError: ``relative`` points out of the folder.
        """
        if leads_out(relative) or ":" in relative.partition("/")[0]:
            raise ImageError(self.name, f"refers to {relative[:120]!r}, a path out of its own folder")
        return self._beside(relative)

    def _beside(self, relative: str) -> Source | None:
        return None

    def head(self, count: int = HEAD_BYTES) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""
        with guard(self.name, "a file"), self.open() as stream:
            return stream.read(count)

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """All bytes; ``ImageError`` where they cannot be read, or as in :meth:`check_size`."""
        self.check_size(limits)
        return self.head(self.size)

    def check_size(self, limits: Limits) -> None:
        """Raise ``ImageError`` where the file is empty or larger than ``limits.file_bytes``."""
        if self.size == 0:
            raise ImageError(self.name, "the file is empty")
        if self.size > limits.file_bytes:
            raise ImageError(self.name, f"{self.size:,} bytes are more than the limit of {limits.file_bytes:,}")


class FileSource(Source):
    """A file on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, str(path), path.stat().st_size

    def open(self) -> IO[bytes]:
        """A stream of its bytes."""
        return self.path.open("rb")

    def _beside(self, relative: str) -> Source | None:
        path, folder = self.path.parent / relative, self.path.parent.resolve()
        if not path.resolve().is_relative_to(folder):
            raise ImageError(self.name, f"refers to {relative!r}, a link out of its own folder")
        return FileSource(path) if path.is_file() else None


class MemorySource(Source):
    """A file whose bytes are in memory; nothing lies beside it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.size, self.content = name, len(content), content

    def open(self) -> IO[bytes]:
        """A stream of its bytes."""
        return io.BytesIO(self.content)


class ZipSource(Source):
    """A member of an open archive, of which nothing is unpacked to disk.

    Raises:
        ImageError: it cannot be read, or is out to do harm.
    """

    member: str

    def __init__(self, archive: zipfile.ZipFile, path: str, info: zipfile.ZipInfo, limits: Limits) -> None:
        self.name = f"{path}!{info.filename}"
        self.size, self.member = info.file_size, info.filename
        self._archive, self._path, self._info = archive, path, info
        unpacked, packed = info.file_size, info.compress_size
        ratio = f"{packed:,} bytes unpack to {unpacked:,}, more than {limits.ratio:g} times as much"
        for wrong, reason in (
            (leads_out(info.orig_filename), "its name leads out of the archive; rename it"),
            (len(info.filename) > 4096, "its name is too long; shorten it"),
            (info.compress_type not in _PACKED, "packed by another method than Deflate; unpack it first"),
            (info.flag_bits & 0x1, "encrypted; unpack the archive with its password and read the folder"),
            (stat.S_ISLNK(info.external_attr >> 16), "a link; links in archives are not followed"),
            (unpacked > max(_SMALL, limits.ratio * packed), f"{ratio}: taken for a decompression bomb"),
        ):
            if wrong:
                raise ImageError(self.name, reason)

    def open(self) -> IO[bytes]:
        """A stream of its bytes."""
        return self._archive.open(self._info)

    def _beside(self, relative: str) -> Source | None:
        path, names = posixpath.join(posixpath.dirname(self.member), relative), self._archive.NameToInfo
        known = names.get(path) or names.get(posixpath.normpath(path))
        return ZipSource(self._archive, self._path, known, DEFAULT_LIMITS) if known else None


def leads_out(relative: str) -> bool:
    """Whether a relative path points out of its folder."""
    parts = relative.replace("\\", "/").split("/")
    drive = re.match(r"[A-Za-z]:", parts[0]) is not None
    return parts[0] == "" or ".." in parts or drive or "\0" in relative


def raise_error(error: ImageError) -> None:
    """What is done with an error where nobody wants to be called with it."""
    raise error


@contextmanager
def reported(on_error: OnError) -> Iterator[None]:
    """A block that ends with its first ``ImageError``, with which ``on_error`` is called."""
    try:
        yield
    except ImageError as error:
        on_error(error)


def open_file(path: Path) -> FileSource:
    """A file on disk; ``ImageError`` where it cannot be had."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return FileSource(path)
        reason = "neither a file nor a folder; save what comes out of a pipe as a file and name that"
    except PermissionError as error:
        reason = f"not accessible: {error.strerror}"
    except (OSError, ValueError):
        reason = "a link to nothing" if os.path.islink(path) else "no such file or folder"
    raise ImageError(path, reason)


def split_member(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """Archive and member of ``archive.zip!folder/slice.png``; None for any other path and an existing file.

    The archive is the shortest part before a ``!`` that is a file, whatever its name; where there is none, the
    shortest that ends in ``.zip``.
    """
    text = Path(path).as_posix()
    if os.path.isfile(path):
        return None
    names = [text[: match.start()] for match in re.finditer("!", text)]
    names = list(filter(os.path.isfile, names)) or [name for name in names if name.lower().endswith(".zip")]
    return (Path(names[0]), text[len(names[0]) + 1 :]) if names else None


def files_below(folder: Path, on_error: OnError = lambda _: None) -> Iterator[FileSource]:
    """Every file below a folder, as ``directories_below`` finds them."""
    for files in directories_below(folder, on_error):
        yield from files


def directories_below(folder: Path, on_error: OnError) -> Iterator[Iterator[FileSource]]:
    """Every file below a folder without junk, directory by directory: no more than the names in one are in memory.

    A directory's own files come before its sub-directories', both in natural order. A linked directory is followed;
    none is read twice. ``on_error`` is called for what is left out: directories that cannot be listed, links to nothing
    or to a directory that holds this one, and files that are not accessible.
    """
    root = Path(os.path.realpath(folder))
    seen = {root}

    def unlisted(error: OSError) -> None:
        on_error(ImageError(error.filename or folder, f"not accessible: {error.strerror}"))

    def is_new(path: Path) -> bool:
        """Whether a directory was not read yet, under this or another name; it then was."""
        target = Path(os.path.realpath(path))
        if path.is_symlink() and target != root and root.is_relative_to(target):
            reason = "a link to a folder that holds what is read already; name what else is to be read in it"
            on_error(ImageError(path, reason))
            return False
        known = len(seen)
        seen.add(target)
        return len(seen) > known

    for path, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        yield _sources(Path(path), names, on_error)
        folders[:] = [name for name in _in_order(folders) if is_new(Path(path, name))]


def _sources(folder: Path, names: list[str], on_error: OnError) -> Iterator[FileSource]:
    for name in _in_order(names):
        with reported(on_error):
            yield open_file(folder / name)


def _in_order(names: list[str]) -> list[str]:
    return sorted((name for name in names if not is_junk(PurePath(name))), key=natural_key)


@contextmanager
def open_archive(
    archive: Path | Source, limits: Limits = DEFAULT_LIMITS, on_error: OnError = raise_error
) -> Iterator[list[ZipSource]]:
    """The files in a zip archive, on disk or in memory, in natural order, without junk; readable in the block.

    ``on_error`` is called for each member that is left out: encrypted, a link, of a name that leads out of the archive,
    too large for what it is packed to, packed as cannot be read; without it the first is raised.

    Raises:
        ImageError: damaged, or it holds more than ``limits`` allow.
    """
    name, sources = archive.name if isinstance(archive, Source) else str(archive), []
    with ExitStack() as stack:
        with guard(name, "zip"):
            file = archive if isinstance(archive, Source) else FileSource(archive)
            if isinstance(file, MemorySource):
                file.check_size(limits)
            stream = stack.enter_context(file.open())
            end = zipfile._EndRecData(stream)  # type: ignore[attr-defined] # before all are in memory
            if end and end[5] > _LONGEST_ENTRY * limits.members:
                raise ImageError(name, f"more members than the limit of {limits.members:,}")
            opened = stack.enter_context(zipfile.ZipFile(stream))
            members = opened.infolist()
            if len(members) > limits.members:
                raise ImageError(name, f"{len(members):,} members are more than the limit of {limits.members:,}")
            for member in sorted(members, key=lambda member: natural_key(member.filename)):
                junk = is_junk(PurePosixPath(member.filename)) and not leads_out(member.filename)
                if not (junk or member.is_dir()):
                    with reported(on_error):
                        sources.append(ZipSource(opened, name, member, limits))
            total = sum(source.size for source in sources)
            if total > limits.archive_bytes:
                raise ImageError(name, f"unpacks to {total:,} bytes, more than the limit of {limits.archive_bytes:,}")
        yield sources


def is_junk(path: PurePath) -> bool:
    """Whether an operating system or archiver left a path behind: dotfiles, ``__MACOSX``, ``PaxHeader``."""
    return path.name.lower() in _JUNK_FILES or any(
        part in _JUNK_FOLDERS or (part.startswith(".") and part not in {".", ".."}) for part in path.parts
    )


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key under which ``slice2`` comes before ``slice10``."""
    parts = re.split(r"([0-9]{1,18})", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


@contextmanager
def guard(name: str, file_format: str) -> Iterator[None]:
    """Turn every exception of the block that is no ``GroundglassError`` into ``ImageError`` of the file of that name.

    ``file_format`` is what it is taken for, such as ``PNG``.
    """
    try:
        yield
    except GroundglassError:
        raise
    except MemoryError as error:
        raise ImageError(name, f"too large to be read as {file_format} in the memory there is") from error
    except OSError as error:
        reason = error.strerror or one_line(str(error))
        raise ImageError(name, f"cannot be read as {file_format}: {reason}") from error
    except Exception as error:
        reason = one_line(str(error) or type(error).__name__)
        raise ImageError(name, f"damaged or not valid {file_format}: {reason}") from error


def guard_each(slices: Iterator[CTSlice], name: str, file_format: str) -> Iterator[CTSlice]:
    """The slices, each step guarded by itself, so that the caller's own exceptions stay what they are."""
    while True:
        with guard(name, file_format):
            following = next(slices, None)
        if following is None:
            return
        yield following
