"""A DICOM archive behind DICOMweb: what it holds (QIDO-RS), its images (WADO-RS), storing (STOW-RS).

HTTP to a DICOMweb server: credentials from the environment, answers of bounded size, faults told apart.

When a DICOMweb server does not answer as it should: wait and try again, or say what is wrong.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.source import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from pydicom import Dataset

TOKEN, USER, PASSWORD = "GROUNDGLASS_PACS_TOKEN", "GROUNDGLASS_PACS_USER", "GROUNDGLASS_PACS_PASSWORD"
"""Environment variables that hold the credentials; without them the netrc file is asked."""

CREDENTIALS_ADVICE = (
    f"set {TOKEN}, or {USER} and {PASSWORD}, in the environment, or name the host in ~/.netrc"
)
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes of an answer."""

_LARGEST_LISTING = 256 * 2**20


class TooLargeError(PacsRefusedError):
    """An answer is larger than the limit."""


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Bounded:
    """The body of an answer, which ends in an error where it is larger than the limit, decompressed."""

    def __init__(self, raw: Any, limit: int) -> None:
        self._raw = raw
        self._limit = limit

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """Chunks of the body, as ``urllib3`` gives them."""
        size = 0
        for chunk in self._raw.stream(amount, decode_content=decode_content):
            size += len(chunk)
            if size > self._limit:
                raise TooLargeError(f"the archive's answer is larger than the limit of {self._limit:,} bytes")
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class _Adapter(HTTPAdapter):
    """Bounds every answer.

    Args:
        limit: bytes of an image.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with the Host header that belongs to it; dicomweb-client's lacks the port."""
        request.headers.pop("Host", None)
        response = super().send(request, *args, **kwargs)
        is_image = "dicom" in kind(response) and "json" not in kind(response)
        response.raw = _Bounded(response.raw, self._limit if is_image else _LARGEST_LISTING)
        return response


def open_session(image_bytes: int, environment: Mapping[str, str] = os.environ) -> requests.Session:
    """A session with the credentials that the environment holds.

    Args:
        image_bytes: the largest image that is taken.
        environment: see :data:`TOKEN`, :data:`USER` and :data:`PASSWORD`.

    Raises:
        PacsError: the credentials are incomplete.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(image_bytes))
    token, user, password = (environment.get(name) for name in (TOKEN, USER, PASSWORD))
    if token:
        session.auth = _Bearer(token)
    elif user and password is not None:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    elif user or password:
        raise PacsError(f"{USER} and {PASSWORD} belong together; one of them is not set")
    return session


def kind(response: requests.Response) -> str:
    """The Content-Type of an answer in lower case."""
    return str(response.headers.get("Content-Type", "")).lower()


_Result = TypeVar("_Result")
OnWait = Callable[[str], None]
"""Told once per fault what is waited for."""

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_FORBIDDEN = frozenset({401, 403, 407})


class Patience:
    """Calls that are repeated while the fault may pass.

    Connection errors, time-outs, answers that break off, and statuses 408, 425, 429, 500, 502, 503 and 504
    are waited out: half a second at first, twice as long each time, or as long as ``Retry-After`` says.

    Args:
        place: of the server, for messages.
        seconds: to wait in one call altogether.
        on_wait: told of the first fault of a call.
    """

    def __init__(self, place: str, seconds: float, on_wait: OnWait | None = None) -> None:
        self.seconds = seconds
        self._place = place
        self._on_wait = on_wait

    def call(self, work: Callable[[], _Result], seconds: float | None = None) -> _Result:
        """The result of ``work``, tried again while the server has a fault that may pass.

        Args:
            work: may be done several times.
            seconds: to wait, instead of the usual.

        Raises:
            PacsUnavailableError: the fault has not passed.
            PacsRefusedError: the server refuses this request.
            PacsError: the server refuses everybody like us, or is no DICOMweb server.
        """
        end = time.monotonic() + (self.seconds if seconds is None else seconds)
        delay, told = _FIRST_DELAY, False
        while True:
            try:
                return work()
            except (requests.RequestException, BrokenOffError) as error:
                fault = self._passing(error)
                wait = max(delay, _retry_after(error))
            if time.monotonic() + wait > end:
                raise PacsUnavailableError(f"{self._place}: {fault}")
            if not told and self._on_wait is not None:
                self._on_wait(f"{self._place}: {fault}; trying again")
                told = True
            time.sleep(wait)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _passing(self, error: Exception) -> str:
        """What is wrong, where it may pass; raises where it will not."""
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._status(error.response.status_code)
        if isinstance(error, requests.exceptions.SSLError):
            raise PacsError(
                f"{self._place}: its TLS certificate cannot be verified; name its authority's certificates "
                "by REQUESTS_CA_BUNDLE"
            ) from None
        if isinstance(error, requests.Timeout):
            return "no answer in time"
        if isinstance(error, requests.exceptions.JSONDecodeError):
            raise PacsError(
                f"{self._place}: no DICOMweb service answers there (its answer is no JSON)"
            ) from None
        if isinstance(error, requests.ConnectionError):
            return "cannot be reached"
        if isinstance(error, requests.exceptions.ChunkedEncodingError | BrokenOffError):
            return "the answer broke off"
        raise PacsError(f"{self._place}: cannot be asked ({type(error).__name__})") from None

    def _status(self, status: int) -> str:
        if status in _FORBIDDEN:
            raise PacsError(
                f"{self._place}: refuses access (HTTP status {status}); {CREDENTIALS_ADVICE}"
            ) from None
        if status not in _TEMPORARY:
            raise PacsRefusedError(f"{self._place}: refuses the request (HTTP status {status})") from None
        return f"has a fault (HTTP status {status})"


class BrokenOffError(Exception):
    """An answer ended before its end."""


def _retry_after(error: Exception) -> float:
    """Seconds that the server wants to be left alone, 0 where it does not say."""
    response = getattr(error, "response", None)
    text = "" if response is None else str(response.headers.get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (then.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())


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
