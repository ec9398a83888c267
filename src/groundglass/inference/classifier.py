"""From files to predictions: read, crop, check the input, run the network, calibrate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from os import PathLike
from queue import Full, Queue
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.read import read_slice, read_slices, read_source
from groundglass.imaging.slice import CTSlice, Grey, Origin, Patient
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import MUCH_OPACITY
from groundglass.inference.input_check import DOUBTFUL
from groundglass.inference.inputs import named_by
from groundglass.inference.prediction import COVID, NON_COVID, Evidence, Prediction, Status, lesion_mask

Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Given file and frame, says whether a slice needs no prediction."""
SkipFile = Callable[[str], bool]
"""Given a file's name, says whether nothing in it needs a prediction, so that it need not be read."""

_Call = Callable[[], Prediction]
"""Gives a result of :func:`_ahead`; None stands after the last."""

_AHEAD = 16
"""Slices that may be read before the network has time for them."""
_POLL = 0.1
"""Seconds after which a thread that waits for room checks whether it is still wanted."""


class Classifier:
    """A bundle, ready to classify slices.

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
        self._check = bundle.input_check
        self._lungs = bundle.lungs
        self._limits = limits
        self._keep_identifiers = keep_identifiers

    def predict(self, source: Path | CTSlice | Grey, *, evidence: bool = False) -> Prediction:
        """Classify one slice.

        Args:
            source: a file that holds one slice, a slice that was read, or grey pixels, uint8, shape (H, W).
            evidence: keep pixels and lesion map in the prediction.

        Raises:
            ImageError: the file cannot be read, or holds several slices; see :meth:`predict_all`.
        """
        if isinstance(source, np.ndarray):
            source = CTSlice(source, Origin("array", "array"))
        elif not isinstance(source, CTSlice):
            source = read_slice(source, self._limits)
        return self.classify(source, evidence=evidence)

    def predict_all(
        self,
        paths: Iterable[Path],
        *,
        evidence: bool = False,
        skip: Skip | None = None,
        skip_file: SkipFile | None = None,
    ) -> Generator[Prediction, None, None]:
        """Classify every slice of files, folders and zips, as they are read.

        Memory holds no more than the names in one directory and the places of its DICOM files.

        What cannot be read gives a prediction that says so, and never stops the rest. Files are read in a thread
        of its own, which classifies slices as well while more are read than this one has classified.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: keep pixels and lesion map in the predictions.
            skip: leaves slices out.
            skip_file: leaves files out before they are read.
        """
        read = self.read_files(chain.from_iterable(map(named_by, paths)), skip, skip_file)
        yield from _ahead(read, partial(self.classify, evidence=evidence))

    def classify(self, item: CTSlice | Prediction, *, evidence: bool = False) -> Prediction:
        """Classify a slice of :meth:`read_files`; many threads may do so at the same time.

        One at a time: on a CPU a batch is no faster, as it outgrows the cache, and costs memory; and what is
        said of a slice cannot depend on its neighbours.

        Args:
            item: a slice; a prediction is returned as it is.
            evidence: keep pixels and lesion map in the prediction.
        """
        if isinstance(item, Prediction):
            return item
        cropped = self._preprocessing.apply(item.pixels, self._lungs(item.pixels))
        verdict = self._check.before(item, cropped)
        shown = Evidence(item, cropped) if evidence else None
        if verdict.reason is None:
            outputs = self._engine.run(self._preprocessing.normalise(cropped.pixels)[None])
            verdict = self._check.after(outputs.embedding[0], verdict)
        if verdict.reason is not None:
            refused = self._prediction(item.origin, Status.REFUSED, verdict.reason)
            return replace(refused, flags=verdict.flags, evidence=shown)
        logit = float(outputs.logit[0])
        probability = self._calibration.probability(logit)
        prediction_set, flags = self._calibration.prediction_set(probability), verdict.flags
        lesion_map = None if outputs.lesion_map is None else outputs.lesion_map[0]
        opacity = None if lesion_map is None else _opacity(lesion_map, cropped)
        contradicted = prediction_set == (NON_COVID,) and opacity is not None and opacity > MUCH_OPACITY
        flags += ("much-opacity",) * contradicted
        if contradicted or not DOUBTFUL.isdisjoint(flags):
            prediction_set = (COVID, NON_COVID)
        return replace(
            self._prediction(item.origin, Status.OK),
            probability=probability,
            label=self._calibration.label(prediction_set),
            prediction_set=prediction_set,
            opacity=opacity,
            lung_cm2=_area(cropped, item.origin.spacing),
            flags=flags,
            evidence=shown and replace(shown, lesion_map=lesion_map, logit=logit),
        )

    def _prediction(self, origin: Origin, status: Status, reason: str | None = None) -> Prediction:
        return Prediction(
            status,
            origin.file,
            self.bundle.id,
            reason,
            frame=origin.frame,
            study=origin.study,
            series=origin.series,
            instance=origin.instance,
            slice_number=origin.number if origin.frame is None else origin.frame + 1,
            stack=origin.stack,
            position=None if origin.position is None else origin.position[2],
            patient=(origin.patient or Patient()) if self._keep_identifiers else None,
        )

    def read_files(
        self, files: Iterable[Path | Source], skip: Skip | None = None, skip_file: SkipFile | None = None
    ) -> Iterator[CTSlice | Prediction]:
        """Every slice of files as they are read, each for :meth:`classify`; what cannot be read is a prediction.

        No file stands for others: a manifest is no image. ``skip`` and ``skip_file`` are those of
        :meth:`predict_all`.
        """
        failed: list[ImageError] = []
        with FrameDecoder() as decoder:
            for file in files:
                if isinstance(file, Source):
                    slices = read_source(file, decoder, self._limits)
                else:
                    slices = read_slices(file, self._limits, failed.append, skip_file, decoder=decoder)
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
                yield self._prediction(Origin(error.path, ""), status, error.reason)
        failed.clear()


def _opacity(lesion_map: NDArray[np.float32], cropped: CroppedSlice) -> float:
    return round(100 * float(lesion_mask(lesion_map, cropped).sum() / cropped.lungs.sum()), 2)


def _area(cropped: CroppedSlice, spacing: tuple[float, float] | None) -> float | None:
    return None if spacing is None else round(float(cropped.lungs.sum()) * spacing[0] * spacing[1] / 100, 2)


def load(path: Path | None = None, *, threads: int = 0) -> Classifier:
    """Open a bundle, verify it, and make it ready; arguments and errors are those of :meth:`Bundle.open`."""
    return Classifier(Bundle.open(path, threads=threads), threads)


def _ahead(
    items: Iterator[CTSlice | Prediction], work: Callable[[CTSlice | Prediction], Prediction]
) -> Iterator[Prediction]:
    """Draw items in a thread, at most `_AHEAD` before they are asked for, and work on each; in their order.

    The work is done by whichever thread has time for it: the drawing one while at least half of them wait, else
    the one that asks for the result. So both are busy, whichever has more to do. What the items or the work
    raise is raised where the results are asked for. Closing ends the thread, which closes the items.
    """
    queue: Queue[_Call | None] = Queue(maxsize=_AHEAD)
    unwanted = threading.Event()

    def run() -> None:
        try:
            for item in items:
                few = queue.qsize() < _AHEAD // 2
                _put(queue, unwanted, partial(work, item) if few else partial(_same, work(item)))
                if unwanted.is_set():
                    break
            if isinstance(items, Generator):
                items.close()
        except BaseException as error:  # noqa: BLE001 - raised where the results are asked for
            _put(queue, unwanted, partial(_raise, error))
        else:
            _put(queue, unwanted, None)

    thread = threading.Thread(target=run, name="groundglass-reader", daemon=True)
    thread.start()
    try:
        for finish in iter(queue.get, None):
            yield finish()
    finally:
        unwanted.set()
        thread.join()


def _put(queue: Queue[_Call | None], unwanted: threading.Event, call: _Call | None) -> None:
    while not unwanted.is_set():
        try:
            queue.put(call, timeout=_POLL)
        except Full:
            continue
        return


def _same(result: Prediction) -> Prediction:
    return result


def _raise(error: BaseException) -> NoReturn:
    raise error
