"""From files to findings: read, frame, look, ask the network, calibrate, refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.inference.background import in_background
from groundglass.inference.bundle import Bundle
from groundglass.inference.finding import Evidence, Finding, Status
from groundglass.inference.gate import Gate, Verdict

Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Told file and frame, says whether a slice needs no finding."""

_BATCH = 8
"""Slices per call of the network: larger ones are no faster on a CPU and cost memory."""


@dataclass(frozen=True)
class _Ready:
    """A slice that may be asked about."""

    slice: CTSlice
    framed: FramedSlice
    image: NDArray[np.float32]
    verdict: Verdict


class Classifier:
    """A bundle, ready to judge slices.

    Args:
        bundle: verified.
        threads: of the matrix arithmetic; 0 for one per core.
        limits: what a single input may ask for.
    """

    def __init__(self, bundle: Bundle, threads: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        self.bundle = bundle
        self._engine = bundle.engine(threads)
        self._framing = bundle.framing
        self._calibration = bundle.calibration
        self._gate = Gate.from_arrays(bundle.trust)
        self._limits = limits

    def predict(self, source: Path | CTSlice | Grey, *, evidence: bool = False) -> Finding:
        """Judge one slice.

        Args:
            source: a file that holds one slice, a slice that was read, or grey pixels, uint8, shape (H, W).
            evidence: keep pixels and activation map in the finding.

        Raises:
            ImageError: the file cannot be read, or holds several slices; see :meth:`predict_all`.
        """
        if isinstance(source, np.ndarray):
            source = CTSlice(source, Origin("array", "array"))
        elif not isinstance(source, CTSlice):
            source = read_slice(source, self._limits)
        return next(self.predict_slices([source], evidence=evidence))

    def predict_all(
        self, paths: Iterable[Path], *, evidence: bool = False, skip: Skip | None = None
    ) -> Iterator[Finding]:
        """Judge every slice of files, folders and zips, as they are read; memory does not grow.

        What cannot be read gives a finding that says so, and never stops the rest. Reading and framing run in
        a thread beside the network.

        Args:
            paths: files, folders, zips or members of zips (``archive.zip!member``).
            evidence: keep pixels and activation map in the findings.
            skip: leaves slices out.
        """
        yield from self._judge_stream(self._read(paths, skip), evidence)

    def predict_slices(self, slices: Iterable[CTSlice], *, evidence: bool = False) -> Iterator[Finding]:
        """Judge slices that were read, in batches; one finding each, in order."""
        yield from self._judge_in_batches(map(self._prepare, slices), evidence)

    def _judge_stream(self, items: Iterator[_Ready | Finding], evidence: bool) -> Iterator[Finding]:
        with closing(in_background(items, 2 * _BATCH)) as ahead:
            yield from self._judge_in_batches(ahead, evidence)

    def _read(self, paths: Iterable[Path], skip: Skip | None) -> Iterator[_Ready | Finding]:
        failed: list[ImageError] = []
        for path in paths:
            try:
                for ct_slice in read_slices(path, self._limits, failed.append):
                    yield from self._failures(failed, skip)
                    if skip is None or not skip(ct_slice.origin.file, ct_slice.origin.frame):
                        yield self._prepare(ct_slice)
            except ImageError as error:
                failed.append(error)
            yield from self._failures(failed, skip)

    def _failures(self, failed: list[ImageError], skip: Skip | None) -> Iterator[Finding]:
        """Findings for files that could not be read, which are then forgotten."""
        for error in failed:
            if skip is None or not skip(error.path, None):
                status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
                yield Finding(status, error.path, self.bundle.id, reason=error.reason)
        failed.clear()

    def _prepare(self, ct_slice: CTSlice) -> _Ready | Finding:
        framed = self._framing.frame(ct_slice.pixels)
        verdict = self._gate.look(ct_slice, framed)
        if verdict.reason is not None:
            return self._refused(ct_slice.origin, verdict)
        return _Ready(ct_slice, framed, self._framing.normalise(framed.pixels), verdict)

    def _refused(self, origin: Origin, verdict: Verdict) -> Finding:
        return Finding.of(origin, Status.REFUSED, self.bundle.id, reason=verdict.reason, flags=verdict.flags)

    def _judge_in_batches(self, items: Iterable[_Ready | Finding], evidence: bool) -> Iterator[Finding]:
        waiting: list[_Ready | Finding] = []
        for item in items:
            waiting.append(item)
            if sum(isinstance(each, _Ready) for each in waiting) == _BATCH or len(waiting) == 4 * _BATCH:
                yield from self._judge(waiting, evidence)
                waiting = []
        yield from self._judge(waiting, evidence)

    def _judge(self, items: Sequence[_Ready | Finding], evidence: bool) -> Iterator[Finding]:
        """Findings for a batch in which some are known already; in order."""
        ready = [item for item in items if isinstance(item, _Ready)]
        judged: Iterator[Finding] = iter(())
        if ready:
            judged = self._ask(ready, evidence)
        for item in items:
            yield item if isinstance(item, Finding) else next(judged)

    def _ask(self, ready: Sequence[_Ready], evidence: bool) -> Iterator[Finding]:
        outputs = self._engine.run(np.stack([item.image for item in ready]))
        for item, logit, activation_map, embedding in zip(
            ready, outputs.logit, outputs.activation_map, outputs.embedding, strict=True
        ):
            verdict = self._gate.judge(item.framed, embedding, item.verdict)
            if verdict.reason is not None:
                yield self._refused(item.slice.origin, verdict)
                continue
            probability = self._calibration.probability(float(logit))
            prediction_set = self._calibration.prediction_set(probability)
            yield Finding.of(
                item.slice.origin,
                Status.OK,
                self.bundle.id,
                probability=probability,
                label=self._calibration.label(prediction_set),
                prediction_set=prediction_set,
                flags=verdict.flags,
                evidence=Evidence(item.slice, item.framed, activation_map, float(logit))
                if evidence
                else None,
            )


def load(path: Path | None = None, *, threads: int = 0) -> Classifier:
    """Open a bundle, verify it, and make it ready.

    Args:
        path: folder or zip; the bundle that comes with the installation unless given.
        threads: of the matrix arithmetic; 0 for one per core.

    Raises:
        BundleError: it is missing, damaged, tampered with, or of a future format.
    """
    return Classifier(Bundle.open(path, threads=threads), threads)
