"""Download COVID-CT from its authors' repository, every image verified against the published SHA-256.

COVID-CT as people have it: a clone with its zips or an extracted folder, with patients, split and sources.

The data set: Zhao et al., "COVID-CT-Dataset: a CT scan dataset about COVID-19", arXiv:2003.13865,
https://github.com/UCSD-AI4H/COVID-CT. The package carries its table of file names, labels, patients, official
split and SHA-256 (``covid_ct.csv``), not its images, which belong to their publishers.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Protocol

from groundglass.data.manifest import PARTS, Label, Manifest, Record, join_member
from groundglass.errors import DataError
from groundglass.files import name_some, write_bytes
from groundglass.imaging.source import is_junk

NAME = "COVID-CT"
IMAGES_FOLDER = "Images-processed"
SPLIT_FOLDER = "Data-split"
CLASS_FOLDERS = {Label.COVID: "CT_COVID", Label.NON_COVID: "CT_NonCOVID"}


@dataclass(frozen=True)
class Entry:
    """One published image.

    Attributes:
        file: its file name, unique in the data set.
        label: its class.
        patient_id: from the meta files of the data set, unique over both classes.
        split: its part of the official split.
        sha256: hash of the file as published.
    """

    file: str
    label: Label
    patient_id: str
    split: str
    sha256: str

    @property
    def source(self) -> str:
        """Where the image was published, as told by its file name.

        COVID: the preprint (bioRxiv and medRxiv DOI suffix such as ``2020.03.12.20034686``) or the journal
        article (``kjr-21-e24``, ``PIIS0140673620301549``, ...) whose figure it was cut from; images of one
        article may still show scanners of several hospitals. NonCOVID: names hold only numbers, so all that
        can be told is the collection: ``medpix`` for the ``.png`` (MedPix teaching files) and ``crawled`` for
        the ``.jpg`` (figures from LUNA, Radiopaedia and PubMed Central, not told apart by the data set).
        """
        if self.label is Label.NON_COVID:
            return "medpix" if self.file.endswith(".png") else "crawled"
        match = _IDENTIFIER.match(self.file) or _PAGE.match(self.file)
        return match.group(1) if match else "unknown"

    @property
    def path(self) -> PurePosixPath:
        """Where the image lies in an extracted copy of the data set."""
        return PurePosixPath(IMAGES_FOLDER, CLASS_FOLDERS[self.label], self.file)


_LARGEST_IMAGE = 16 * 2**20  # bytes; none of those published reaches a tenth

# Figures were named <article>-p<page>-<number on page>[_<row>][%<panel>].
_IDENTIFIER = re.compile(r"(\d{4}\.\d\d\.\d\d\.\d+|PIIS\d+)")
_PAGE = re.compile(r"(.+?)-p\d+-\d")


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """All 746 published images, COVID first, by file name."""
    text = resources.files("groundglass.data").joinpath("covid_ct.csv").read_text(encoding="utf-8")
    return tuple(
        Entry(row["file"], Label(row["label"]), row["patient_id"], row["split"], row["sha256"])
        for row in csv.DictReader(text.splitlines())
    )


def looks_like(path: Path) -> bool:
    """Whether a folder is laid out like COVID-CT: a clone, an extracted copy, or its image folder.

    A folder whose ``CT_COVID`` and ``CT_NonCOVID`` hold none of the published file names is somebody's own.
    """
    if (path / IMAGES_FOLDER).is_dir():
        return True
    if any((path / f"{name}.zip").is_file() for name in CLASS_FOLDERS.values()):
        return True
    return any((path / CLASS_FOLDERS[entry.label] / entry.file).is_file() for entry in entries())


@dataclass(frozen=True)
class Copy:
    """What somebody's copy of the data set holds.

    Attributes:
        images: its ``Images-processed`` folder.
        found: path of every image that is there and is as published, by file name.
        missing: images that are not there.
        different: images whose content is not the one published.
    """

    images: Path
    found: dict[str, Path]
    missing: tuple[Entry, ...]
    different: tuple[Entry, ...]


def examine(path: Path) -> Copy:
    """Compare a clone, an extracted folder or its ``Images-processed`` folder with what was published.

    Each of the 746 images is taken from the folder ``CT_COVID`` or ``CT_NonCOVID`` if it is there, else from
    the zip beside it, which is read in place. Other files are left alone.

    Raises:
        DataError: if a zip is no zip.
    """
    images = path / IMAGES_FOLDER if (path / IMAGES_FOLDER).is_dir() else path
    found: dict[str, Path] = {}
    different: list[Entry] = []
    for label in Label:
        for entry, place, content in _contents(images, label):
            if hashlib.sha256(content).hexdigest() == entry.sha256:
                found[entry.file] = place
            else:
                different.append(entry)
    missing = tuple(entry for entry in entries() if entry.file not in found and entry not in different)
    return Copy(images, found, missing, tuple(different))


def load_covid_ct(path: Path) -> Manifest:
    """Read COVID-CT from any of the forms that `examine` knows.

    Where there is a ``Data-split`` folder, it must agree with the official split.

    Raises:
        DataError: naming and counting images that are missing or differ, and a split file that disagrees.
    """
    copy = examine(path)
    if copy.missing:
        raise DataError(
            f"{copy.images}: {len(copy.missing)} of the {len(entries())} COVID-CT images are missing: "
            f"{_name_entries(copy.missing)}; `groundglass data download covid-ct` fetches what is missing"
        )
    if copy.different:
        raise DataError(
            f"{copy.images}: {len(copy.different)} images differ from those published (SHA-256): "
            f"{_name_entries(copy.different)}; `groundglass data download covid-ct` replaces them; images of "
            "your own belong into a folder COVID/, NonCOVID/ or a manifest CSV"
        )
    _check_split_files(path / SPLIT_FOLDER)
    records = tuple(
        Record(copy.found[entry.file], entry.label, entry.patient_id, entry.source, entry.split)
        for entry in entries()
    )
    return Manifest(name=NAME, root=path, records=records)


def image_members(archive: zipfile.ZipFile) -> dict[str, str]:
    """File name to member of a zip's images, without what macOS and tar leave behind.

    ``__MACOSX/`` and ``PaxHeader/`` entries carry the images' very names and hold no image.
    """
    members: dict[str, str] = {}
    for member in archive.namelist():
        path = PurePosixPath(member)
        if not member.endswith("/") and not is_junk(path):
            members.setdefault(path.name, member)
    return members


def read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    """A member's bytes; none where it is damaged or far too large, which then shows as a wrong hash."""
    try:
        with archive.open(member) as stream:
            content = stream.read(_LARGEST_IMAGE + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return b""
    return content if len(content) <= _LARGEST_IMAGE else b""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An opened zip.

    Raises:
        DataError: if it is no zip file or a damaged one.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: is no readable zip file ({error}); fetch it again") from error
    with archive:
        yield archive


def read_split_file(path: Path) -> tuple[str, ...]:
    """File names in one of the data set's ``Data-split`` text files; blank lines and spaces do not matter."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as the official split ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


def _contents(images: Path, label: Label) -> Iterator[tuple[Entry, Path, bytes]]:
    """The images of one class that are there, with their places and bytes; a zip is opened once."""
    folder = images / CLASS_FOLDERS[label]
    rest: list[Entry] = []
    for entry in entries():
        if entry.label is not label:
            continue
        plain = folder / entry.file
        if plain.is_file():
            yield entry, plain, plain.read_bytes()
        else:
            rest.append(entry)
    zipped = images / f"{folder.name}.zip"
    if rest and zipped.is_file():
        with open_zip(zipped) as archive:
            members = image_members(archive)
            for entry in rest:
                if entry.file in members:
                    member = members[entry.file]
                    yield entry, join_member(zipped, member), read_member(archive, member)


def _name_entries(chosen: tuple[Entry, ...]) -> str:
    return name_some([entry.file for entry in chosen])


def _check_split_files(folder: Path) -> None:
    if not folder.is_dir():
        return
    for label, name in CLASS_FOLDERS.items():
        for part in PARTS:
            file = folder / label.value / f"{part}{name}.txt"
            if not file.is_file():
                continue
            official = {entry.file for entry in entries() if entry.label is label and entry.split == part}
            strangers = sorted(official.symmetric_difference(read_split_file(file)))
            if strangers:
                raise DataError(
                    f"{file}: differs from the official split in {len(strangers)} names: "
                    f"{name_some(strangers)}; restore it, or give your own split as a manifest CSV"
                )


BASE_URL = "https://github.com/UCSD-AI4H/COVID-CT/raw/master"
"""Where ``Images-processed/CT_COVID.zip`` and ``CT_NonCOVID.zip`` lie."""

NOTICE = (
    "The images of COVID-CT were cut from published figures and belong to their publishers; they are not "
    "part of groundglass. Cite Zhao et al., arXiv:2003.13865."
)

_STORE = ".download"
_TIMEOUT = 30  # seconds without a byte


class Progress(Protocol):
    """What a download reports its bytes to, as pooch wants it."""

    total: int

    def update(self, count: int) -> None:
        """``count`` more bytes have come."""

    def reset(self) -> None:
        """Start at 0 again."""

    def close(self) -> None:
        """The file is whole, or the transfer has failed."""


@dataclass(frozen=True)
class Download:
    """What a download did.

    Attributes:
        folder: where the data set now lies.
        kept: number of images that were already there and as published.
        fetched: number of images written.
    """

    folder: Path
    kept: int
    fetched: int


def download_covid_ct(
    folder: Path, base_url: str = BASE_URL, progress: Callable[[str], Progress] | None = None
) -> Download:
    """Bring ``folder`` to hold all images of COVID-CT as published.

    Images that are there and as published are kept, so an interrupted download goes on where it was; a zip is
    fetched only if one of its images is wanted. Images appear whole and verified or not at all.

    Args:
        folder: receives ``Images-processed/CT_COVID/`` and ``CT_NonCOVID/``; it is created if need be.
        base_url: where to fetch from; in it lies ``Images-processed/``.
        progress: makes a progress display for the file of the given name.

    Raises:
        DataError: if the server cannot be reached or breaks off, or images in its zips are missing or are not
            those published; the others have been written then.
    """
    try:
        # Made first, so that `examine` and this function agree on where the images lie.
        (folder / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    before = examine(folder)
    store = before.images / _STORE
    _clear(store)
    faults: list[str] = []
    try:
        for label in Label:
            wanted = [entry for entry in (*before.missing, *before.different) if entry.label is label]
            if wanted:
                faults += _fetch_class(before.images, label, wanted, base_url, progress)
    finally:
        _clear(store)
    if faults:
        raise DataError(
            f"{len(faults)} images could not be had from {base_url}: {name_some(faults)}; "
            f"the others are in {folder}"
        )
    return Download(folder, kept=len(before.found), fetched=len(entries()) - len(before.found))


def _fetch_class(
    images: Path,
    label: Label,
    wanted: Sequence[Entry],
    base_url: str,
    progress: Callable[[str], Progress] | None,
) -> list[str]:
    """Fetch one class's zip and write the wanted images; returns names and faults of those not to be had."""
    name = f"{CLASS_FOLDERS[label]}.zip"
    url = f"{base_url.rstrip('/')}/{IMAGES_FOLDER}/{name}"
    archive = _retrieve(url, images / _STORE, name, progress(name) if progress else None)
    faults = _extract(archive, url, wanted, images / CLASS_FOLDERS[label])
    # A whole zip outlives an interruption, but neither success nor a fault of its own.
    archive.unlink()
    return faults


def _clear(store: Path) -> None:
    """Remove what a killed run may have left half-fetched; whole zips stay."""
    if store.is_dir():
        whole = {f"{name}.zip" for name in CLASS_FOLDERS.values()}
        for file in store.iterdir():
            if file.name not in whole:
                file.unlink()
        with suppress(OSError):
            store.rmdir()


def _extract(archive: Path, url: str, wanted: Sequence[Entry], folder: Path) -> list[str]:
    """Write the wanted images; returns names and faults of those that could not be had."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return list(_write_published(opened, wanted, folder))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DataError(f"{url}: is no zip file ({error}); is the address right?") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror})") from error


def _write_published(archive: zipfile.ZipFile, wanted: Sequence[Entry], folder: Path) -> Iterator[str]:
    members = image_members(archive)
    for entry in wanted:
        member = members.get(entry.file)
        content = read_member(archive, member) if member else b""
        if member is None:
            yield f"{entry.file} (not in the zip)"
        elif sha256(content).hexdigest() != entry.sha256:
            yield f"{entry.file} (not the image published)"
        else:
            write_bytes(folder / entry.file, content)


def _retrieve(url: str, folder: Path, name: str, progress: Progress | None) -> Path:
    import pooch  # noqa: PLC0415 - slow to import

    downloader = pooch.HTTPDownloader(progressbar=progress or False, chunk_size=2**18, timeout=_TIMEOUT)
    try:
        with _quiet(pooch.get_logger()):
            # No hash of the zip is asked for: the images in it are verified one by one.
            return Path(pooch.retrieve(url, None, fname=name, path=folder, downloader=downloader))
    except ValueError as error:
        raise DataError(f"{url}: is no address to fetch from ({error})") from error
    except OSError as error:
        raise DataError(
            f"{url}: cannot be fetched ({_reason(error)}); what was fetched before is kept, "
            "run the command again"
        ) from error
    finally:
        if progress:
            progress.close()


def _reason(error: OSError) -> str:
    """A network library's nested exceptions in a few words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    kind = type(error).__name__
    if "Timeout" in kind:
        return f"no answer within {_TIMEOUT} s"
    if kind in {"ChunkedEncodingError", "ContentDecodingError"}:
        return "the connection broke off"
    if kind in {"ConnectionError", "SSLError", "ProxyError"}:
        return "no connection to the server"
    return error.strerror or kind


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's advice on hashes to itself."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
