"""HTTP/1.1 as the service speaks it: uvicorn's, with problem details and with an end to waiting."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from groundglass.serving.problems import MEDIA_TYPE, Problem

_LAST_CALL = 0.5
"""Seconds that a connection without a request yet has to send one when the service ends."""


class PatientProtocol(HttpToolsProtocol):
    """A connection that is closed where a client keeps the service waiting.

    Attributes:
        patience: seconds for a request's headers to arrive, and for an answer to be taken.
    """

    patience = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._for_headers: asyncio.TimerHandle | None = None
        self._for_answer: asyncio.TimerHandle | None = None
        self._asked = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._expect_headers(self.patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._cancel()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Start on the request."""
        self._asked = True
        if self._for_headers is not None:
            self._for_headers.cancel()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # and no request that came early is under way
            self._expect_headers(self.patience)

    def pause_writing(self) -> None:
        """The client does not take what is sent: give up after a while."""
        super().pause_writing()
        self._for_answer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """The client takes what is sent."""
        if self._for_answer is not None:
            self._for_answer.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """The service ends: a connection that was just made may bring a request that is on its way."""
        if not self._asked:
            self._expect_headers(_LAST_CALL)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        problem = Problem(400, "bad-request", "The request is no valid HTTP/1.1.")
        body = problem.body()
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _expect_headers(self, seconds: float) -> None:
        if self._for_headers is not None:
            self._for_headers.cancel()
        self._for_headers = self.loop.call_later(seconds, self.transport.close)

    def _cancel(self) -> None:
        for timer in (self._for_headers, self._for_answer):
            if timer is not None:
                timer.cancel()


def protocol_class(patience: float) -> type[PatientProtocol]:
    """The protocol with a patience of so many seconds."""
    return type("Protocol", (PatientProtocol,), {"patience": patience})
