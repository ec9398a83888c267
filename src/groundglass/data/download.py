"""Download COVID-CT from its authors' repository, every image verified against the published SHA-256."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from groundglass.atomic import write_bytes
from groundglass.data.covid_ct import (
    CLASS_FOLDERS,
    IMAGES_FOLDER,
    Entry,
    entries,
    examine,
    image_members,
    read_member,
)
from groundglass.data.manifest import Label, name_some
from groundglass.errors import DataError

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
