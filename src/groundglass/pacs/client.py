"""A DICOM archive behind DICOMweb: what it holds (QIDO-RS), its images (WADO-RS), storing (STOW-RS)."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
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
_TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes of a response."""

_LARGEST_LISTING = 256 * 2**20
_FIRST_CONTACT = 5.0
"""Seconds of retries with a server that was never reached: its address may be wrong."""

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_FORBIDDEN = frozenset({401, 403, 407})

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _MODALITY, _NUMBER = "00080016", "00080060", "00200013"
_IMAGES_IN_SERIES, _IMAGES_IN_STUDY = "00201209", "00201208"
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_WHOLE = 2**31

_Result = TypeVar("_Result")
_Entry = Mapping[str, Any]
OnWait = Callable[[str], None]
"""Called once per fault with what is waited for."""


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

    Requests are repeated while a fault may pass, see :class:`_Retries`. Credentials come from the environment
    (``GROUNDGLASS_PACS_TOKEN``, or ``GROUNDGLASS_PACS_USER`` and ``GROUNDGLASS_PACS_PASSWORD``), else from the
    netrc file.

    Args:
        url: of the DICOMweb root, under which ``/studies`` lies.
        retry_seconds: how long each request is repeated while the server has a fault.
        limits: what a single image may ask for.
        on_wait: called when a request is repeated.

    Raises:
        PacsError: the URL or the credentials in the environment are not valid.
    """

    def __init__(
        self,
        url: str,
        retry_seconds: float = 120.0,
        limits: Limits = DEFAULT_LIMITS,
        on_wait: OnWait | None = None,
    ) -> None:
        self.url = _checked(url)
        self._session = _open_session(limits.file_bytes)
        self._retries = _Retries(self.url, retry_seconds, on_wait)
        try:
            # In one piece: not every server accepts chunked uploads.
            self._client = DICOMwebClient(
                self.url, self._session, chunk_size=_WHOLE, permissive_uid=True, timeout=_TIMEOUT
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
        """Make sure that a DICOMweb service responds, with retries of at most five seconds.

        Raises:
            PacsError: it cannot be reached, denies access, or is none.
        """
        seconds = min(_FIRST_CONTACT, self._retries.seconds)
        self._query(partial(self._client.search_for_studies, limit=1), seconds)

    def studies(self, since: str | None = None) -> Iterator[StudyEntry]:
        """Studies that have CT images, from the day ``since`` (YYYYMMDD) on."""
        filters = {"ModalitiesInStudy": "CT"} | ({} if since is None else {"StudyDate": f"{since}-"})
        for entry in self._all(partial(self._client.search_for_studies, search_filters=filters), _STUDY):
            yield StudyEntry(_uid(entry, _STUDY), _count(entry, _IMAGES_IN_STUDY))

    def series(self, study: str) -> list[SeriesEntry]:
        """All series of a study, of whatever modality; none where there is no such study."""
        fields = ["NumberOfSeriesRelatedInstances", "Modality"]
        return [
            SeriesEntry(
                study,
                _uid(entry, _SERIES),
                str(_value(entry, _MODALITY) or ""),
                _count(entry, _IMAGES_IN_SERIES),
            )
            for entry in self._all(partial(self._client.search_for_series, study, fields=fields), _SERIES)
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
        path = f"studies/{series.study}/series/{series.uid}/instances/{instance.uid}"
        return self._retries.call(lambda: self._fetch(f"{self.url}/{path}"))

    def store(self, dataset: Dataset) -> None:
        """Store an object; to store the same one again does no harm.

        Raises:
            PacsRefusedError: the archive does not accept it.
        """
        response = self._retries.call(lambda: self._store(dataset))
        failed = response.get("FailedSOPSequence")
        if failed:
            reason = int(failed[0].get("FailureReason", 0) or 0)
            raise PacsRefusedError(f"{self.url}: does not store the result (failure reason {reason:#06x})")

    def _fetch(self, url: str) -> bytes:
        headers = {"Accept": _AS_STORED}
        with self._session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            return only_part(response.headers.get("Content-Type", ""), response.content)

    def _store(self, dataset: Dataset) -> Dataset:
        try:
            return _quietly(lambda: self._client.store_instances([dataset], dataset.StudyInstanceUID))
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
            page = {_uid(entry, uid_tag): entry for entry in self._query(partial(search, offset=len(seen)))}
            fresh = {uid: entry for uid, entry in page.items() if uid not in seen}
            if not fresh:
                return
            seen |= fresh.keys()
            yield from fresh.values()

    def _query(self, search: Callable[[], Any], seconds: float | None = None) -> list[_Entry]:
        try:
            results = self._retries.call(lambda: _quietly(search), seconds)
        except PacsRefusedError as error:
            raise PacsRefusedError(f"{error}; is this the DICOMweb root?") from None
        if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
            raise PacsError(f"{self.url}: not a DICOMweb service (its response is no list of objects)")
        return results


def _quietly(work: Callable[[], Any]) -> Any:
    """Warnings of the library may quote what is in a patient's header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


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
    found = re.search(r"""boundary=(?:"([^"]+)"|([^;\s]+))""", content_type, re.IGNORECASE)
    if found is None or not content_type.lower().startswith("multipart/"):
        return body
    marker = b"--" + (found[1] or found[2]).encode("latin-1")
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    if start < 0 or end < start:
        raise BrokenOffError
    return body[start + 4 : end]


class _Retries:
    """Calls that are repeated while the fault may pass.

    Connection errors, time-outs, transfers that break off, and statuses 408, 425, 429, 500, 502, 503 and 504
    are retried after half a second, twice as long each time, or as long as ``Retry-After`` says. urllib3 counts
    attempts, not seconds, and does not repeat a transfer that breaks off in its body.
    """

    def __init__(self, url: str, seconds: float, on_wait: OnWait | None) -> None:
        self.seconds = seconds
        self._url = url
        self._on_wait = on_wait

    def call(self, work: Callable[[], _Result], seconds: float | None = None) -> _Result:
        """The result of ``work``, which is repeated for so many seconds while the server has a passing fault.

        Raises:
            PacsUnavailableError: the fault has not passed.
            PacsRefusedError: the server refuses this request.
            PacsError: the server denies access, or is no DICOMweb server.
        """
        end = time.monotonic() + (self.seconds if seconds is None else seconds)
        delay, reported = _FIRST_DELAY, False
        while True:
            try:
                return work()
            except (requests.RequestException, BrokenOffError) as error:
                fault = self._passing(error)
                wait = max(delay, _retry_after(error))
            if time.monotonic() + wait > end:
                raise PacsUnavailableError(f"{self._url}: {fault}")
            if not reported and self._on_wait is not None:
                self._on_wait(f"{self._url}: {fault}; retrying")
                reported = True
            time.sleep(wait)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _passing(self, error: Exception) -> str:
        """What is wrong, where it may pass; raises where it will not."""
        problem = f"request failed ({type(error).__name__})"
        if isinstance(error, requests.HTTPError) and error.response is not None:
            status = error.response.status_code
            if status in _TEMPORARY:
                return f"has a fault (HTTP status {status})"
            if status not in _FORBIDDEN:
                raise PacsRefusedError(f"{self._url}: refuses the request (HTTP status {status})") from None
            problem = f"denies access (HTTP status {status}); {_CREDENTIALS_ADVICE}"
        elif isinstance(error, requests.exceptions.SSLError):
            problem = (
                "its TLS certificate cannot be verified; set REQUESTS_CA_BUNDLE to a file with its issuer's"
            )
        elif isinstance(error, requests.exceptions.JSONDecodeError):
            problem = "not a DICOMweb service (its response is no JSON)"
        elif isinstance(error, requests.Timeout):
            return "no response in time"
        elif isinstance(error, requests.ConnectionError):
            return "cannot be reached"
        elif isinstance(error, requests.exceptions.ChunkedEncodingError | BrokenOffError):
            return "the transfer broke off"
        raise PacsError(f"{self._url}: {problem}") from None


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait, 0 where it does not say."""
    response = getattr(error, "response", None)
    try:
        return 0.0 if response is None else Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, InvalidHeader):
        return 0.0


def _open_session(image_bytes: int, environment: Mapping[str, str] = os.environ) -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(image_bytes))
    token, user, password = (environment.get(name) for name in (_TOKEN, _USER, _PASSWORD))
    if token:
        session.auth = _Bearer(token)
    elif user and password is not None:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    elif user or password:
        raise PacsError(f"{_USER} and {_PASSWORD} belong together; one of them is not set")
    return session


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
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
        is_image = "dicom" in kind and "json" not in kind
        response.raw = _Bounded(response.raw, self._image_bytes if is_image else _LARGEST_LISTING)
        return response


class _Bounded:
    """The body of a response, which ends in an error where it is larger than the limit, decompressed."""

    def __init__(self, raw: Any, limit: int) -> None:
        self._raw = raw
        self._limit = limit

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """Chunks of the body, as ``urllib3`` gives them."""
        size = 0
        for chunk in self._raw.stream(amount, decode_content=decode_content):
            size += len(chunk)
            if size > self._limit:
                raise PacsRefusedError(f"the response is larger than the limit of {self._limit:,} bytes")
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
