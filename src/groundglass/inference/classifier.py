"""From files to predictions: read, frame, look, ask the network, calibrate, refuse.

An iterator that works ahead in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os import PathLike
from queue import Full, Queue
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.lossless import LosslessDecoder
from groundglass.imaging.read import read_slice, read_slices, read_source
from groundglass.imaging.slice import CTSlice, Grey, Origin, Patient
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source
from groundglass.inference.bundle import Bundle
from groundglass.inference.input_check import InputCheck, Verdict
from groundglass.inference.output import named_by
from groundglass.inference.prediction import Evidence, Prediction, Status

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PATIENCE = 0.1
"""Seconds after which a thread that waits for room looks whether it is still wanted."""


def in_background(
    items: Iterator[_Item], ahead: int, work: Callable[[_Item], _Result]
) -> Generator[_Result, None, None]:
    """Draw items in a thread, at most ``ahead`` before they are asked for, and work on each; in their order.

    The work is done by whichever thread has time for it: the drawing one while at least half of ``ahead``
    items wait, else the one that asks for the result. So both are busy, whichever has more to do.

    What the items or the work raise is raised here. Closing the generator ends the thread, which closes
    ``items``.
    """
    worker = _Worker(items, ahead, work)
    try:
        for finish in iter(worker.take, None):
            yield finish()
    finally:
        worker.stop()


class _Worker(Generic[_Item, _Result]):
    """The thread, and a queue of calls that give the results; None stands after the last."""

    def __init__(self, items: Iterator[_Item], ahead: int, work: Callable[[_Item], _Result]) -> None:
        self._items = items
        self._enough = ahead // 2
        self._work = work
        self._queue: Queue[Callable[[], _Result] | None] = Queue(maxsize=ahead)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="groundglass-reader", daemon=True)
        self._thread.start()

    def take(self) -> Callable[[], _Result] | None:
        """The call that gives the next result, None after the last."""
        return self._queue.get()

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._unwanted.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            if isinstance(self._items, Generator):
                with closing(self._items):
                    self._draw()
            else:
                self._draw()
        except BaseException as error:  # noqa: BLE001 - raised where the items are asked for
            self._put(partial(_raise, error))
        else:
            self._put(None)

    def _draw(self) -> None:
        for item in self._items:
            if self._queue.qsize() >= self._enough:
                self._put(partial(_same, self._work(item)))
            else:
                self._put(partial(self._work, item))
            if self._unwanted.is_set():
                return

    def _put(self, call: Callable[[], _Result] | None) -> None:
        while not self._unwanted.is_set():
            try:
                self._queue.put(call, timeout=_PATIENCE)
            except Full:
                continue
            return


def _same(result: _Result) -> _Result:
    return result


def _raise(error: BaseException) -> NoReturn:
    raise error


Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Told file and frame, says whether a slice needs no prediction."""
SkipFile = Callable[[str], bool]
"""Told a file's name, says whether nothing in it needs a prediction, so that it need not be read."""

_AHEAD = 16
"""Slices that may be read before the network has time for them."""


@dataclass(frozen=True)
class _Seen:
    """A slice that was read, cropped and looked at."""

    slice: CTSlice
    cropped: CroppedSlice
    image: NDArray[np.float32]
    verdict: Verdict


class Classifier:
    """A bundle, ready to judge slices.

    Args:
        bundle: verified.
        threads: of the matrix arithmetic; 0 for one per core but one.
        limits: what a single input may ask for.
        keep_identifiers: predictions say who is on a slice, where the file does.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        limits: Limits = DEFAULT_LIMITS,
        *,
        keep_identifiers: bool = False,
    ) -> None:
        self.bundle = bundle
        self._engine = bundle.engine(threads)
        self._preprocessing = bundle.preprocessing
        self._calibration = bundle.calibration
        self._gate = InputCheck.from_arrays(bundle.trust)
        self._limits = limits
        self._keep_identifiers = keep_identifiers

    def predict(self, source: Path | CTSlice | Grey, *, evidence: bool = False) -> Prediction:
        """Judge one slice.

        Args:
            source: a file that holds one slice, a slice that was read, or grey pixels, uint8, shape (H, W).
            evidence: keep pixels and activation map in the prediction.

        Raises:
            ImageError: the file cannot be read, or holds several slices; see :meth:`predict_all`.
        """
        if isinstance(source, np.ndarray):
            source = CTSlice(source, Origin("array", "array"))
        elif not isinstance(source, CTSlice):
            source = read_slice(source, self._limits)
        return next(self.predict_slices([source], evidence=evidence))

    def predict_all(
        self,
        paths: Iterable[Path],
        *,
        evidence: bool = False,
        skip: Skip | None = None,
        skip_file: SkipFile | None = None,
    ) -> Iterator[Prediction]:
        """Judge every slice of files, folders and zips, as they are read; memory does not grow.

        What cannot be read gives a prediction that says so, and never stops the rest. Files are read in a thread
        of its own, which judges slices as well while more are read than this one has judged.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: keep pixels and activation map in the predictions.
            skip: leaves slices out.
            skip_file: leaves files out before they are read.
        """
        read = self._read(chain.from_iterable(map(named_by, paths)), skip, skip_file)
        with closing(in_background(read, _AHEAD, partial(self.judge, evidence=evidence))) as ahead:
            yield from ahead

    def predict_slices(self, slices: Iterable[CTSlice], *, evidence: bool = False) -> Iterator[Prediction]:
        """Judge slices that were read; one prediction each, in order."""
        for ct_slice in slices:
            yield self.judge(ct_slice, evidence=evidence)

    def predict_files(self, files: Iterable[Path], *, of_folder: bool) -> Iterator[Prediction]:
        """Judge every slice of files, each by itself and in the calling thread alone.

        Args:
            files: to be judged.
            of_folder: they lie in a folder that was asked about, so that what is no image is passed over.
        """
        for item in self._read(files, None, None, of_folder=of_folder):
            yield self.judge(item)

    def read_files(self, files: Iterable[Path | Source]) -> Iterator[CTSlice | Prediction]:
        """Every slice of files as they are read, each for :meth:`judge`; what cannot be read is a prediction.

        No file stands for others: a manifest is no image.
        """
        return self._read(files, None, None)

    def judge(self, item: CTSlice | Prediction, *, evidence: bool = False) -> Prediction:
        """Judge a slice of :meth:`read_files`; many threads may do so at the same time.

        Args:
            item: a slice; a prediction is given back as it is.
            evidence: keep pixels and activation map in the prediction.
        """
        return self._judge(self._look(item), evidence)

    def _read(
        self,
        files: Iterable[Path | Source],
        skip: Skip | None,
        skip_file: SkipFile | None,
        *,
        of_folder: bool = False,
    ) -> Iterator[CTSlice | Prediction]:
        failed: list[ImageError] = []
        with LosslessDecoder() as decoder:
            for file in files:
                if isinstance(file, Source):
                    slices = read_source(file, decoder, self._limits)
                else:
                    slices = read_slices(
                        file, self._limits, failed.append, skip_file, decoder=decoder, of_folder=of_folder
                    )
                try:
                    for ct_slice in slices:
                        yield from self._failures(failed, skip)
                        if skip is None or not skip(ct_slice.origin.file, ct_slice.origin.frame):
                            yield ct_slice
                except ImageError as error:
                    failed.append(error)
                yield from self._failures(failed, skip)

    def _failures(self, failed: list[ImageError], skip: Skip | None) -> Iterator[Prediction]:
        """Predictions for files that could not be read, which are then forgotten."""
        for error in failed:
            if skip is None or not skip(error.path, None):
                status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
                nobody = Patient() if self._keep_identifiers else None
                yield Prediction(status, error.path, self.bundle.id, reason=error.reason, patient=nobody)
        failed.clear()

    def _look(self, item: CTSlice | Prediction) -> _Seen | Prediction:
        """A slice, cropped and looked at; a prediction stays what it is."""
        if isinstance(item, Prediction):
            return item
        cropped = self._preprocessing.apply(item.pixels)
        verdict = self._gate.look(item, cropped)
        return _Seen(item, cropped, self._preprocessing.normalise(cropped.pixels), verdict)

    def _refused(self, seen: _Seen, verdict: Verdict, evidence: bool) -> Prediction:
        shown = Evidence(seen.slice, seen.cropped) if evidence else None
        return self._prediction(
            seen, Status.REFUSED, reason=verdict.reason, flags=verdict.flags, evidence=shown
        )

    def _prediction(self, seen: _Seen, status: Status, **fields: Any) -> Prediction:
        origin = seen.slice.origin
        patient = (origin.patient or Patient()) if self._keep_identifiers else None
        return Prediction.of(origin, status, self.bundle.id, patient=patient, **fields)

    def _judge(self, seen: _Seen | Prediction, evidence: bool) -> Prediction:
        """Ask the network about one slice, unless it was refused or a prediction is known already.

        One at a time: on a CPU a batch is no faster, as it outgrows the cache, and costs memory; and what is
        said of a slice cannot depend on its neighbours.
        """
        if isinstance(seen, Prediction):
            return seen
        if seen.verdict.reason is not None:
            return self._refused(seen, seen.verdict, evidence)
        outputs = self._engine.run(seen.image[None])
        verdict = self._gate.judge(seen.cropped, outputs.embedding[0], seen.verdict)
        if verdict.reason is not None:
            return self._refused(seen, verdict, evidence)
        logit = float(outputs.logit[0])
        probability = self._calibration.probability(logit)
        prediction_set = self._calibration.prediction_set(probability)
        return self._prediction(
            seen,
            Status.OK,
            probability=probability,
            label=self._calibration.label(prediction_set),
            prediction_set=prediction_set,
            flags=verdict.flags,
            evidence=Evidence(seen.slice, seen.cropped, outputs.activation_map[0], logit)
            if evidence
            else None,
        )


def load(path: Path | None = None, *, threads: int = 0) -> Classifier:
    """Open a bundle, verify it, and make it ready.

    Args:
        path: folder or zip; the bundle that comes with the installation unless given.
        threads: of the matrix arithmetic; 0 for one per core but one.

    Raises:
        BundleError: it is missing, damaged, tampered with, or of a future format.
    """
    return Classifier(Bundle.open(path, threads=threads), threads)
