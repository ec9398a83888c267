"""Zip archives, whose members are read where they are: nothing is unpacked to disk."""

from __future__ import annotations

import posixpath
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from groundglass.errors import ImageError
from groundglass.files import one_line
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    FileSource,
    Limits,
    MemorySource,
    OnError,
    Source,
    guard,
    is_junk,
    leads_out,
    natural_key,
    raise_error,
)

_SMALL = 16 * 2**20  # bytes that may have any compression ratio: an empty picture compresses very well
_PACKED = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA})


class ZipSource(Source):
    """A member of an open archive."""

    member: str

    def __init__(self, archive: zipfile.ZipFile, path: str, member: zipfile.ZipInfo) -> None:
        self.name = f"{path}!{one_line(member.filename, 1000)}"
        self.size, self.member = member.file_size, member.filename
        self._archive, self._path, self._info = archive, path, member

    def open(self) -> IO[bytes]:
        """A stream of its bytes."""
        return self._archive.open(self._info)

    def _beside(self, relative: str) -> Source | None:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.member), relative))
        known = self._archive.NameToInfo.get(path)
        return None if known is None else ZipSource(self._archive, self._path, known)

    def check_member(self, limits: Limits) -> None:
        """Raise ``ImageError`` where it cannot be read, or is out to do harm."""
        info, unpacked, packed = self._info, self.size, self._info.compress_size
        if leads_out(info.orig_filename):
            raise ImageError(self.name, "its name leads out of the archive; rename it")
        if info.compress_type not in _PACKED:
            raise ImageError(self.name, "packed by Deflate64 or another method that cannot be read; unpack it first")
        if info.flag_bits & 0x1:
            raise ImageError(self.name, "encrypted; unpack the archive with its password and read the folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ImageError(self.name, "a link; links in archives are not followed")
        if unpacked > max(_SMALL, limits.ratio * packed):
            reason = f"{packed:,} bytes unpack to {unpacked:,}, more than {limits.ratio:g} times as much"
            raise ImageError(self.name, f"{reason}: taken for a decompression bomb")


@contextmanager
def open_archive(
    archive: Path | Source, limits: Limits = DEFAULT_LIMITS, on_error: OnError | None = None
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
            opened = stack.enter_context(zipfile.ZipFile(stack.enter_context(file.open())))
            members = opened.infolist()
            if len(members) > limits.members:
                raise ImageError(name, f"{len(members):,} members are more than the limit of {limits.members:,}")
            for member in sorted(members, key=lambda member: natural_key(member.filename)):
                junk = is_junk(PurePosixPath(member.filename)) and not leads_out(member.filename)
                if member.is_dir() or junk:
                    continue
                source = ZipSource(opened, name, member)
                try:
                    source.check_member(limits)
                    sources.append(source)
                except ImageError as error:
                    (on_error or raise_error)(error)
            total = sum(source.size for source in sources)
            if total > limits.archive_bytes:
                raise ImageError(name, f"unpacks to {total:,} bytes, more than the limit of {limits.archive_bytes:,}")
        yield sources
