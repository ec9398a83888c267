"""What one running service holds: the classifier and everything that its requests share."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from anyio import CapacityLimiter

from groundglass.files import usable_cores
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.serving.admission import Admission
from groundglass.serving.metrics import Metrics
from groundglass.serving.results import Results
from groundglass.serving.scratch import Scratch
from groundglass.serving.settings import Settings
from groundglass.serving.workers import FairWorkers


class Service:
    """A service; ready within ``with``.

    Args:
        bundle: verified; its engine has one thread, as each worker runs it by itself.
        settings: of the service.

    Attributes:
        draining: it was told to end, and still answers.
        drawing: how many answers that take long to make are made beside the event loop at a time.
        reporting: how many reports are.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle, self.settings = bundle, settings
        self.classifier = Classifier(bundle, 1, settings.reading)
        self.admission = Admission(settings.capacity)
        self.results = Results(settings.capacity)
        self.scratch = Scratch(settings.scratch, settings.capacity.scratch_bytes)
        self.workers = FairWorkers(settings.workers or usable_cores())
        self.drawing, self.reporting = CapacityLimiter(2), CapacityLimiter(1)
        self.draining = False
        self.metrics = Metrics(
            {
                "uploads_in_flight": ("Uploads received or worked on.", lambda: self.admission.in_flight),
                "scratch_bytes": ("Bytes of uploads, on disk or in memory.", lambda: self.scratch.used),
                "kept_results": ("Results in memory.", lambda: len(self.results)),
                "kept_bytes": ("Bytes of slices in memory.", lambda: self.results.size),
                "ready": ("Whether new requests are welcome.", lambda: float(self.is_ready)),
            }
        )
        self._stack = ExitStack()

    def __enter__(self) -> Service:
        self._stack.enter_context(self.scratch)
        self._stack.enter_context(self.workers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.workers.alive and not self.draining
