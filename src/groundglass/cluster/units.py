"""What is to be judged, cut into pieces for workers: paths only, listed as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from groundglass.errors import ImageError
from groundglass.imaging.source import paths_below
from groundglass.inference.paths import named_by

LARGEST = 64
"""Files of a unit: a third of a second's work, so that the last worker does not keep the others waiting."""

# Each of these may hold a whole series, and is a unit by itself.
_OF_MANY_SLICES = (".zip", ".nii", ".nii.gz", ".mhd", ".mha")


@dataclass(frozen=True)
class Unit:
    """Files that a worker judges in one go.

    Attributes:
        files: their paths.
        of_folder: they lie in a folder that was asked about, so that what is no image is passed over.
    """

    files: tuple[str, ...]
    of_folder: bool


@dataclass(frozen=True)
class FolderEnd:
    """All of a folder has been listed.

    Attributes:
        path: of the folder.
        skipped: some of its files were left out, so that it is not empty whatever the others hold.
    """

    path: str
    skipped: bool


Step = Unit | ImageError | FolderEnd
_File = tuple[str, bool]


def steps(paths: Iterable[Path], skip: Callable[[str], bool] | None = None) -> Iterator[Step]:
    """Units in the order of the paths, and within a folder in natural order of the names.

    Nothing is opened but folders and manifests, one at a time; memory does not grow with their number.

    Args:
        paths: files, folders, zips, members of zips, or manifests (``.csv``), which stand for the files they
            name.
        skip: told a file's name, leaves it out.

    Raises:
        DataError: a manifest is damaged.
    """
    waiting: list[str] = []
    of_folder = False
    for step in chain.from_iterable(_listed(path, skip) for path in paths):
        if isinstance(step, tuple):
            file, belongs = step
            if waiting and belongs != of_folder:
                yield Unit(tuple(waiting), of_folder)
                waiting = []
            of_folder = belongs
            waiting.append(file)
        if waiting and (not isinstance(step, tuple) or len(waiting) == LARGEST or _is_large(waiting)):
            yield Unit(tuple(waiting), of_folder)
            waiting = []
        if not isinstance(step, tuple):
            yield step
    if waiting:
        yield Unit(tuple(waiting), of_folder)


def _is_large(waiting: list[str]) -> bool:
    return waiting[-1].lower().endswith(_OF_MANY_SLICES)


def _listed(path: Path, skip: Callable[[str], bool] | None) -> Iterator[_File | ImageError | FolderEnd]:
    if path.is_dir():
        yield from _below(path, skip)
        return
    for file in named_by(path):
        if skip is None or not skip(str(file)):
            yield str(file), False


def _below(folder: Path, skip: Callable[[str], bool] | None) -> Iterator[_File | ImageError | FolderEnd]:
    errors: list[OSError] = []
    skipped = False
    for path in paths_below(folder, errors.append):
        yield from _reported(folder, errors)
        if skip is not None and skip(str(path)):
            skipped = True
        else:
            yield str(path), True
    yield from _reported(folder, errors)
    yield FolderEnd(str(folder), skipped)


def _reported(folder: Path, errors: list[OSError]) -> Iterator[ImageError]:
    for error in errors:
        yield ImageError(error.filename or folder, f"cannot be looked into: {error.strerror}")
    errors.clear()
