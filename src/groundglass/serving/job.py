"""The work on one request: workers read and judge its files, the event loop gets its predictions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import MemorySource
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction
from groundglass.serving.layers import heat_map_uri
from groundglass.serving.problems import too_large
from groundglass.serving.results import KeptSlice
from groundglass.serving.spool import UploadedFile
from groundglass.serving.workers import FairWorkers, Steps

HeatMaps = Literal["none", "link", "inline"]
_Items = Generator[CTSlice | Prediction, None, None]


@dataclass(frozen=True)
class Judged:
    """What is said of one slice, ready to be answered.

    Attributes:
        prediction: without evidence; its file is called as the client called it.
        kept: pixels and activation map, for links.
        heat_map: data URI of a PNG, for those who want it in the answer.
    """

    prediction: Prediction
    kept: KeptSlice | None = None
    heat_map: str | None = None


class Job:
    """Files of one request on their way to predictions.

    Args:
        classifier: which may be asked by many threads.
        files: of the request.
        heat_maps: how they are wanted.
        most: slices; more are a problem.
    """

    def __init__(
        self, classifier: Classifier, files: Sequence[UploadedFile], heat_maps: HeatMaps, most: int
    ) -> None:
        self._classifier, self._files, self._heat_maps, self._most = classifier, files, heat_maps, most
        self._names = {_called(file): file.name for file in files}
        self._loop = asyncio.get_running_loop()
        self._judged: dict[int, Judged] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._news, self._ended = asyncio.Event(), asyncio.Event()

    def start(self, workers: FairWorkers) -> None:
        """Hand the work to the workers."""
        heavy = any(file.heavy for file in self._files)
        workers.submit(self._steps(), self._done, heavy=heavy)

    def stop(self, reason: BaseException) -> None:
        """End the work before the next slice; whoever waits for predictions is told the reason."""
        self._stopped = True
        self._error = self._error or reason
        self._news.set()

    async def ended(self) -> None:
        """Wait until no worker has anything of the request in its hands."""
        await self._ended.wait()

    async def predictions(self) -> AsyncIterator[Judged]:
        """What is said of each slice, in the order of reading, as soon as it is known.

        Raises:
            Problem: there are too many slices.
            BaseException: whatever ended the work early.
        """
        number = 0
        while True:
            while number in self._judged:
                yield self._judged.pop(number)
                number += 1
            if self._error is not None:
                raise self._error
            if self._ended.is_set():
                return
            self._news.clear()
            await self._news.wait()

    def _steps(self) -> Steps:
        sources = [file.source for file in self._files]
        with closing(cast("_Items", self._classifier.read_files(sources))) as items:
            for number, item in enumerate(items):
                if self._stopped:
                    return
                if number >= self._most:
                    raise too_large(
                        "too-many-slices", f"The files hold more than {self._most:,} slices; send fewer."
                    )
                yield partial(self._judge, number, item)

    def _judge(self, number: int, item: CTSlice | Prediction) -> None:
        if self._stopped:
            return
        prediction = self._classifier.classify(item, evidence=self._heat_maps != "none")
        kept = heat_map = None
        if prediction.evidence is not None and self._heat_maps == "link":
            kept = KeptSlice.of(prediction.evidence)
        elif prediction.evidence is not None:
            heat_map = heat_map_uri(prediction.evidence)
        judged = Judged(self._as_sent(prediction), kept, heat_map)
        self._loop.call_soon_threadsafe(self._take, number, judged)

    def _as_sent(self, prediction: Prediction) -> Prediction:
        """The prediction without its pixels, and with the name that the client gave the file."""
        path = next(
            path for path in self._names if prediction.file == path or prediction.file.startswith(f"{path}!")
        )
        name = self._names[path]
        reason = prediction.reason if prediction.reason is None else prediction.reason.replace(path, name)
        return replace(prediction, file=name + prediction.file[len(path) :], reason=reason, evidence=None)

    def _take(self, number: int, judged: Judged) -> None:
        self._judged[number] = judged
        self._news.set()

    def _done(self, error: BaseException | None) -> None:
        self._loop.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._ended.set()
        self._news.set()


def _called(file: UploadedFile) -> str:
    """What a prediction made from the file calls it."""
    return file.source.name if isinstance(file.source, MemorySource) else str(file.source)
