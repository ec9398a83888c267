"""COVID-CT: read a clone, an extracted folder or zips, or download it; every image is verified.

The data set: Zhao et al., "COVID-CT-Dataset: a CT scan dataset about COVID-19", arXiv:2003.13865,
https://github.com/UCSD-AI4H/COVID-CT. The package carries a table (``covid_ct.csv``), not the images, which belong to
their publishers. Its sources follow from the files' names: of COVID the preprint (its DOI's suffix) or article whose
figure an image was cut from, perhaps of several hospitals; of NonCOVID, whose names are numbers, ``medpix`` for the
``.png`` (MedPix teaching files) and ``crawled`` for the ``.jpg`` (figures from LUNA, Radiopaedia and PubMed Central).
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path, PurePosixPath

from groundglass.data.manifest import PARTS, Label, Manifest, Record
from groundglass.errors import DataError, ImageError
from groundglass.files import name_some, write_bytes
from groundglass.imaging.archive import open_archive

BASE_URL = "https://github.com/UCSD-AI4H/COVID-CT/raw/master"
"""Where ``Images-processed/CT_COVID.zip`` and ``CT_NonCOVID.zip`` lie."""

NOTICE = (
    "The images of COVID-CT were cut from published figures and belong to their publishers; they are not "
    "part of groundglass. Cite Zhao et al., arXiv:2003.13865."
)

Progress = Callable[[str, int, int | None], None]
"""Called with the file being fetched, the bytes just received, and their total where it is known."""

_IMAGES = "Images-processed"
_CLASS_FOLDERS = {Label.COVID: "CT_COVID", Label.NON_COVID: "CT_NonCOVID"}
# What a training with several sources calls all the publications together.
_COLLECTION = "covid-ct"
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Entry:
    """One published image: file name (unique), class, patient (unique over both classes), source, part, SHA-256."""

    file: str
    label: Label
    patient_id: str
    source: str
    split: str
    sha256: str

    @property
    def path(self) -> PurePosixPath:
        """Where the image lies in an extracted copy of the data set."""
        return PurePosixPath(_IMAGES, _CLASS_FOLDERS[self.label], self.file)


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """All 746 published images, COVID first, by file name."""
    text = resources.files("groundglass.data").joinpath("covid_ct.csv").read_text(encoding="utf-8")
    return tuple(Entry(label=Label(row.pop("label")), **row) for row in csv.DictReader(text.splitlines()))


def looks_like(path: Path) -> bool:
    """Whether a folder is laid out like COVID-CT: a clone, an extracted copy, or its image folder.

    A folder whose ``CT_COVID`` and ``CT_NonCOVID`` hold none of the published file names is another data set.
    """
    zips = ((path / f"{name}.zip").is_file() for name in _CLASS_FOLDERS.values())
    plain = ((path / _CLASS_FOLDERS[entry.label] / entry.file).is_file() for entry in entries())
    return (path / _IMAGES).is_dir() or any(zips) or any(plain)


@dataclass(frozen=True)
class Copy:
    """A copy on disk: its ``Images-processed`` folder, the path of every image as published by file name, the rest."""

    images: Path
    found: dict[str, Path]
    missing: tuple[Entry, ...]
    different: tuple[Entry, ...]


def examine(path: Path) -> Copy:
    """Compare a clone, an extracted folder or its ``Images-processed`` folder with what was published.

    Each of the 746 images is taken from the folder ``CT_COVID`` or ``CT_NonCOVID`` if it is there, else from
    the zip beside it, which is read in place. Other files are ignored.

    Raises:
        DataError: a zip is damaged.
    """
    images = path / _IMAGES if (path / _IMAGES).is_dir() else path
    found: dict[str, Path] = {}
    different: list[Entry] = []
    for label in Label:
        for entry, place, content in _contents(images, label):
            if sha256(content).hexdigest() == entry.sha256:
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
    copy, command = examine(path), "`groundglass data download covid-ct`"
    missing, different = ([each.file for each in listed] for listed in (copy.missing, copy.different))
    if missing:
        raise DataError(
            f"{copy.images}: {len(missing)} of the {len(entries())} COVID-CT images are missing: "
            f"{name_some(missing)}; {command} fetches what is missing"
        )
    if different:
        raise DataError(
            f"{copy.images}: {len(different)} images differ from those published (SHA-256): "
            f"{name_some(different)}; {command} replaces them; images of your own belong in folders COVID/ and "
            "NonCOVID/ or a manifest CSV"
        )
    _check_split_files(path / "Data-split")
    records = tuple(
        Record(copy.found[e.file], e.label, e.patient_id, e.source, e.split, collection=_COLLECTION)
        for e in entries()
    )
    return Manifest("COVID-CT", path, records, (path,))


def download_covid_ct(folder: Path, base_url: str = BASE_URL, progress: Progress | None = None) -> int:
    """Bring ``folder``, made where it is missing, to hold all images as published, and return how many were written.

    Images that are there and as published are kept, so an interrupted download resumes; a zip is fetched only
    if one of its images is missing. Images appear whole and verified or not at all.

    Raises:
        DataError: the server cannot be reached or breaks off, or images in its zips are missing or are not
            those published; the others have been written then.
    """
    try:
        # Made first, so that `examine` and this function agree on where the images lie.
        (folder / _IMAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    before = examine(folder)
    absent = (*before.missing, *before.different)
    downloads = before.images / ".download"
    faults: list[str] = []
    try:
        for label, name in _CLASS_FOLDERS.items():
            if wanted := [entry for entry in absent if entry.label is label]:
                url = f"{base_url.rstrip('/')}/{_IMAGES}/{name}.zip"
                _fetch(url, downloads / f"{name}.zip", progress)
                faults += _extract(downloads / f"{name}.zip", url, wanted, before.images / name)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    if faults:
        raise DataError(
            f"{len(faults)} images are not at {base_url}: {name_some(faults)}; the others are in {folder}"
        )
    return len(absent)


def _contents(images: Path, label: Label) -> Iterator[tuple[Entry, Path, bytes]]:
    """The images of one class that are there, with their places and bytes; a zip is opened once."""
    folder = images / _CLASS_FOLDERS[label]
    rest: list[Entry] = []
    for entry in (each for each in entries() if each.label is label):
        if (plain := folder / entry.file).is_file():
            yield entry, plain, plain.read_bytes()
        else:
            rest.append(entry)
    zipped = images / f"{folder.name}.zip"
    if rest and zipped.is_file():
        try:
            yield from _members(zipped, rest)
        except ImageError as error:
            raise DataError(f"{error}; fetch it again") from error


def _members(archive: Path, wanted: Sequence[Entry]) -> Iterator[tuple[Entry, Path, bytes]]:
    """Those of the wanted images that are in a zip, their places and bytes; none where damaged, a wrong hash then."""
    with open_archive(archive) as sources:
        members = {PurePosixPath(source.member).name: source for source in reversed(sources)}
        for entry, source in ((entry, members[entry.file]) for entry in wanted if entry.file in members):
            try:
                content = source.read()
            except ImageError:
                content = b""
            yield entry, Path(f"{archive}!{source.member}"), content


def _check_split_files(folder: Path) -> None:
    for label, name in _CLASS_FOLDERS.items():
        for part in PARTS:
            file = folder / label.value / f"{part}{name}.txt"
            if not file.is_file():
                continue
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file}: cannot be read as the official split ({error})") from error
            official = {entry.file for entry in entries() if entry.label is label and entry.split == part}
            wrong = sorted(official.symmetric_difference(line.strip() for line in lines if line.strip()))
            if wrong:
                raise DataError(
                    f"{file}: differs from the official split in {len(wrong)} names: "
                    f"{name_some(wrong)}; restore it, or give your own split as a manifest CSV"
                )


def _fetch(url: str, target: Path, progress: Progress | None) -> None:
    import requests  # noqa: PLC0415 - for a download alone

    try:
        target.parent.mkdir(exist_ok=True)
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response, target.open("wb") as stream:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            for chunk in response.iter_content(2**18):
                stream.write(chunk)
                if progress:
                    progress(target.name, len(chunk), total)
    except ValueError as error:  # an address without scheme or host; requests' other errors are OSErrors
        raise DataError(f"{url}: is not an address to fetch from ({error})") from error
    except requests.RequestException as error:
        reason = _reason(error)
        raise DataError(
            f"{url}: cannot be fetched ({reason}); run the command again, it keeps what it has"
        ) from error
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror})") from error


def _reason(error: OSError) -> str:
    """A network library's nested exceptions in a few words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    kind = type(error).__name__
    if "Timeout" in kind:
        return f"no answer within {_TIMEOUT} s"
    return "the connection broke off" if "Encoding" in kind else "no connection to the server"


def _extract(archive: Path, url: str, wanted: Sequence[Entry], folder: Path) -> list[str]:
    """Write the wanted images; returns names and faults of those that are not in the archive as published."""
    faults = {entry.file: f"{entry.file} (not in the zip)" for entry in wanted}
    try:
        for entry, _, content in _members(archive, wanted):
            if sha256(content).hexdigest() == entry.sha256:
                write_bytes(folder / entry.file, content)
                del faults[entry.file]
            else:
                faults[entry.file] = f"{entry.file} (not the image published)"
    except ImageError as error:
        raise DataError(f"{url}: is not a usable zip file ({error.reason}); is the address right?") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    return list(faults.values())
