"""A DICOM archive behind DICOMweb: what it holds (QIDO-RS), its images (WADO-RS), storing (STOW-RS)."""

from __future__ import annotations

import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import requests
from pydicom import Dataset, dcmwrite
from requests.auth import HTTPBasicAuth
from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from requests.utils import get_netrc_auth
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.source import DEFAULT_LIMITS

_TOKEN, _USER, _PASSWORD = "GROUNDGLASS_PACS_TOKEN", "GROUNDGLASS_PACS_USER", "GROUNDGLASS_PACS_PASSWORD"
_CREDENTIALS_ADVICE = f"set {_TOKEN}, or {_USER} and {_PASSWORD}, in the environment, or name the host in ~/.netrc"
_CERTIFICATE_ADVICE = "its TLS certificate cannot be verified; set REQUESTS_CA_BUNDLE to a file with its issuer's"
_TIMEOUT = (10.0, 60.0)  # seconds to wait for a connection, and for the next bytes of a response
_FIRST_CONTACT = 5.0  # seconds of retries with a server that was never reached: its address may be wrong
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_TEMPORARY, _FORBIDDEN = frozenset({408, 425, 429, 500, 502, 503, 504}), frozenset({401, 403, 407})
_NOT_UNDERSTOOD = frozenset({400, 406, 415, 422, 501})
_LARGEST_LISTING = 256 * 2**20

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _MODALITY, _NUMBER, _DATE = "00080016", "00080060", "00200013", "00080020"
_FAILED, _REASON = "00081198", "00081197"
_IMAGES_IN_SERIES, _IMAGES_IN_STUDY = "00201209", "00201208"
_CT_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "2.2"))
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
_BOUNDARY = re.compile(r"""boundary=(?:"([^"]+)"|([^;\s]+))""", re.IGNORECASE)
_PART = 'multipart/related; type="application/dicom"'
# What is asked for, from the best to the plainest, as not every server understands the best.
_AS_STORED = (f"{_PART}; transfer-syntax=*", _PART, "application/dicom")
_LISTINGS: tuple[tuple[str, set[str]], ...] = (
    ("application/dicom+json, application/json", {"limit", "offset", "StudyDate", "ModalitiesInStudy", "includefield"}),
    ("application/dicom+json", {"limit", "offset", "StudyDate"}),
    ("application/json", set()),
)

_Way = TypeVar("_Way")
_Result = TypeVar("_Result")
_Entry = Mapping[str, Any]


class StudyEntry(NamedTuple):
    """A study in the archive."""

    uid: str
    images: int | None  # how many objects it has; None where the archive does not say


class SeriesEntry(NamedTuple):
    """A series in the archive."""

    study: str
    uid: str
    modality: str  # such as CT; empty where the archive does not say
    images: int | None  # how many objects it has; None where the archive does not say


class InstanceEntry(NamedTuple):
    """An object in the archive."""

    sop_class: str
    uid: str
    number: int = 0  # Instance Number; 0 where the archive does not say
    modality: str = ""

    @property
    def is_ct(self) -> bool:
        """Whether it is of modality CT; where the archive does not say, whether it is stored as a CT image."""
        return self.modality == "CT" if self.modality else self.sop_class in _CT_IMAGES


class Archive:
    """A DICOMweb server.

    Connection errors, time-outs, transfers that break off, and statuses 408, 425, 429, 500, 502, 503 and 504
    are retried after half a second, twice as long each time, or as long as ``Retry-After`` says. Credentials come
    from the environment, else from the netrc file.

    Args:
        url: of the DICOMweb root, under which ``/studies`` lies.
        retry_seconds: how long each request is repeated while the server has a fault.
        on_wait: called once per request that is repeated, with the reason.

    Raises:
        PacsError: the URL or the credentials are not valid. Every method raises it where the server denies access or
            is no DICOMweb server, PacsRefusedError where it refuses a request or gave a UID that is none, and
            PacsUnavailableError where a fault lasts.
    """

    def __init__(self, url: str, retry_seconds: float = 120.0, on_wait: Callable[[str], None] = lambda _: None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # of brackets without an address
            parts = urlsplit("")
        if parts.username or parts.password:
            raise PacsError(f"credentials do not belong into a URL, where others can see them; {_CREDENTIALS_ADVICE}")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise PacsError(f"{url}: expected the URL of a DICOMweb service, such as https://pacs/dicom-web")
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.auth = _credentials()
        self._seconds, self._on_wait = retry_seconds, on_wait

    @property
    def sends_credentials_in_the_clear(self) -> bool:
        """Whether credentials travel unencrypted to another machine."""
        parts = urlsplit(self.url)
        loopback = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        return parts.scheme == "http" and not loopback and (self._session.auth or get_netrc_auth(self.url)) is not None

    def check(self) -> None:
        """Make sure that a DICOMweb service responds, with retries of at most five seconds."""
        self._query(f"{self.url}/studies", {"limit": 1}, min(_FIRST_CONTACT, self._seconds))

    def studies(self, since: str | None = None) -> Iterator[StudyEntry]:
        """Studies that have CT images, from the day ``since`` (YYYYMMDD) on."""
        filters = {"ModalitiesInStudy": "CT"} | ({} if since is None else {"StudyDate": f"{since}-"})
        for entry in self._all(f"{self.url}/studies", filters, _STUDY):
            if since is None or (_text(entry, _DATE) or since) >= since:  # not every server heeds the filter
                yield StudyEntry(_uid(entry, _STUDY), _count(entry, _IMAGES_IN_STUDY))

    def series(self, study: str) -> list[SeriesEntry]:
        """All series of a study, of whatever modality; none where there is no such study."""
        fields = {"includefield": ["NumberOfSeriesRelatedInstances", "Modality"]}
        return [
            SeriesEntry(study, _uid(entry, _SERIES), _modality(entry), _count(entry, _IMAGES_IN_SERIES))
            for entry in self._all(self._url(study, "series"), fields, _SERIES)
        ]

    def instances(self, series: SeriesEntry) -> list[InstanceEntry]:
        """All objects of a series by Instance Number."""
        url = self._url(series.study, "series", series.uid, "instances")
        found = [
            InstanceEntry(_uid(each, _SOP_CLASS), _uid(each, _INSTANCE), _count(each, _NUMBER) or 0, _modality(each))
            for each in self._all(url, {"includefield": ["Modality"]}, _INSTANCE)
        ]
        if not all(each.uid and each.sop_class for each in found):
            raise PacsRefusedError(f"{self.url}: lists an object of the series without a valid UID")
        return sorted(found, key=lambda each: (each.number, each.uid))

    def fetch(self, series: SeriesEntry, instance: InstanceEntry) -> bytes:
        """An object as it was stored: a DICOM file's content. One larger than the limit counts as refused."""
        url = self._url(series.study, "series", series.uid, "instances", instance.uid)

        def once(accept: str) -> bytes:
            return _only_part(*self._request("GET", url, accept, limit=DEFAULT_LIMITS.file_bytes))

        return self._plainer(once, _AS_STORED, self._seconds)

    def store(self, dataset: Dataset) -> None:
        """Store an object; to store the same one again does no harm."""
        stream, boundary = io.BytesIO(), uuid.uuid4().hex
        dcmwrite(stream, dataset)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
        body = head.encode() + stream.getvalue() + f"\r\n--{boundary}--\r\n".encode()
        kind, url = f"{_PART}; boundary={boundary}", self._url(str(dataset.StudyInstanceUID))
        send = partial(self._request, "POST", url, data=body, kind=kind)
        answer = self._plainer(send, ("application/dicom+json", "*/*"), self._seconds)
        try:
            reason = _failure(*answer)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError, ET.ParseError) as error:
            raise PacsRefusedError(
                f"{self.url}: its response to an upload cannot be understood ({type(error).__name__})"
            ) from error
        if reason is not None:
            raise PacsRefusedError(f"{self.url}: does not store the result (failure reason {reason:#06x})")

    def _request(
        self, method: str, url: str, accept: str, *, kind: str | None = None, limit: int = _LARGEST_LISTING, **sent: Any
    ) -> tuple[str, bytes]:
        """Type and content of a response; one that is larger than the limit, decompressed, counts as refused."""
        headers = {"Accept": accept} | ({"Content-Type": kind} if kind else {})
        sent |= {"headers": headers, "timeout": _TIMEOUT, "stream": True, "allow_redirects": method == "GET"}
        with self._session.request(method, url, **sent) as response:
            response.raise_for_status()
            if response.is_redirect:  # after which requests would ask, and send nothing
                raise PacsError(f"{url}: redirects an upload; name the address that it leads to")
            chunks, size = list[bytes](), 0
            for chunk in response.iter_content(2**20):
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise PacsRefusedError(f"the response is larger than the limit of {limit:,} bytes")
            return response.headers.get("Content-Type", ""), b"".join(chunks)

    def _url(self, study: str, *below: str) -> str:
        for part in (study, *below[1::2]):
            if not _UID.fullmatch(part):
                raise PacsRefusedError(f"{self.url}: {part!r} is no UID")
        return "/".join((self.url, "studies", study, *below))

    def _all(self, url: str, asked: Mapping[str, Any], uid_tag: str) -> Iterator[_Entry]:
        """Results page by page, each once; servers may send as few at a time as they like."""
        seen, offset = set[str](), 0
        while True:
            page = self._query(url, {**asked, "offset": offset}, self._seconds)
            offset += len(page)
            fresh = {key: entry for entry in page if (key := _uid(entry, uid_tag) or str(entry)) not in seen}
            if not fresh:
                return
            seen |= fresh.keys()
            yield from fresh.values()

    def _query(self, url: str, asked: Mapping[str, Any], seconds: float) -> list[_Entry]:
        def once(way: tuple[str, set[str]]) -> bytes:
            accept, understood = way
            parameters = {name: value for name, value in asked.items() if name in understood}
            return self._request("GET", url, accept, params=parameters)[1]

        try:
            content = self._plainer(once, _LISTINGS, seconds)
        except PacsRefusedError as error:
            raise type(error)(f"{error}; is this the DICOMweb root?") from None
        try:
            results = json.loads(content) if content else []
        except (ValueError, RecursionError):
            raise PacsRefusedError(f"{self.url}: not a DICOMweb service (its response is no JSON)") from None
        results = [results] if isinstance(results, dict) else results
        if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
            raise PacsRefusedError(f"{self.url}: not a DICOMweb service (its response is no list of objects)")
        return results

    def _plainer(self, ask: Callable[[_Way], _Result], ways: Sequence[_Way], seconds: float) -> _Result:
        """What the server answers when it is asked in the first of these ways that it understands."""
        for way in ways[:-1]:
            with suppress(_NotUnderstoodError):
                return self._retried(ask, way, seconds)
        return self._retried(ask, ways[-1], seconds)

    def _retried(self, ask: Callable[[_Way], _Result], way: _Way, seconds: float) -> _Result:
        # urllib3 counts attempts, not seconds, and does not repeat a transfer that breaks off in its body.
        end, delay = time.monotonic() + seconds, _FIRST_DELAY
        while True:
            try:
                return ask(way)
            except (OSError, ValueError, RuntimeError, HTTPError) as error:  # the last ones of a redirect's content
                fault = _passing_fault(error, self.url)
                wait = max(delay, _retry_after(error))
            if time.monotonic() + wait > end:
                raise PacsUnavailableError(f"{self.url}: {fault}")
            if delay == _FIRST_DELAY:
                self._on_wait(f"{self.url}: {fault}; retrying")
            time.sleep(wait)
            delay = min(2 * delay, _LONGEST_DELAY)


class _NotUnderstoodError(PacsRefusedError):
    """The archive does not understand what it is asked; it may understand less."""


def _passing_fault(error: Exception, url: str) -> str:
    """What is wrong, where it may pass; raises where it will not."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status in _TEMPORARY:
            return f"has a fault (HTTP status {status})"
        if status not in _FORBIDDEN:
            kind = _NotUnderstoodError if status in _NOT_UNDERSTOOD else PacsRefusedError
            raise kind(f"{url}: refuses the request (HTTP status {status})") from None
        problem = f"denies access (HTTP status {status}); {_CREDENTIALS_ADVICE}"
    elif type(error) in {OSError, requests.exceptions.SSLError} and "EOF occurred" not in str(error):
        problem = _CERTIFICATE_ADVICE
    elif isinstance(error, requests.Timeout):
        return "no response in time"
    elif isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    elif isinstance(error, ChunkedEncodingError | ContentDecodingError):
        return "the transfer broke off"
    else:
        raise PacsRefusedError(f"{url}: request failed ({type(error).__name__})") from None
    raise PacsError(f"{url}: {problem}") from None


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait, 0 where it does not say."""
    response = getattr(error, "response", None)
    with suppress(KeyError, InvalidHeader, ValueError, OverflowError):
        return Retry().parse_retry_after(response.headers["Retry-After"]) if response is not None else 0.0
    return 0.0


def _value(entry: _Entry, tag: str) -> Any:
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(entry: _Entry, tag: str) -> str:
    value = _value(entry, tag)
    return value.strip(" \0") if isinstance(value, str) else ""


def _modality(entry: _Entry) -> str:
    return _text(entry, _MODALITY).upper()


def _uid(entry: _Entry, tag: str) -> str:
    """A UID without its padding; empty where there is none, or what stands there is none."""
    found = _text(entry, tag)
    return found if _UID.fullmatch(found) else ""


def _count(entry: _Entry, tag: str) -> int | None:
    with suppress(TypeError, ValueError, OverflowError):
        return int(float(_value(entry, tag)))
    return None


def _failure(content_type: str, body: bytes) -> int | None:
    """Why an upload was not stored, 0 where the answer does not say; None where it was stored."""
    if "json" in content_type.lower() and body:
        answer = json.loads(body)
        failed = (answer[0] if isinstance(answer, list) else answer).get(_FAILED) or {}
        items = failed.get("Value") or []
        return (_count(items[0], _REASON) or 0) if items else None
    if "xml" in content_type.lower() and body:
        item = ET.fromstring(body).find(f".//*[@tag='{_FAILED}']/*")  # noqa: S314 - expat bounds entities
        return None if item is None else int(item.findtext(f"*[@tag='{_REASON}']/*") or 0)
    if "html" in content_type.lower() and body:
        raise ValueError("a page, such as one to log in at")
    return None


def _only_part(content_type: str, body: bytes) -> bytes:
    """The one part of a multipart response; all of one that is not multipart, as some servers send it."""
    found = _BOUNDARY.search(content_type)
    if found is None or not content_type.lower().startswith("multipart/"):
        return body
    marker = b"--" + (found[1] or found[2]).encode("latin-1")
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    if start < 0 or end < start:
        raise ChunkedEncodingError
    return body[start + 4 : end]


def _credentials() -> Any:
    """What requests asks for credentials; None leaves it to netrc."""
    token, user, password = (os.environ.get(name) for name in (_TOKEN, _USER, _PASSWORD))
    token = token and token.strip()  # of a file's last line break
    if token and not (token.isascii() and token.isprintable()):
        raise PacsError(f"{_TOKEN} holds characters that no header can carry")

    def with_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    if token:
        return with_token
    if user and password is not None:
        return HTTPBasicAuth(user.encode(), password.encode())
    if user or password:
        raise PacsError(f"{_USER} and {_PASSWORD} belong together; one of them is not set")
    return None
