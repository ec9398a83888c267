"""A DICOM archive behind DICOMweb: what it holds (QIDO-RS), its images (WADO-RS), storing (STOW-RS)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient

from groundglass.errors import PacsError, PacsRefusedError
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.serving.dicomweb_patience import BrokenOffError, OnWait, Patience
from groundglass.serving.dicomweb_session import CREDENTIALS_ADVICE, TIMEOUT, kind, open_session

if TYPE_CHECKING:
    from pydicom import Dataset

Entry = Mapping[str, Any]
"""One result of a query, in DICOM's JSON."""

FIRST_CONTACT = 5.0
"""Seconds of patience with a server that was never reached: its address may be wrong."""

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _MODALITY, _NUMBER = "00080016", "00080060", "00200013"
_IMAGES_IN_SERIES, _IMAGES_IN_STUDY = "00201209", "00201208"
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_WHOLE = 2**31


@dataclass(frozen=True)
class StudyEntry:
    """A study in the archive.

    Attributes:
        uid: Study Instance UID.
        images: how many objects it has; None where the archive does not say.
    """

    uid: str
    images: int | None


@dataclass(frozen=True)
class SeriesEntry:
    """A series in the archive.

    Attributes:
        study: Study Instance UID.
        uid: Series Instance UID.
        modality: such as ``CT``.
        images: how many objects it has; None where the archive does not say.
    """

    study: str
    uid: str
    modality: str
    images: int | None


@dataclass(frozen=True)
class InstanceEntry:
    """An object in the archive.

    Attributes:
        sop_class: SOP Class UID.
        uid: SOP Instance UID.
        number: Instance Number, 0 where the archive does not say.
    """

    sop_class: str
    uid: str
    number: int


class Archive:
    """A DICOMweb server.

    Args:
        url: of the DICOMweb root, under which ``/studies`` lies.
        patience: seconds to wait for a server that is away, in each request.
        limits: what a single image may ask for.
        on_wait: told when a fault is waited out.

    Raises:
        PacsError: the URL or the credentials in the environment will not do.
    """

    def __init__(
        self,
        url: str,
        patience: float = 120.0,
        limits: Limits = DEFAULT_LIMITS,
        on_wait: OnWait | None = None,
    ) -> None:
        self.url = _checked(url)
        self._session = open_session(limits.file_bytes)
        self._patience = Patience(self.url, patience, on_wait)
        try:
            # In one piece: not every server takes chunked uploads.
            self._client = DICOMwebClient(
                self.url, self._session, chunk_size=_WHOLE, permissive_uid=True, timeout=TIMEOUT
            )
        except ValueError:
            raise PacsError(f"{self.url}: not the URL of a DICOMweb service") from None
        # It would neither wait for a server that is away nor heed Retry-After.
        self._client.set_http_retry_params(retry=False)

    @property
    def sends_credentials_in_the_clear(self) -> bool:
        """Whether credentials travel unencrypted to another machine."""
        parts = urlsplit(self.url)
        loopback = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        return parts.scheme == "http" and not loopback and self._session.auth is not None

    def check(self) -> None:
        """Make sure that a DICOMweb service answers; not as patient as the rest.

        Raises:
            PacsError: it cannot be reached, refuses access, or is none.
        """
        self._query(
            partial(self._client.search_for_studies, limit=1), min(FIRST_CONTACT, self._patience.seconds)
        )

    def studies(self, since: str | None = None) -> Iterator[StudyEntry]:
        """Studies that have CT images.

        Args:
            since: the first day, YYYYMMDD; all days unless given.
        """
        filters = {"ModalitiesInStudy": "CT"} | ({} if since is None else {"StudyDate": f"{since}-"})
        for entry in self._all(partial(self._client.search_for_studies, search_filters=filters), _STUDY):
            yield StudyEntry(_uid(entry, _STUDY), _count(entry, _IMAGES_IN_STUDY))

    def series(self, study: str) -> list[SeriesEntry]:
        """All series of a study, of whatever modality; none where there is no such study."""
        search = partial(
            self._client.search_for_series, study, fields=["NumberOfSeriesRelatedInstances", "Modality"]
        )
        return [
            SeriesEntry(
                study,
                _uid(entry, _SERIES),
                str(_value(entry, _MODALITY) or ""),
                _count(entry, _IMAGES_IN_SERIES),
            )
            for entry in self._all(search, _SERIES)
        ]

    def instances(self, series: SeriesEntry) -> list[InstanceEntry]:
        """All objects of a series by Instance Number."""
        search = partial(self._client.search_for_instances, series.study, series.uid)
        found = [
            InstanceEntry(_uid(entry, _SOP_CLASS), _uid(entry, _INSTANCE), _count(entry, _NUMBER) or 0)
            for entry in self._all(search, _INSTANCE)
        ]
        return sorted(found, key=lambda each: (each.number, each.uid))

    def fetch(self, series: SeriesEntry, instance: InstanceEntry) -> bytes:
        """An object as it was stored: a DICOM file's content.

        Raises:
            PacsRefusedError: the archive does not give it, or it is larger than the limit.
        """
        path = f"studies/{series.study}/series/{series.uid}/instances/{instance.uid}"
        return self._patience.call(lambda: self._fetch(f"{self.url}/{path}"))

    def store(self, dataset: Dataset) -> None:
        """Store an object; to store the same one again does no harm.

        Raises:
            PacsRefusedError: the archive does not take it.
        """
        answer = self._patience.call(lambda: self._store(dataset))
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = int(failed[0].get("FailureReason", 0) or 0)
            raise PacsRefusedError(f"{self.url}: does not store the answer (failure reason {reason:#06x})")

    def _fetch(self, url: str) -> bytes:
        with self._session.get(url, headers={"Accept": _AS_STORED}, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            return only_part(kind(response), response.headers.get("Content-Type", ""), response.content)

    def _store(self, dataset: Dataset) -> Dataset:
        try:
            return self._quietly(lambda: self._client.store_instances([dataset], dataset.StudyInstanceUID))
        except requests.RequestException:
            raise
        except Exception as error:
            raise PacsRefusedError(
                f"{self.url}: answers an upload with what makes no sense ({type(error).__name__})"
            ) from error

    def _all(self, search: Callable[..., list[dict[str, dict[Any, Any]]]], uid_tag: str) -> Iterator[Entry]:
        """Results page by page, each once; servers may give as few at a time as they like."""
        seen: set[str] = set()
        while True:
            page = self._query(partial(search, offset=len(seen)))
            fresh = {_uid(entry, uid_tag): entry for entry in page}
            fresh = {uid: entry for uid, entry in fresh.items() if uid not in seen}
            if not fresh:
                return
            seen |= fresh.keys()
            yield from fresh.values()

    def _query(self, search: Callable[[], Any], seconds: float | None = None) -> list[Entry]:
        try:
            answer = self._patience.call(lambda: self._quietly(search), seconds)
        except PacsRefusedError as error:
            raise PacsRefusedError(f"{error}; is this the DICOMweb root?") from None
        if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
            raise PacsError(
                f"{self.url}: no DICOMweb service answers there (its answer is no list of objects)"
            )
        return answer

    @staticmethod
    def _quietly(work: Callable[[], Any]) -> Any:
        """Warnings of the library may quote what is in a patient's header."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


def only_part(content_kind: str, content_type: str, body: bytes) -> bytes:
    """The one part of a multipart answer; all of an answer that is not multipart, as some servers send it.

    Args:
        content_kind: Content-Type in lower case.
        content_type: Content-Type.
        body: of the answer.

    Raises:
        BrokenOffError: the end is missing.
    """
    if not content_kind.startswith("multipart/"):
        return body
    found = re.search(r"""boundary=(?:"([^"]+)"|([^;\s]+))""", content_type, re.IGNORECASE)
    if found is None:
        return body
    marker = b"--" + (found[1] or found[2]).encode("latin-1")
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    if start < 0 or end < start:
        raise BrokenOffError
    return body[start + 4 : end]


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise PacsError(
            f"credentials do not belong into a URL, where others can see them; {CREDENTIALS_ADVICE}"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise PacsError(f"{url}: expected the URL of a DICOMweb service, such as https://pacs/dicom-web")
    return url.rstrip("/")


def _value(entry: Entry, tag: str) -> Any:
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _uid(entry: Entry, tag: str) -> str:
    """A UID, which becomes part of a URL and therefore must be one."""
    value = _value(entry, tag)
    if not isinstance(value, str) or not _UID.fullmatch(value):
        raise PacsError(f"the archive lists an object whose element {tag} is no UID")
    return value


def _count(entry: Entry, tag: str) -> int | None:
    try:
        return int(_value(entry, tag))
    except (TypeError, ValueError):
        return None
