"""One look of a trained network at a part: its predictions, the record of the look, and what it warns of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Record, read_pixels
from groundglass.errors import RunError
from groundglass.evaluation import ledger
from groundglass.evaluation.alterations import Alteration
from groundglass.evaluation.part import Part, printable
from groundglass.evaluation.protocol import Predictions, TrainedRun

Progress = Callable[[int, int], None]
"""Called with slices done and slices in all."""

Take = Callable[[Predictions], None]
"""Called with the predictions of some slices, in order."""

_BATCH = 256
"""Slices predicted in one call, which bounds memory on large data sets."""


def require_finished(run: TrainedRun, *, allow_unfinished: bool = False) -> None:
    """Refuse a run whose training has not ended.

    Raises:
        RunError: it has not, and that is not allowed.
    """
    if not run.info.get("finished", False) and not allow_unfinished:
        raise RunError(f"{run.path}: the training has not finished; resume it, or pass --allow-unfinished")


def predict_part(
    run: TrainedRun,
    part: Part,
    progress: Progress | None = None,
    alter: Alteration | None = None,
    take: Take | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and probabilities of every slice of a part, shape (N,) each.

    Args:
        run: the trained network.
        part: the slices.
        progress: told of every slice.
        alter: done to every slice before it is framed.
        take: given the predictions of every batch, for what else they say.

    Raises:
        RunError: the network gives no valid number for a slice.
        ImageError: a slice cannot be read. None is left out silently.
    """
    slices = _pixels(part.records, progress)
    altered = slices if alter is None else map(alter, slices)
    logits: list[NDArray[np.float64]] = []
    probabilities: list[NDArray[np.float64]] = []
    for _ in range(0, len(part.records), _BATCH):
        predictions = run.predict(islice(altered, _BATCH))
        if take is not None:
            take(predictions)
        logits.append(np.asarray(predictions.logit, np.float64))
        probabilities.append(np.asarray(predictions.probability, np.float64))
    return checked(run, part, np.concatenate(logits), np.concatenate(probabilities))


def checked(
    run: TrainedRun, part: Part, logit: NDArray[np.float64], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and probabilities of a part's slices as they are, where they are all valid.

    Raises:
        RunError: one is not, or they are not as many as the slices.
    """
    if logit.shape != (len(part.records),) or probability.shape != logit.shape:
        raise RunError(f"{run.path}: {len(part.records)} slices gave {len(probability)} predictions")
    bad = np.flatnonzero(~(np.isfinite(logit) & (probability >= 0) & (probability <= 1)))
    if len(bad):
        name = part.file(part.records[bad[0]])
        raise RunError(
            f"{run.path}: the network gives no valid probability for {name}; was the training stable?"
        )
    return logit, probability


def _pixels(records: Sequence[Record], progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    for number, record in enumerate(records, 1):
        yield read_pixels(record)
        if progress is not None:
            progress(number, len(records))


def record_look(run: TrainedRun, part: Part, sha256: str, now: str, output: Path) -> int:
    """Record a look in the run's folder.

    Args:
        run: the trained network.
        part: the slices looked at.
        sha256: fingerprint of their contents and labels.
        now: when, ISO 8601 in UTC.
        output: folder that gets the report.

    Returns:
        How often these slices have been looked at with this run, this time included; 1 where looks are not
        counted.

    Raises:
        RunError: the record is damaged or cannot be written.
    """
    entry = ledger.Entry(
        data=part.data,
        split=part.split,
        part=part.name,
        slices=len(part.records),
        fingerprint=sha256,
        time=now,
        output=printable(output.absolute()),
    )
    return 1 if run.record_folder is None else ledger.record(run.record_folder, entry)


def look_warnings(run: TrainedRun, part: Part, looks: int) -> list[str]:
    """What a reader must know of the run's state and of how often it was asked.

    Args:
        run: the trained network.
        part: the slices looked at.
        looks: as :func:`record_look` counts them.
    """
    warnings = []
    if not run.info.get("finished", False):
        warnings.append("The training has not finished: these are figures of an intermediate state.")
    if looks > 1 and part.name not in {"train", "val"}:
        warnings.append(
            f"These slices have been evaluated with this run {looks} times, this time included. Figures on a "
            "test part hold only if nothing was chosen by them."
        )
    return warnings
