"""Evaluate a trained network on one part of a data set and write what was found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groundglass.atomic import write_json, write_text
from groundglass.data.manifest import Manifest, Record, read_pixels
from groundglass.errors import RunError
from groundglass.evaluation import ledger
from groundglass.evaluation.intervals import RESAMPLES, bootstrap
from groundglass.evaluation.leakage import part_warnings
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import Part, content_hash, fingerprint, printable, select_part
from groundglass.evaluation.protocol import TrainedRun
from groundglass.evaluation.report import build_report
from groundglass.evaluation.result import Evaluation, metrics_document, predictions_csv
from groundglass.reporting.html import render

Progress = Callable[[int, int], None]
"""Called with slices done and slices in all."""

_BATCH = 256
"""Slices predicted in one call, which bounds memory on large data sets."""


def evaluate(
    run: TrainedRun,
    manifest: Manifest,
    split: str | None,
    part: str,
    output: Path,
    *,
    data: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_unfinished: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the slices of a part, measure, write ``metrics.json``, ``predictions.csv`` and ``report.html``.

    The evaluation of a run is also recorded in its folder before anything is written elsewhere.

    Args:
        run: the trained network.
        manifest: the data set.
        split: specification of the split, or None where ``part`` is ``all``.
        part: ``train``, ``val``, ``test``, or ``all`` for every slice.
        output: folder for the files, made where it is missing.
        data: path that the manifest was read from, for the command to reproduce; the manifest's root unless
            given.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        allow_unfinished: evaluate a run whose training has not ended, with a warning.
        progress: told of every slice.

    Raises:
        RunError: the run is unfinished, its record is damaged, or its network gives no number.
        DataError: the part is empty or unlabelled, or the split does not fit the data set.
        ImageError: a slice of the part cannot be read. None is left out silently.
    """
    if not run.info.get("finished", False) and not allow_unfinished:
        raise RunError(f"{run.path}: the training has not finished; resume it, or pass --allow-unfinished")
    chosen = select_part(manifest, split, part, run.seed)
    hashes = [content_hash(record) for record in chosen.records]
    warnings = part_warnings(run, manifest, chosen, hashes)
    start = time.perf_counter()
    logit, probability = _predict(run, chosen, progress)
    seconds = time.perf_counter() - start
    metrics = compute_metrics(chosen.label, probability)
    intervals = bootstrap(chosen.label, probability, chosen.patient, resamples=resamples, seed=seed)
    sha256, now = fingerprint(chosen, hashes), datetime.now(timezone.utc).isoformat(timespec="seconds")
    looks = _record(run, chosen, sha256, now, output)
    evaluation = Evaluation(
        part=chosen,
        sha256=sha256,
        logit=logit,
        probability=probability,
        metrics=metrics,
        bootstrap=intervals,
        warnings=(*_state_warnings(run, chosen, looks), *warnings),
        looks=looks,
        time=now,
        seconds=seconds,
        command=_command(
            run, chosen, data or manifest.root, output, ("--bootstrap", resamples, "--seed", seed)
        ),
    )
    write_text(output / "predictions.csv", predictions_csv(evaluation))
    write_text(output / "report.html", render(build_report(run, evaluation)))
    write_json(output / "metrics.json", metrics_document(run, evaluation))
    return evaluation


def _record(run: TrainedRun, part: Part, sha256: str, now: str, output: Path) -> int:
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


def _state_warnings(run: TrainedRun, part: Part, looks: int) -> list[str]:
    warnings = []
    if not run.info.get("finished", False):
        warnings.append("The training has not finished: these are figures of an intermediate state.")
    if looks > 1 and part.name not in {"train", "val"}:
        warnings.append(
            f"These slices have been evaluated with this run {looks} times, this time included. Figures on a "
            "test part hold only if nothing was chosen by them."
        )
    return warnings


def _predict(
    run: TrainedRun, part: Part, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    slices = _pixels(part.records, progress)
    logits: list[NDArray[np.float64]] = []
    probabilities: list[NDArray[np.float64]] = []
    for _ in range(0, len(part.records), _BATCH):
        predictions = run.predict(islice(slices, _BATCH))
        logits.append(np.asarray(predictions.logit, np.float64))
        probabilities.append(np.asarray(predictions.probability, np.float64))
    logit, probability = np.concatenate(logits), np.concatenate(probabilities)
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


def _command(run: TrainedRun, part: Part, data: Path, output: Path, settings: Sequence[str | int]) -> str:
    words = ["groundglass", "evaluate", printable(run.path), "--data", printable(data)]
    words += ["--split", part.split] if part.split is not None else []
    words += ["--part", part.name, "--output", printable(output), *map(str, settings)]
    words += [] if run.info.get("finished", False) else ["--allow-unfinished"]
    return shlex.join(words)
