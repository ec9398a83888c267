"""What one running service holds, and what every request passes: access, limits, headers, log and metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import prometheus_client as prometheus
from anyio import CapacityLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundglass.files import usable_cores
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.serving.jobs import UploadDirectory
from groundglass.serving.results import Results
from groundglass.serving.schemas import Problem
from groundglass.serving.security import HEADERS, access_problem, log
from groundglass.serving.settings import Settings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Service:
    """A service; ready within ``with``, and then for one event loop.

    Args:
        bundle: verified; its engine has one thread, as each worker runs it by itself.
        settings: of the service.

    Attributes:
        draining: a signal has come to end it, and still answers.
        workers: threads that read and classify.
        heavy: held by a request with large files or archives, each of which may hold a volume in memory.
        drawing: how many answers that take long to make are made beside the event loop at a time.
        reporting: how many reports are.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle, self.settings = bundle, settings
        self.classifier = Classifier(bundle, 1, settings.reading)
        self.results = Results(settings)
        self.uploads = UploadDirectory(settings.upload_directory, settings.uploads_bytes)
        count = settings.workers or usable_cores()
        self.workers, self.heavy = ThreadPoolExecutor(count, "groundglass-worker"), asyncio.Semaphore(count)
        self.drawing, self.reporting = CapacityLimiter(2), CapacityLimiter(1)
        self.draining = False
        self.in_flight = 0
        self._of_client = Count[str]()
        self.metrics = Metrics(
            {
                "uploads_in_flight": lambda: self.in_flight,
                "upload_bytes": lambda: self.uploads.used,
                "kept_results": lambda: len(self.results),
                "kept_bytes": lambda: self.results.size,
                "ready": lambda: not self.draining,
            }
        )

    def __enter__(self) -> Service:
        self.uploads.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.shutdown(cancel_futures=True)
        self.uploads.__exit__()

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Count an upload of a client's address as in flight while the block lasts.

        Raises:
            Problem: there are as many as there may be.
        """
        most, of_client = self.settings.requests, self.settings.client_requests
        if of_client is not None and self._of_client[client] >= of_client:
            detail = f"{of_client} uploads of this client are in flight, as many as one may have."
            raise Problem("too-many-requests", detail, retry_after=2)
        if self.in_flight >= most:
            raise Problem("busy", f"{most} uploads are in flight, as many as there may be.", retry_after=2)
        self.in_flight += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._of_client -= Count((client,))  # which drops zeros


class Metrics:
    """Figures for Prometheus, in a registry of their own; none of them tells of a patient or a file.

    Args:
        gauges: name after ``groundglass_`` to a call that gives the present value.
    """

    def __init__(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)

        def counter(name: str, description: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(f"groundglass_{name}", description, labels, registry=registry)

        self.requests = counter("requests", "Requests answered.", "method", "route", "status")
        self.received = counter("received_bytes", "Bytes of request bodies.")
        self.predictions = counter("predictions", "Predictions made.", "status", "label")
        self.seconds = prometheus.Histogram(
            "groundglass_request_seconds", "Of an answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        for name, value in gauges.items():
            description = name.replace("_", " ").capitalize()
            prometheus.Gauge(f"groundglass_{name}", f"{description}, now.", registry=registry).set_function(
                value
            )


@dataclass
class RequestContext:
    """What is known of one request and its answer, for the log and the metrics; nothing that names anybody."""

    request: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: int = 0  # of the answer; 0 as long as there is none
    complete: bool = False  # the answer was sent to its end
    received_bytes: int = 0
    files: int = 0
    slices: int = 0
    problem: str | None = None  # kind of the problem that broke off an answer
    client_gone: bool = False


class BrokenOffError(Exception):
    """An answer that had begun ends early; its last line says why."""


class Middleware:
    """Wraps the application: whatever goes wrong, the client gets an answer and the log has no name in it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context, started = RequestContext(), time.perf_counter()
        scope["context"] = context

        async def receive_counted() -> Message:
            message = await receive()
            context.received_bytes += len(message.get("body", b""))
            return message

        async def send_completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "X-Request-ID": context.request}.items():
                    headers.setdefault(name, value)
                if self._service.draining:
                    headers["Connection"] = "close"
            elif not message.get("more_body", False):
                context.complete = True
            await send(message)

        try:
            await self._answer(scope, receive_counted, send_completed)
        finally:
            self._record(scope, context, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = access_problem(self._service.settings, scope["method"], scope["path"], Headers(scope=scope))
        try:
            await (self._app if refused is None else refused.response())(scope, receive, send)
        except BrokenOffError:
            pass
        except Exception as error:  # noqa: BLE001 - the last place to catch it; its text may name a patient
            log("request failed", error, request=scope["context"].request)

    def _record(self, scope: Scope, context: RequestContext, seconds: float) -> None:
        route: str = getattr(scope.get("route"), "path", None) or "other"
        metrics = self._service.metrics
        metrics.requests.labels(scope["method"], route, str(context.status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.received.inc(context.received_bytes)
        known = {name: value for name, value in asdict(context).items() if value or name == "complete"}
        milliseconds = round(seconds * 1000, 1)
        log("request", method=scope["method"], route=route, milliseconds=milliseconds, **known)
