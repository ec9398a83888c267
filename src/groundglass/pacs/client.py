"""A DICOM archive behind DICOMweb: what it holds (QIDO-RS), its images (WADO-RS), storing (STOW-RS)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from urllib3 import Retry
from urllib3.exceptions import InvalidHeader

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.source import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from pydicom import Dataset

_TOKEN, _USER, _PASSWORD = "GROUNDGLASS_PACS_TOKEN", "GROUNDGLASS_PACS_USER", "GROUNDGLASS_PACS_PASSWORD"
_CREDENTIALS_ADVICE = (
    f"set {_TOKEN}, or {_USER} and {_PASSWORD}, in the environment, or name the host in ~/.netrc"
)
_CERTIFICATE_ADVICE = (
    "its TLS certificate cannot be verified; set REQUESTS_CA_BUNDLE to a file with its issuer's"
)
# Seconds to wait for a connection, and for the next bytes of a response.
_TIMEOUT = (10.0, 60.0)
# Seconds of retries with a server that was never reached: its address may be wrong.
_FIRST_CONTACT = 5.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_TEMPORARY, _FORBIDDEN = frozenset({408, 425, 429, 500, 502, 503, 504}), frozenset({401, 403, 407})
_LARGEST_LISTING = 256 * 2**20

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _MODALITY, _NUMBER = "00080016", "00080060", "00200013"
_IMAGES_IN_SERIES, _IMAGES_IN_STUDY = "00201209", "00201208"
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
_BOUNDARY = re.compile(r"""boundary=(?:"([^"]+)"|([^;\s]+))""", re.IGNORECASE)
_AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}

_Result = TypeVar("_Result")
_Entry = Mapping[str, Any]


@dataclass(frozen=True)
class StudyEntry:
    """A study in the archive: its UID and how many objects it has, None where the archive does not say."""

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
    """An object in the archive: its SOP Class UID, SOP Instance UID and Instance Number (0 if unknown)."""

    sop_class: str
    uid: str
    number: int = 0


class Archive:
    """A DICOMweb server.

    Connection errors, time-outs, transfers that break off, and statuses 408, 425, 429, 500, 502, 503 and 504
    are retried after half a second, twice as long each time, or as long as ``Retry-After`` says. Credentials
    come from the environment (``GROUNDGLASS_PACS_TOKEN``, or ``GROUNDGLASS_PACS_USER`` and
    ``GROUNDGLASS_PACS_PASSWORD``), else from the netrc file.

    Args:
        url: of the DICOMweb root, under which ``/studies`` lies.
        retry_seconds: how long each request is repeated while the server has a fault.
        limits: what a single image may ask for.
        on_wait: called once per request that is repeated, with the reason.

    Raises:
        PacsError: the URL or the credentials in the environment are not valid. Every method raises it where
            the server denies access or is no DICOMweb server, and PacsUnavailableError where a fault lasts.
    """

    def __init__(
        self,
        url: str,
        retry_seconds: float = 120.0,
        limits: Limits = DEFAULT_LIMITS,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.url = _checked(url)
        self._session = _open_session(limits.file_bytes)
        self._seconds, self._on_wait = retry_seconds, on_wait
        try:
            # In one piece: not every server accepts chunked uploads.
            self._client = DICOMwebClient(
                self.url, self._session, chunk_size=2**31, permissive_uid=True, timeout=_TIMEOUT
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
        """Make sure that a DICOMweb service responds, with retries of at most five seconds."""
        search = partial(self._client.search_for_studies, limit=1)
        self._query(search, min(_FIRST_CONTACT, self._seconds))

    def studies(self, since: str | None = None) -> Iterator[StudyEntry]:
        """Studies that have CT images, from the day ``since`` (YYYYMMDD) on."""
        filters = {"ModalitiesInStudy": "CT"} | ({} if since is None else {"StudyDate": f"{since}-"})
        for entry in self._all(partial(self._client.search_for_studies, search_filters=filters), _STUDY):
            yield StudyEntry(_uid(entry, _STUDY), _count(entry, _IMAGES_IN_STUDY))

    def series(self, study: str) -> list[SeriesEntry]:
        """All series of a study, of whatever modality; none where there is no such study."""
        fields = ["NumberOfSeriesRelatedInstances", "Modality"]
        search = partial(self._client.search_for_series, study, fields=fields)
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
            PacsRefusedError: the archive does not send it, or it is larger than the limit.
        """
        url = f"{self.url}/studies/{series.study}/series/{series.uid}/instances/{instance.uid}"

        def once() -> bytes:
            with self._session.get(url, headers=_AS_STORED, stream=True, timeout=_TIMEOUT) as response:
                response.raise_for_status()
                return only_part(response.headers.get("Content-Type", ""), response.content)

        return self._retried(once, self._seconds)

    def store(self, dataset: Dataset) -> None:
        """Store an object; to store the same one again does no harm.

        Raises:
            PacsRefusedError: the archive does not accept it.
        """
        response = self._retried(partial(self._store, dataset), self._seconds)
        failed = response.get("FailedSOPSequence")
        if failed:
            reason = int(failed[0].get("FailureReason", 0) or 0)
            raise PacsRefusedError(f"{self.url}: does not store the result (failure reason {reason:#06x})")

    def _store(self, dataset: Dataset) -> Dataset:
        try:
            return self._client.store_instances([dataset], dataset.StudyInstanceUID)
        except requests.RequestException:
            raise
        except Exception as error:
            raise PacsRefusedError(
                f"{self.url}: its response to an upload cannot be understood ({type(error).__name__})"
            ) from error

    def _all(self, search: Callable[..., list[dict[str, dict[Any, Any]]]], uid_tag: str) -> Iterator[_Entry]:
        """Results page by page, each once; servers may send as few at a time as they like."""
        seen: set[str] = set()
        while True:
            page = self._query(partial(search, offset=len(seen)), self._seconds)
            fresh = {uid: entry for entry in page if (uid := _uid(entry, uid_tag)) not in seen}
            if not fresh:
                return
            seen |= fresh.keys()
            yield from fresh.values()

    def _query(self, search: Callable[[], Any], seconds: float) -> list[_Entry]:
        try:
            results = self._retried(search, seconds)
        except PacsRefusedError as error:
            raise PacsRefusedError(f"{error}; is this the DICOMweb root?") from None
        if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
            raise PacsError(f"{self.url}: not a DICOMweb service (its response is no list of objects)")
        return results

    def _retried(self, work: Callable[[], _Result], seconds: float) -> _Result:
        # urllib3 counts attempts, not seconds, and does not repeat a transfer that breaks off in its body.
        end = time.monotonic() + seconds
        delay, reported = _FIRST_DELAY, False
        while True:
            try:
                return work()
            except (requests.RequestException, BrokenOffError) as error:
                fault = _passing_fault(error, self.url)
                wait = max(delay, _retry_after(error))
            if time.monotonic() + wait > end:
                raise PacsUnavailableError(f"{self.url}: {fault}")
            if not reported and self._on_wait is not None:
                self._on_wait(f"{self.url}: {fault}; retrying")
                reported = True
            time.sleep(wait)
            delay = min(2 * delay, _LONGEST_DELAY)


def _passing_fault(error: Exception, url: str) -> str:
    """What is wrong, where it may pass; raises where it will not."""
    problem = f"request failed ({type(error).__name__})"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status in _TEMPORARY:
            return f"has a fault (HTTP status {status})"
        if status not in _FORBIDDEN:
            raise PacsRefusedError(f"{url}: refuses the request (HTTP status {status})") from None
        problem = f"denies access (HTTP status {status}); {_CREDENTIALS_ADVICE}"
    elif isinstance(error, requests.exceptions.SSLError):
        problem = _CERTIFICATE_ADVICE
    elif isinstance(error, requests.exceptions.JSONDecodeError):
        problem = "not a DICOMweb service (its response is no JSON)"
    elif isinstance(error, requests.Timeout):
        return "no response in time"
    elif isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError | BrokenOffError):
        return "the transfer broke off"
    raise PacsError(f"{url}: {problem}") from None


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait, 0 where it does not say."""
    response = getattr(error, "response", None)
    try:
        return 0.0 if response is None else Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, InvalidHeader):
        return 0.0


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise PacsError(
            f"credentials do not belong into a URL, where others can see them; {_CREDENTIALS_ADVICE}"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise PacsError(f"{url}: expected the URL of a DICOMweb service, such as https://pacs/dicom-web")
    return url.rstrip("/")


def _value(entry: _Entry, tag: str) -> Any:
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _uid(entry: _Entry, tag: str) -> str:
    """A UID, which becomes part of a URL and therefore must be one."""
    value = _value(entry, tag)
    if not isinstance(value, str) or not _UID.fullmatch(value):
        raise PacsError(f"the archive lists an object whose element {tag} is no UID")
    return value


def _count(entry: _Entry, tag: str) -> int | None:
    try:
        return int(_value(entry, tag))
    except (TypeError, ValueError):
        return None


class BrokenOffError(Exception):
    """A response ended before its end."""


def only_part(content_type: str, body: bytes) -> bytes:
    """The one part of a multipart response; all of one that is not multipart, as some servers send it.

    Raises:
        BrokenOffError: the end is missing.
    """
    found = _BOUNDARY.search(content_type)
    if found is None or not content_type.lower().startswith("multipart/"):
        return body
    marker = b"--" + (found[1] or found[2]).encode("latin-1")
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    if start < 0 or end < start:
        raise BrokenOffError
    return body[start + 4 : end]


def _open_session(image_bytes: int) -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(image_bytes))
    token, user, password = (os.environ.get(name) for name in (_TOKEN, _USER, _PASSWORD))
    if token:
        session.auth = partial(_with_token, token)
    elif user and password is not None:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    elif user or password:
        raise PacsError(f"{_USER} and {_PASSWORD} belong together; one of them is not set")
    return session


def _with_token(token: str, request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


class _Adapter(HTTPAdapter):
    """Bounds every response: an image by the limit given, a listing by ``_LARGEST_LISTING``."""

    def __init__(self, image_bytes: int) -> None:
        super().__init__()
        self._image_bytes = image_bytes

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with the Host header that belongs to it; dicomweb-client's lacks the port."""
        request.headers.pop("Host", None)
        response = super().send(request, *args, **kwargs)
        kind = str(response.headers.get("Content-Type", "")).lower()
        limit = self._image_bytes if "dicom" in kind and "json" not in kind else _LARGEST_LISTING
        # The part of urllib3's response that requests reads bodies by.
        response.raw.stream = partial(_bounded, response.raw.stream, limit)
        return response


def _bounded(
    stream: Callable[..., Iterator[bytes]], limit: int, *args: Any, **kwargs: Any
) -> Iterator[bytes]:
    """Chunks of a body, which end in an error where it is larger than the limit, decompressed."""
    size = 0
    for chunk in stream(*args, **kwargs):
        size += len(chunk)
        if size > limit:
            raise PacsRefusedError(f"the response is larger than the limit of {limit:,} bytes")
        yield chunk
