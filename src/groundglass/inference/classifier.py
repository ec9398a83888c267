"""From files to findings: read, frame, look, ask the network, calibrate, refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.framing import FramedSlice
from groundglass.imaging.limits import DEFAULT_LIMITS, Limits
from groundglass.imaging.lossless import LosslessDecoder
from groundglass.imaging.read import read_slice, read_slices, read_source
from groundglass.imaging.slice import CTSlice, Grey, Origin, Patient
from groundglass.imaging.source import Source
from groundglass.inference.background import in_background
from groundglass.inference.bundle import Bundle
from groundglass.inference.finding import Evidence, Finding, Status
from groundglass.inference.gate import Gate, Verdict
from groundglass.inference.paths import named_by

Path = str | PathLike[str]
Skip = Callable[[str, int | None], bool]
"""Told file and frame, says whether a slice needs no finding."""
SkipFile = Callable[[str], bool]
"""Told a file's name, says whether nothing in it needs a finding, so that it need not be read."""

_AHEAD = 16
"""Slices that may be read before the network has time for them."""


@dataclass(frozen=True)
class _Seen:
    """A slice that was read, framed and looked at."""

    slice: CTSlice
    framed: FramedSlice
    image: NDArray[np.float32]
    verdict: Verdict


class Classifier:
    """A bundle, ready to judge slices.

    Args:
        bundle: verified.
        threads: of the matrix arithmetic; 0 for one per core but one.
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

        What cannot be read gives a finding that says so, and never stops the rest. Files are read in a thread
        of its own, which judges slices as well while more are read than this one has judged.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: keep pixels and activation map in the findings.
            skip: leaves slices out.
            skip_file: leaves files out before they are read.
        """
        read = self._read(chain.from_iterable(map(named_by, paths)), skip, skip_file)
        with closing(in_background(read, _AHEAD, partial(self.judge, evidence=evidence))) as ahead:
            yield from ahead

    def predict_slices(self, slices: Iterable[CTSlice], *, evidence: bool = False) -> Iterator[Finding]:
        """Judge slices that were read; one finding each, in order."""
        for ct_slice in slices:
            yield self.judge(ct_slice, evidence=evidence)

    def predict_files(self, files: Iterable[Path], *, of_folder: bool) -> Iterator[Finding]:
        """Judge every slice of files, each by itself and in the calling thread alone.

        Args:
            files: to be judged.
            of_folder: they lie in a folder that was asked about, so that what is no image is passed over.
        """
        for item in self._read(files, None, None, of_folder=of_folder):
            yield self.judge(item)

    def read_files(self, files: Iterable[Path | Source]) -> Iterator[CTSlice | Finding]:
        """Every slice of files as they are read, each for :meth:`judge`; what cannot be read is a finding.

        No file stands for others: a manifest is no image.
        """
        return self._read(files, None, None)

    def judge(self, item: CTSlice | Finding, *, evidence: bool = False) -> Finding:
        """Judge a slice of :meth:`read_files`; many threads may do so at the same time.

        Args:
            item: a slice; a finding is given back as it is.
            evidence: keep pixels and activation map in the finding.
        """
        return self._judge(self._look(item), evidence)

    def _read(
        self,
        files: Iterable[Path | Source],
        skip: Skip | None,
        skip_file: SkipFile | None,
        *,
        of_folder: bool = False,
    ) -> Iterator[CTSlice | Finding]:
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

    def _failures(self, failed: list[ImageError], skip: Skip | None) -> Iterator[Finding]:
        """Findings for files that could not be read, which are then forgotten."""
        for error in failed:
            if skip is None or not skip(error.path, None):
                status = Status.REFUSED if isinstance(error, NotASliceError) else Status.FAILED
                nobody = Patient() if self._keep_identifiers else None
                yield Finding(status, error.path, self.bundle.id, reason=error.reason, patient=nobody)
        failed.clear()

    def _look(self, item: CTSlice | Finding) -> _Seen | Finding:
        """A slice, framed and looked at; a finding stays what it is."""
        if isinstance(item, Finding):
            return item
        framed = self._framing.frame(item.pixels)
        verdict = self._gate.look(item, framed)
        return _Seen(item, framed, self._framing.normalise(framed.pixels), verdict)

    def _refused(self, seen: _Seen, verdict: Verdict, evidence: bool) -> Finding:
        shown = Evidence(seen.slice, seen.framed) if evidence else None
        return self._finding(seen, Status.REFUSED, reason=verdict.reason, flags=verdict.flags, evidence=shown)

    def _finding(self, seen: _Seen, status: Status, **fields: Any) -> Finding:
        origin = seen.slice.origin
        patient = (origin.patient or Patient()) if self._keep_identifiers else None
        return Finding.of(origin, status, self.bundle.id, patient=patient, **fields)

    def _judge(self, seen: _Seen | Finding, evidence: bool) -> Finding:
        """Ask the network about one slice, unless it was refused or a finding is known already.

        One at a time: on a CPU a batch is no faster, as it outgrows the cache, and costs memory; and what is
        said of a slice cannot depend on its neighbours.
        """
        if isinstance(seen, Finding):
            return seen
        if seen.verdict.reason is not None:
            return self._refused(seen, seen.verdict, evidence)
        outputs = self._engine.run(seen.image[None])
        verdict = self._gate.judge(seen.framed, outputs.embedding[0], seen.verdict)
        if verdict.reason is not None:
            return self._refused(seen, verdict, evidence)
        logit = float(outputs.logit[0])
        probability = self._calibration.probability(logit)
        prediction_set = self._calibration.prediction_set(probability)
        return self._finding(
            seen,
            Status.OK,
            probability=probability,
            label=self._calibration.label(prediction_set),
            prediction_set=prediction_set,
            flags=verdict.flags,
            evidence=Evidence(seen.slice, seen.framed, outputs.activation_map[0], logit)
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
