"""The process: listens, tells where, and at a signal to end finishes what it has accepted."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
import time
import warnings
import webbrowser
from types import FrameType

import cv2
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from groundglass.errors import ServiceError
from groundglass.inference.bundle import Bundle
from groundglass.serving.app import create_app
from groundglass.serving.jobs import Service, upload_directory
from groundglass.serving.security import log
from groundglass.serving.settings import Settings

_LONGEST_HEAD, _MOST_HEADERS = 2**17, 100  # bytes and number of a request's headers


def serve(bundle: Bundle, settings: Settings, *, open_page: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Raises:
        ServiceError: the address cannot be listened at, or uploads cannot be stored.
    """
    cv2.setNumThreads(1)  # the workers take all cores
    # Other packages say nothing: they may quote a file's content.
    warnings.simplefilter("ignore")
    logging.disable()
    with upload_directory(settings.upload_directory) as uploads:
        service = Service(bundle, settings, uploads)
        try:
            _Server(service, open_page=open_page).run()
            log("ended", unfinished=service.in_flight)
        finally:
            service.workers.shutdown(cancel_futures=True)


class _Server(uvicorn.Server):
    """Uvicorn that answers for a moment longer after a signal to end.

    In that time ``/readyz`` says no and every answer closes its connection, so that clients go elsewhere and
    none is cut off in the middle.
    """

    def __init__(self, service: Service, *, open_page: bool) -> None:
        self._service, self._open_page = service, open_page
        self._ends_at, self._signal = float("inf"), ""
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=settings.host,
                port=settings.port,
                http=type("Protocol", (_TimedProtocol,), {"timeout": settings.idle_seconds}),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(2 * settings.seconds + settings.idle_seconds),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            address = f"{self._service.settings.host}:{self._service.settings.port}"
            raise ServiceError(
                f"{address}: cannot be listened at; choose another --port, or check the name of the --host"
            ) from None
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log("listening", host=host, port=port, bundle=self._service.bundle.id)
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        address = f"http://{shown}:{port}/"
        print(f"groundglass is at {address}", file=sys.stderr, flush=True)  # noqa: T201 - for people; the log is for machines
        if self._open_page:
            await asyncio.to_thread(webbrowser.open, address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        self._ends_at = time.monotonic() + self._service.settings.drain_seconds
        # Logged by the next tick: the handler may have interrupted a line of the log.
        self._signal = signal.Signals(sig).name

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: forget what was kept long enough, and end when it is time."""
        self._service.results.expire()
        if self._signal:
            log("ending", signal=self._signal, in_flight=self._service.in_flight)
            self._signal = ""
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)


class _TimedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, closed where a client keeps the service waiting, for which uvicorn has no limit."""

    timeout = 20.0  # seconds for a request's headers to arrive, and for an answer to be taken
    _headers: asyncio.TimerHandle
    _answer: asyncio.TimerHandle
    _head: int = 0  # bytes since a request began, or since the last of its content

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._headers = self.loop.call_later(self.timeout, transport.close)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:  # which ends with any byte, though a blank line begins no request
            self._wait()
        self._head += len(data)
        super().data_received(data)
        if self._head > _LONGEST_HEAD:
            self.transport.abort()

    def _wait(self) -> None:
        self._headers.cancel()
        self._headers = self.loop.call_later(self.timeout, self.transport.close)

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > _MOST_HEADERS:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._headers.cancel()
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0  # what follows may be trailers
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer = self.loop.call_later(self.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._answer.cancel()
        super().resume_writing()
