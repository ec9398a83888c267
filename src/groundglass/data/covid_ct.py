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

from groundglass.data.manifest import Label, Manifest, Record
from groundglass.errors import DataError, ImageError
from groundglass.files import name_some, write_bytes
from groundglass.imaging.source import open_archive

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


def examine(path: Path) -> tuple[Path, dict[str, Path]]:
    """Compare a clone, an extracted folder or its ``Images-processed`` folder with what was published.

    Each of the 746 images is taken from the folder ``CT_COVID`` or ``CT_NonCOVID``, or else from the zip beside it,
    which is read in place. Other files are ignored.

    Returns:
        The folder of the images, and by file name the path of every image that is there as published.

    Raises:
        DataError: a zip is damaged.
    """
    images, found = path / _IMAGES if (path / _IMAGES).is_dir() else path, {}
    for label, name in _CLASS_FOLDERS.items():
        absent = []
        for entry in (each for each in entries() if each.label is label):
            plain = images / name / entry.file
            if plain.is_file() and sha256(plain.read_bytes()).hexdigest() == entry.sha256:
                found[entry.file] = plain
            else:
                absent.append(entry)
        archive = images / f"{name}.zip"
        if absent and archive.is_file():
            try:
                found |= {entry.file: place for entry, place, _ in _published(archive, absent)}
            except ImageError as error:
                raise DataError(f"{error}; fetch it again") from error
    return images, found


def load_covid_ct(path: Path) -> Manifest:
    """Read COVID-CT from any of the forms that `examine` knows.

    Raises:
        DataError: naming and counting images that are missing or differ, or a damaged zip.
    """
    images, found = examine(path)
    if absent := [entry.file for entry in entries() if entry.file not in found]:
        raise DataError(
            f"{images}: {len(absent)} of the {len(entries())} COVID-CT images are missing or differ from those "
            f"published (SHA-256): {name_some(absent)}; `groundglass data download covid-ct` fetches them; images of "
            "your own belong in folders COVID/ and NonCOVID/ or a manifest CSV"
        )
    records = tuple(
        Record(found[e.file], e.label, e.patient_id, e.source, e.split, collection=_COLLECTION) for e in entries()
    )
    return Manifest("COVID-CT", path, records, (path,))


def download_covid_ct(folder: Path, base_url: str = BASE_URL, progress: Progress = lambda *_: None) -> int:
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
    images, found = examine(folder)
    absent = {entry.file: entry for entry in entries() if entry.file not in found}
    count, downloads = len(absent), images / ".download"
    try:
        for label, name in _CLASS_FOLDERS.items():
            if wanted := [entry for entry in absent.values() if entry.label is label]:
                url = f"{base_url.rstrip('/')}/{_IMAGES}/{name}.zip"
                for entry, content in _fetched(url, downloads / f"{name}.zip", wanted, progress):
                    write_bytes(images / name / entry.file, content)
                    del absent[entry.file]
    except OSError as error:
        raise DataError(f"{images}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    if absent:
        raise DataError(
            f"{len(absent)} images are not at {base_url} as published: {name_some(list(absent))}; the others are in "
            f"{folder}"
        )
    return count


def _published(archive: Path, wanted: Sequence[Entry]) -> Iterator[tuple[Entry, Path, bytes]]:
    """Those of the wanted images that are in a zip as they were published, their places and bytes."""
    with open_archive(archive) as sources:
        members = {PurePosixPath(source.member).name: source for source in reversed(sources)}
        for entry, source in ((entry, members[entry.file]) for entry in wanted if entry.file in members):
            try:
                content = source.read()
            except ImageError:
                continue
            if sha256(content).hexdigest() == entry.sha256:
                yield entry, Path(f"{archive}!{source.member}"), content


def _fetched(url: str, archive: Path, wanted: Sequence[Entry], progress: Progress) -> Iterator[tuple[Entry, bytes]]:
    """Those of the wanted images that are in the zip at ``url`` as published; it is kept as ``archive``."""
    import requests  # noqa: PLC0415 - for a download alone

    archive.parent.mkdir(exist_ok=True)
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response, archive.open("wb") as stream:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            for chunk in response.iter_content(2**18):
                stream.write(chunk)
                progress(archive.name, len(chunk), total)
        yield from ((entry, content) for entry, _, content in _published(archive, wanted))
    except ValueError as error:  # an address without scheme or host; requests' other errors are OSErrors
        raise DataError(f"{url}: is not an address to fetch from ({error})") from error
    except requests.RequestException as error:
        answer = error.response
        reason = "no connection, or it broke off" if answer is None else f"the server answers {answer.status_code}"
        again = "run the command again, it keeps what it has"
        raise DataError(f"{url}: cannot be fetched ({reason}); {again}") from error
    except ImageError as error:
        raise DataError(f"{url}: is not a usable zip file ({error.reason}); is the address right?") from error
