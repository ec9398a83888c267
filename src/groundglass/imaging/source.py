"""One file's bytes, whether it lies in a folder, in an archive or in memory."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from groundglass.errors import ImageError
from groundglass.imaging.limits import Limits

_JUNK_FOLDERS = frozenset({"__MACOSX", "PaxHeader", "PaxHeaders"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})


class Source(ABC):
    """A file to be read.

    Attributes:
        name: how messages and ``Origin.file`` call it.
        size: bytes, decompressed.
    """

    name: str
    size: int

    @abstractmethod
    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""

    @abstractmethod
    def sibling(self, relative: str) -> Source | None:
        """The file of that relative path from this file's folder, or None where there is none.

        Raises:
            ImageError: ``relative`` points out of the folder.
        """

    @abstractmethod
    def _content(self) -> bytes: ...

    def read(self, limits: Limits) -> bytes:
        """All bytes.

        Raises:
            ImageError: the file is empty or larger than ``limits.file_bytes``.
        """
        if self.size == 0:
            raise ImageError(self.name, "the file is empty")
        if self.size > limits.file_bytes:
            limit = f"the limit of {limits.file_bytes:,}"
            raise ImageError(self.name, f"{self.size:,} bytes are more than {limit}")
        return self._content()


class FileSource(Source):
    """A file on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.size = path.stat().st_size

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""
        with self.path.open("rb") as stream:
            return stream.read(count)

    def sibling(self, relative: str) -> Source | None:
        """The file of that relative path from this file's folder; never one outside it."""
        check_inside(self.name, relative)
        folder = self.path.parent.resolve()
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder):
            raise ImageError(self.name, f"refers to {relative!r}, a link out of its own folder")
        return FileSource(self.path.parent / relative) if path.is_file() else None

    def _content(self) -> bytes:
        return self.path.read_bytes()


class MemorySource(Source):
    """A file whose bytes are in memory; nothing lies beside it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.size = len(content)
        self.content = content

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""
        return self.content[:count]

    def sibling(self, relative: str) -> Source | None:
        """None, or an error for a path out of the file's folder."""
        check_inside(self.name, relative)
        return None

    def _content(self) -> bytes:
        return self.content


def files_below(folder: Path, on_error: Callable[[ImageError], None] | None = None) -> Iterator[FileSource]:
    """Every file below a folder in natural order, without junk; linked folders are left out.

    Args:
        folder: where to look.
        on_error: called for each sub-folder that cannot be listed and each file that cannot be looked at;
            without it they are passed over.
    """

    def report(error: OSError) -> None:
        if on_error is not None:
            on_error(ImageError(error.filename or folder, f"cannot be looked into: {error.strerror}"))

    for path in paths_below(folder, report):
        try:
            source = FileSource(path) if path.is_file() else None
        except OSError as error:  # not allowed, or gone since the folder was listed
            report(error)
            continue
        if source is not None:
            yield source


def paths_below(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """As ``files_below``, but nothing is looked at but the folders, one at a time; so memory does not grow.

    Args:
        folder: where to look.
        on_error: called for each folder that cannot be listed.
    """
    try:
        with os.scandir(folder) as listed:
            # A slash after a folder's name puts it where the paths of its files belong.
            names = [entry.name + "/" * _is_folder(entry) for entry in listed]
    except OSError as error:
        on_error(error)
        return
    names.sort(key=natural_key)
    for name in names:
        path = folder / name
        if is_junk(PurePosixPath(name)):
            continue
        if not name.endswith("/"):
            yield path
        elif not path.is_symlink():
            yield from paths_below(path, on_error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def is_junk(path: PurePosixPath) -> bool:
    """Whether an operating system or archiver left a path behind: dotfiles, ``__MACOSX``, ``PaxHeader``."""
    return path.name.lower() in _JUNK_FILES or any(
        part in _JUNK_FOLDERS or (part.startswith(".") and part not in {".", ".."}) for part in path.parts
    )


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key under which ``slice2`` comes before ``slice10``."""
    parts = re.split(r"([0-9]{1,18})", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def check_inside(name: str, relative: str) -> None:
    """Refuse a path that could leave its folder: absolute, with a drive letter, or through ``..``.

    Raises:
        ImageError: naming ``name``, the file that holds the path.
    """
    parts = relative.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in relative:
        raise ImageError(name, f"refers to {relative[:120]!r}, a path out of its own folder")
