"""When a DICOMweb server does not answer as it should: wait and try again, or say what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

import requests

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.serving.dicomweb_session import CREDENTIALS_ADVICE

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
