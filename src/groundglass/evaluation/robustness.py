"""Does a figure hold when every slice comes in the same container, and without slices that contradict?

The container of a slice can tell its label where a data set was put together from several sources, and what
compression leaves behind in the pixels comes with it. And slices that stand in a data set twice with opposite
labels cannot all be called rightly. Each network judges the part once as it is and once in each container;
all conditions come from that one look, which the run's record counts as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Manifest
from groundglass.errors import DataError
from groundglass.evaluation.alterations import compressed
from groundglass.evaluation.conditions import Condition, ConditionedPart, ConditionFigures, Probabilities
from groundglass.evaluation.conflicts import conflicting
from groundglass.evaluation.intervals import LEVEL, RESAMPLES
from groundglass.evaluation.leakage import part_warnings
from groundglass.evaluation.look import look_warnings, predict_part, record_look, require_finished
from groundglass.evaluation.metrics import THRESHOLD
from groundglass.evaluation.model_rows import ModelRow, RowDescription
from groundglass.evaluation.part import Part, content_hash, fingerprint, select_part
from groundglass.evaluation.protocol import TrainedRun
from groundglass.evaluation.result import versions


@dataclass(frozen=True)
class RobustnessJob:
    """What is to be measured on what.

    Attributes:
        rows: the networks.
        manifest: the data set.
        split: specification of the split, or None where ``part`` is ``all``.
        part: ``train``, ``val``, ``test``, or ``all`` for every slice.
        conflicts: files of slices with a copy of the opposite label; None where nobody looked for them.
        qualities: of the JPEG containers, each 1 to 100.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        allow_unfinished: judge runs whose training has not ended, with a warning.
    """

    rows: tuple[ModelRow, ...]
    manifest: Manifest
    split: str | None
    part: str
    conflicts: frozenset[str] | None = None
    qualities: tuple[int, ...] = (90, 50)
    resamples: int = RESAMPLES
    seed: int = 0
    allow_unfinished: bool = False

    def conditions(self) -> tuple[Condition, ...]:
        """All of them; the first is the slices as they are."""
        without = (False,) if self.conflicts is None else (False, True)
        return tuple(Condition(quality, each) for each in without for quality in (None, *self.qualities))


@dataclass(frozen=True)
class RowFigures:
    """One row of networks under all conditions.

    Attributes:
        name: of the row.
        looks: how often each run has been asked about these slices, this time included.
        warnings: what a reader must know before trusting its figures.
        conditions: the figures.
    """

    name: str
    looks: tuple[int, ...]
    warnings: tuple[str, ...]
    conditions: tuple[ConditionFigures, ...]


@dataclass(frozen=True)
class Robustness:
    """Everything measured.

    Attributes:
        models: which networks they were.
        part: the slices.
        sha256: fingerprint of their contents and labels.
        left_out: files of conflicting slices; None where nobody looked for them.
        rows: the figures.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        time: when, ISO 8601 in UTC.
    """

    models: tuple[RowDescription, ...]
    part: Part
    sha256: str
    left_out: tuple[str, ...] | None
    rows: tuple[RowFigures, ...]
    resamples: int
    seed: int
    time: str

    def as_json(self, command: str) -> dict[str, Any]:
        """Plain values; ``command`` reproduces them."""
        part = self.part
        return {
            "format": 1,
            "models": [asdict(model) for model in self.models],
            "data": {
                "name": part.data,
                "split": part.split,
                "part": part.name,
                "slices": len(part.records),
                "covid": int(part.label.sum()),
                "patients": len(np.unique(part.patient)),
                "unlabelled": part.unlabelled,
                "fingerprint": self.sha256,
                "left_out": None if self.left_out is None else list(self.left_out),
            },
            "threshold": THRESHOLD,
            "interval": {
                "level": LEVEL,
                "method": "percentile bootstrap over patients",
                "resamples": self.resamples,
                "seed": self.seed,
            },
            "rows": [asdict(row) for row in self.rows],
            "time": self.time,
            "versions": versions(),
            "command": command,
        }


@dataclass(frozen=True)
class _Stage:
    """The part, prepared once for all networks; ``kept`` says which slices have no conflicting twin."""

    part: Part
    hashes: tuple[str, ...]
    sha256: str
    kept: NDArray[np.bool_]
    now: str


def measure_robustness(
    job: RobustnessJob, output: Path, tell: Callable[[str], None] = lambda step: None
) -> Robustness:
    """Judge a part under every condition; each run's record counts it as one look.

    Args:
        job: what on what.
        output: folder that will get the report, for the record.
        tell: told of each step, in words.

    Raises:
        RunError: a run is unfinished, its record is damaged, or its network gives no number.
        DataError: the part is empty, differs between runs, or the audit is of other data.
        ImageError: a slice of the part cannot be read.
    """
    stage = _prepare(job)
    conditioned = ConditionedPart(stage.part, stage.kept, job.resamples, job.seed)
    rows = []
    for row in job.rows:
        tell(f"judging: {row.name}")
        probabilities = [_judge(run, stage.part, job.qualities) for run in row.runs]
        looks = [record_look(run, stage.part, stage.sha256, stage.now, output) for run in row.runs]
        rows.append(
            RowFigures(
                row.name,
                tuple(looks),
                tuple(dict.fromkeys(_warnings(job.manifest, row, stage, looks))),
                conditioned.figures(job.conditions(), probabilities),
            )
        )
    left_out = None
    if job.conflicts is not None:
        left_out = tuple(stage.part.file(stage.part.records[index]) for index in np.flatnonzero(~stage.kept))
    return Robustness(
        tuple(row.description for row in job.rows),
        stage.part,
        stage.sha256,
        left_out,
        tuple(rows),
        job.resamples,
        job.seed,
        stage.now,
    )


def _prepare(job: RobustnessJob) -> _Stage:
    """Check everything that can be checked before a network is asked."""
    runs = [run for row in job.rows for run in row.runs]
    for run in runs:
        require_finished(run, allow_unfinished=job.allow_unfinished)
    part, *others = (select_part(job.manifest, job.split, job.part, run.seed) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other.records != part.records:
            raise DataError(
                f"{run.path}: of seed {run.seed}, for which the split {job.split} has another {job.part} "
                f"part than for {runs[0].path}; only the same slices can be compared"
            )
    kept = np.ones(len(part.records), np.bool_)
    if job.conflicts is not None:
        kept[list(conflicting(job.conflicts, part, job.manifest))] = False
    if not kept.any():
        raise DataError(f"{part.title}: every slice has a copy of the opposite label")
    hashes = tuple(content_hash(record) for record in part.records)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return _Stage(part, hashes, fingerprint(part, hashes), kept, now)


def _judge(run: TrainedRun, part: Part, qualities: Sequence[int]) -> Probabilities:
    said: dict[int | None, NDArray[np.float64]] = {None: predict_part(run, part)[1]}
    for quality in qualities:
        said[quality] = predict_part(run, part, alter=compressed(quality))[1]
    return said


def _warnings(manifest: Manifest, row: ModelRow, stage: _Stage, looks: Sequence[int]) -> list[str]:
    told = []
    for run, count in zip(row.runs, looks, strict=True):
        told += look_warnings(run, stage.part, count)
        told += part_warnings(run, manifest, stage.part, stage.hashes)
    return told
