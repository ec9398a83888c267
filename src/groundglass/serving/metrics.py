"""What the service counts, for Prometheus; nothing in it tells of a patient or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from groundglass.inference.prediction import Prediction

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The service's figures, in a registry of their own.

    Args:
        gauges: name after ``groundglass_`` to description and a call that gives the present value.
    """

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "groundglass_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "groundglass_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._received = Counter(
            "groundglass_received_bytes", "Bytes of request bodies.", registry=self._registry
        )
        self._predictions = Counter(
            "groundglass_predictions", "Predictions made.", ("status", "label"), registry=self._registry
        )
        for name, (description, value) in gauges.items():
            Gauge(f"groundglass_{name}", description, registry=self._registry).set_function(value)

    def answered(self, method: str, route: str, status: int, seconds: float, received: int) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._received.inc(received)

    def found(self, prediction: Prediction) -> None:
        """Count one prediction."""
        self._predictions.labels(prediction.status.value, prediction.label or "").inc()

    def page(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
