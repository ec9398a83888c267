"""Evaluate a trained network on one part of a data set and write what was found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from groundglass.atomic import write_json, write_text
from groundglass.data.manifest import Manifest
from groundglass.evaluation.distance_measure import Judged, measure_distance
from groundglass.evaluation.intervals import RESAMPLES, bootstrap
from groundglass.evaluation.leakage import part_warnings
from groundglass.evaluation.look import (
    Progress,
    look_warnings,
    record_look,
    require_finished,
)
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.opacity import OpacityLogits
from groundglass.evaluation.part import Part, content_hash, fingerprint, printable, select_part
from groundglass.evaluation.placement import predict_and_place
from groundglass.evaluation.protocol import TrainedRun
from groundglass.evaluation.report import build_report
from groundglass.evaluation.result import Evaluation, metrics_document, predictions_csv
from groundglass.reporting.html import render


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

    Of a bundle it is measured as well how far the slices lie from its training data. The evaluation of a run
    is also recorded in its folder before anything is written elsewhere.

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
    require_finished(run, allow_unfinished=allow_unfinished)
    chosen = select_part(manifest, split, part, run.seed)
    hashes = [content_hash(record) for record in chosen.records]
    warnings = part_warnings(run, manifest, chosen, hashes)
    start = time.perf_counter()
    said = OpacityLogits()
    logit, probability, placement = predict_and_place(run, chosen, progress, said.take)
    seconds = time.perf_counter() - start
    metrics = compute_metrics(chosen.label, probability)
    intervals = bootstrap(chosen.label, probability, chosen.patient, resamples=resamples, seed=seed)
    opacity = said.measure(chosen, logit, resamples=resamples, seed=seed)
    distance = None
    if placement is not None:
        judged = Judged(chosen.label, probability, chosen.patient, placement)
        distance = measure_distance(judged, resamples=resamples, seed=seed)
    sha256, now = fingerprint(chosen, hashes), datetime.now(timezone.utc).isoformat(timespec="seconds")
    looks = record_look(run, chosen, sha256, now, output)
    evaluation = Evaluation(
        part=chosen,
        sha256=sha256,
        logit=logit,
        probability=probability,
        metrics=metrics,
        bootstrap=intervals,
        warnings=(*look_warnings(run, chosen, looks), *warnings),
        looks=looks,
        time=now,
        seconds=seconds,
        command=_command(
            run, chosen, data or manifest.root, output, ("--bootstrap", resamples, "--seed", seed)
        ),
        distance=distance,
        opacity=opacity,
    )
    write_text(output / "predictions.csv", predictions_csv(evaluation))
    write_text(output / "report.html", render(build_report(run, evaluation)))
    write_json(output / "metrics.json", metrics_document(run, evaluation))
    return evaluation


def _command(run: TrainedRun, part: Part, data: Path, output: Path, settings: Sequence[str | int]) -> str:
    words = ["groundglass", "evaluate", printable(run.path), "--data", printable(data)]
    words += ["--split", part.split] if part.split is not None else []
    words += ["--part", part.name, "--output", printable(output), *map(str, settings)]
    words += [] if run.info.get("finished", False) else ["--allow-unfinished"]
    return shlex.join(words)
