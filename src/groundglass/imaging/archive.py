"""Members of a zip archive as files to read: streamed, bounded and never unpacked to disk."""

from __future__ import annotations

import posixpath
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from groundglass.errors import ImageError
from groundglass.imaging.guard import guard, one_line
from groundglass.imaging.limits import RATIO_FROM, Limits
from groundglass.imaging.source import Source, check_inside, is_junk, natural_key

_ENCRYPTED = 0x1


class ZipSource(Source):
    """A member of an open archive.

    Attributes:
        member: its path in the archive.
    """

    def __init__(self, archive: zipfile.ZipFile, path: str, member: zipfile.ZipInfo) -> None:
        self.name = f"{path}!{one_line(member.filename, 1000)}"
        self.size = member.file_size
        self._archive = archive
        self._path = path
        self.member = member.filename
        self._info = member

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""
        with guard(self.name, "zip"), self._archive.open(self._info) as stream:
            return stream.read(count)

    def sibling(self, relative: str) -> Source | None:
        """The member of that relative path from this member's folder; never one outside it."""
        check_inside(self.name, relative)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.member), relative))
        try:
            return ZipSource(self._archive, self._path, self._archive.getinfo(path))
        except KeyError:
            return None

    def _content(self) -> bytes:
        with guard(self.name, "zip"):
            return self._archive.read(self._info)


def split_member(path: Path) -> tuple[Path, str] | None:
    """Archive and member of a path such as ``archive.zip!folder/slice.png``, or None for any other path."""
    archive, mark, member = path.as_posix().partition("!")
    while mark and not Path(archive).is_file():
        more, mark, member = member.partition("!")
        archive = f"{archive}!{more}"
    return (Path(archive), member) if mark else None


@contextmanager
def open_archive(path: Path, limits: Limits) -> Iterator[list[ZipSource]]:
    """The files in a zip archive in natural order, junk left out; readable while the block lasts.

    Raises:
        ImageError: damaged, encrypted, holds a path that leaves it or a link, or more than ``limits`` allow.
    """
    with guard(str(path), "zip"):
        archive = zipfile.ZipFile(path)
    with archive:
        with guard(str(path), "zip"):
            sources = _check(archive, str(path), limits)
        yield sources


def _check(archive: zipfile.ZipFile, path: str, limits: Limits) -> list[ZipSource]:
    members = archive.infolist()
    if len(members) > limits.members:
        raise ImageError(path, f"{len(members):,} members are more than the limit of {limits.members:,}")
    total = sum(member.file_size for member in members)
    if total > limits.archive_bytes:
        raise ImageError(path, f"unpacks to {total:,} bytes, more than the limit of {limits.archive_bytes:,}")
    sources = []
    for member in sorted(members, key=lambda member: natural_key(member.filename)):
        check_inside(path, member.filename)
        if member.is_dir() or is_junk(PurePosixPath(member.filename)):
            continue
        source = ZipSource(archive, path, member)
        _check_member(source, member, limits)
        sources.append(source)
    return sources


def _check_member(source: ZipSource, member: zipfile.ZipInfo, limits: Limits) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise ImageError(source.name, "encrypted; unpack the archive with its password and read the folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ImageError(source.name, "a link; links in archives are not followed")
    if member.file_size > max(RATIO_FROM, limits.ratio * member.compress_size):
        raise ImageError(
            source.name,
            f"unpacks {member.compress_size:,} to {member.file_size:,} bytes, "
            f"more than {limits.ratio:g} times as much: taken for a decompression bomb",
        )
