"""From files to findings: read, frame, look, ask the network, calibrate, refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Grey, Origin, Patient
from groundglass.inference.background import in_background
from groundglass.inference.bundle import Bundle
from groundglass.inference.finding import Evidence, Finding, Status
from groundglass.inference.gate import Gate, Verdict

Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Told file and frame, says whether a slice needs no finding."""
SkipFile = Callable[[str], bool]
"""Told a file's name, says whether nothing in it needs a finding, so that it need not be read."""

_BATCH = 8
"""Slices per call of the network: larger ones are no faster on a CPU and cost memory."""


@dataclass(frozen=True)
class _Seen:
    """A slice that was read, framed and looked at."""

    slice: CTSlice
    framed: FramedSlice
    image: NDArray[np.float32]
    verdict: Verdict

    @property
    def admitted(self) -> bool:
        """Whether the network may be asked about it."""
        return self.verdict.reason is None


class Classifier:
    """A bundle, ready to judge slices.

    Args:
        bundle: verified.
        threads: of the matrix arithmetic; 0 for one per core.
        limits: what a single input may ask for.
        keep_identifiers: findings say who is on a slice, where the file does.
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
        self._framing = bundle.framing
        self._calibration = bundle.calibration
        self._gate = Gate.from_arrays(bundle.trust)
        self._limits = limits
        self._keep_identifiers = keep_identifiers

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
        self,
        paths: Iterable[Path],
        *,
        evidence: bool = False,
        skip: Skip | None = None,
        skip_file: SkipFile | None = None,
    ) -> Iterator[Finding]:
        """Judge every slice of files, folders and zips, as they are read; memory does not grow.

        What cannot be read gives a finding that says so, and never stops the rest. Reading and framing run in
        a thread beside the network.

        Args:
            paths: files, folders, zips or members of zips (``archive.zip!member``).
            evidence: keep pixels and activation map in the findings.
            skip: leaves slices out.
            skip_file: leaves files out before they are read.
        """
        yield from self._judge_stream(self._read(paths, skip, skip_file), evidence)

    def predict_slices(self, slices: Iterable[CTSlice], *, evidence: bool = False) -> Iterator[Finding]:
        """Judge slices that were read, in batches; one finding each, in order."""
        yield from self._judge_in_batches(map(self._prepare, slices), evidence)

    def _judge_stream(self, items: Iterator[_Seen | Finding], evidence: bool) -> Iterator[Finding]:
        with closing(in_background(items, 2 * _BATCH)) as ahead:
            yield from self._judge_in_batches(ahead, evidence)

    def _read(
        self, paths: Iterable[Path], skip: Skip | None, skip_file: SkipFile | None
    ) -> Iterator[_Seen | Finding]:
        failed: list[ImageError] = []
        for path in paths:
            try:
                for ct_slice in read_slices(path, self._limits, failed.append, skip_file):
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
                nobody = Patient() if self._keep_identifiers else None
                yield Finding(status, error.path, self.bundle.id, reason=error.reason, patient=nobody)
        failed.clear()

    def _prepare(self, ct_slice: CTSlice) -> _Seen:
        framed = self._framing.frame(ct_slice.pixels)
        verdict = self._gate.look(ct_slice, framed)
        return _Seen(ct_slice, framed, self._framing.normalise(framed.pixels), verdict)

    def _refused(self, seen: _Seen, verdict: Verdict, evidence: bool) -> Finding:
        shown = Evidence(seen.slice, seen.framed) if evidence else None
        return self._finding(seen, Status.REFUSED, reason=verdict.reason, flags=verdict.flags, evidence=shown)

    def _finding(self, seen: _Seen, status: Status, **fields: Any) -> Finding:
        origin = seen.slice.origin
        patient = (origin.patient or Patient()) if self._keep_identifiers else None
        return Finding.of(origin, status, self.bundle.id, patient=patient, **fields)

    def _judge_in_batches(self, items: Iterable[_Seen | Finding], evidence: bool) -> Iterator[Finding]:
        waiting: list[_Seen | Finding] = []
        for item in items:
            waiting.append(item)
            if len(_admitted(waiting)) == _BATCH or len(waiting) == 4 * _BATCH:
                yield from self._judge(waiting, evidence)
                waiting = []
        yield from self._judge(waiting, evidence)

    def _judge(self, items: Sequence[_Seen | Finding], evidence: bool) -> Iterator[Finding]:
        """Findings for a batch in which some are known already; in order."""
        ready = _admitted(items)
        judged: Iterator[Finding] = iter(())
        if ready:
            judged = self._ask(ready, evidence)
        for item in items:
            if isinstance(item, Finding):
                yield item
            else:
                yield next(judged) if item.admitted else self._refused(item, item.verdict, evidence)

    def _ask(self, ready: Sequence[_Seen], evidence: bool) -> Iterator[Finding]:
        outputs = self._engine.run(np.stack([item.image for item in ready]))
        for item, logit, activation_map, embedding in zip(
            ready, outputs.logit, outputs.activation_map, outputs.embedding, strict=True
        ):
            verdict = self._gate.judge(item.framed, embedding, item.verdict)
            if verdict.reason is not None:
                yield self._refused(item, verdict, evidence)
                continue
            probability = self._calibration.probability(float(logit))
            prediction_set = self._calibration.prediction_set(probability)
            yield self._finding(
                item,
                Status.OK,
                probability=probability,
                label=self._calibration.label(prediction_set),
                prediction_set=prediction_set,
                flags=verdict.flags,
                evidence=Evidence(item.slice, item.framed, activation_map, float(logit))
                if evidence
                else None,
            )


def _admitted(items: Sequence[_Seen | Finding]) -> list[_Seen]:
    return [item for item in items if isinstance(item, _Seen) and item.admitted]


def load(path: Path | None = None, *, threads: int = 0) -> Classifier:
    """Open a bundle, verify it, and make it ready.

    Args:
        path: folder or zip; the bundle that comes with the installation unless given.
        threads: of the matrix arithmetic; 0 for one per core.

    Raises:
        BundleError: it is missing, damaged, tampered with, or of a future format.
    """
    return Classifier(Bundle.open(path, threads=threads), threads)
