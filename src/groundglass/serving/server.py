"""The process: listens, tells where, and when told to end finishes what it has taken on."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import cv2
import uvicorn

from groundglass.errors import ServiceError
from groundglass.inference.bundle import Bundle
from groundglass.serving.app import create_app
from groundglass.serving.logs import configure_logs, log
from groundglass.serving.protocol import protocol_class
from groundglass.serving.service import Service
from groundglass.serving.settings import Settings


def serve(bundle: Bundle, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Raises:
        ServiceError: the address cannot be listened at.
    """
    cv2.setNumThreads(1)  # the workers take all cores
    configure_logs()
    with Service(bundle, settings) as service:
        Server(service).run()


class Server(uvicorn.Server):
    """Uvicorn that goes on answering for a moment after it was told to end.

    In that time ``/readyz`` says no and every answer closes its connection, so that clients go elsewhere and
    none is cut off in the middle.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._ends_at, self._signal = service, float("inf"), ""
        capacity = service.settings.capacity
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=service.settings.host,
                port=service.settings.port,
                http=protocol_class(capacity.idle_seconds),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(capacity.seconds + capacity.idle_seconds),
            )
        )

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and tell where."""
        try:
            await super().startup(sockets)
        except SystemExit:
            settings = self._service.settings
            raise ServiceError(
                f"{settings.host}:{settings.port}: cannot be listened at; is the port taken, the host known?"
            ) from None
        address = self.servers[0].sockets[0].getsockname()
        log("listening", host=address[0], port=address[1], bundle=self._service.bundle.id)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once where that has begun."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        self._ends_at = time.monotonic() + self._service.settings.capacity.drain_seconds
        # Logged by the next tick: the handler may have interrupted a line of the log.
        self._signal = signal.Signals(sig).name

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: forget what was kept long enough, and end when it is time."""
        self._service.results.expire()
        if self._signal:
            log("ending", signal=self._signal, in_flight=self._service.admission.in_flight)
            self._signal = ""
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Finish what was taken on."""
        await super().shutdown(sockets)
        log("ended", unfinished=self._service.admission.in_flight)
