"""What a user names on the command line, as paths that exist: patterns expanded, nothing read twice."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from groundglass.errors import PredictionError
from groundglass.imaging.source import FileSource, files_below, is_junk, natural_key, split_member

if TYPE_CHECKING:
    from groundglass.imaging.read import Scaled


def expand(arguments: Sequence[str]) -> list[Path]:
    """Files, folders, zips and members of zips that the arguments name, in their order.

    A path that exists means itself, whatever characters are in it; otherwise ``*``, ``?``, ``[...]`` and
    ``**`` are expanded, in natural order and without hidden files. What is named twice, or lies in a folder that is
    named too, is read once, and voxels with their header.

    Raises:
        PredictionError: a path does not exist, or a pattern matches nothing.
    """
    named = dict.fromkeys(path for argument in arguments for path in _named(argument))
    # A manifest may name what lies elsewhere; one that a pattern matches is a file among others.
    manifests = {Path(argument) for argument in arguments if argument.lower().endswith(".csv")}
    return [path for path in named if len(named) == 1 or path in manifests or not _is_covered(path, named)]


def _is_covered(path: Path, named: Container[Path]) -> bool:
    from groundglass.imaging.volume import header_of  # noqa: PLC0415 - not for a single path

    header = header_of(FileSource(path)) if os.path.isfile(path) else None
    # What is hidden in a folder is passed over there, and read only because it was named itself.
    return (header is not None and Path(header.name) in named) or any(
        parent in named and not is_junk(PurePosixPath(path.relative_to(parent))) for parent in path.parents
    )


def _named(argument: str) -> list[Path]:
    if os.path.exists(argument):
        return [Path(argument)]
    if os.path.lexists(argument):
        raise PredictionError(f"{argument}: a link to nothing")
    member = split_member(Path(argument))
    if member is not None and os.path.exists(member[0]):
        if member[1] not in (_members(member[0]) or [member[1]]):
            raise PredictionError(f"{argument}: the archive has no such member")
        return [Path(argument)]
    if argument == "-":
        raise PredictionError("-: standard input is not read; save it as a file and name that")
    if not glob.has_magic(argument):
        raise PredictionError(f"{argument}: no such file or folder")
    # A pattern that ends in ** gives its beginning back, whether that exists or not.
    found = sorted(filter(os.path.lexists, glob.glob(argument, recursive=True)), key=natural_key)
    if not found:
        raise PredictionError(f"{argument}: no file matches this pattern")
    return [Path(path) for path in found]


def _members(archive: str | Path) -> list[str] | None:
    """The names of an archive's members; None where it is damaged, which whoever reads it says."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None


def named_by(path: str | os.PathLike[str]) -> Iterator[Path | Scaled]:
    """The files that a manifest (``.csv``) names, or a DataError where it is damaged; any other path means itself."""
    path = Path(path)
    if path.suffix.lower() == ".csv" and os.path.isfile(path):
        from groundglass.data.manifest import iterate_paths  # noqa: PLC0415 - for manifests alone

        yield from iterate_paths(path)
    else:
        yield path


def count_files(paths: Sequence[Path], wanted: Callable[[str], bool] = lambda _: True) -> int:
    """How many files there are to read, roughly: nothing is opened but the directories of zips."""
    count = 0
    for path in (Path(str(file)) for each in paths for file in named_by(each)):
        files = [str(path)]
        if os.path.isdir(path):
            files = [each.name for each in files_below(path)]
        for file in filter(wanted, files):
            members = _members(file) if file.lower().endswith(".zip") else None
            images = (name[-1:] != "/" and not is_junk(PurePosixPath(name)) for name in members or ())
            count += 1 if members is None else sum(images)
    return count
