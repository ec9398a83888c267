"""What the distance from the training data says of data known to be alike, altered, or from elsewhere.

Slices of the validation part, patients kept apart, show how often data alike are called so; its altered
slices, what the distance notices, and whether it notices what costs the model its figures. Both may be looked
at when thresholds are set. Everything else, the test part above all, is measured once they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import PARTS, read_pixels
from groundglass.errors import BundleError, DataError
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.distance import Distance
from groundglass.evaluation.distance_document import distance_document
from groundglass.evaluation.distance_groups import Group, Slices, judge, other_groups
from groundglass.evaluation.distance_measure import Judged, measure_distance
from groundglass.evaluation.part import Part, select_part
from groundglass.evaluation.placement import Placement
from groundglass.evaluation.result import versions
from groundglass.inference.bundle import Bundle
from groundglass.inference.reference import Embedded, Reference, describe_slices, embed

_STREAM = 0xD157


@dataclass(frozen=True)
class StudyJob:
    """What is to be measured on what.

    Attributes:
        bundle: verified.
        data: the labelled data set, of which the bundle learned one part.
        split: its specification.
        seed: of the split and of everything random.
        lesion_free: folder of slices without the disease, or None.
        lungs: further folders of axial chest slices.
        phantoms: of each severity.
        halves: how often the validation part's patients are parted in two.
        resamples: of the bootstrap over patients.
    """

    bundle: Bundle
    data: Path
    split: str
    seed: int = 0
    lesion_free: Path | None = None
    lungs: tuple[Path, ...] = ()
    phantoms: int = 60
    halves: int = 100
    resamples: int = 2000


@dataclass(frozen=True)
class Halves:
    """Half of the validation part's patients placed by the other half, again and again.

    Attributes:
        times: how often.
        outside: shares of slices outside: their mean, and 5 %, 50 % and 95 % quantiles.
        told_apart: AUCs with which the halves were told apart, likewise; empty where nobody could say.
        verdicts: how often each verdict was given.
    """

    times: int
    outside: dict[str, float]
    told_apart: dict[str, float]
    verdicts: dict[str, int]


@dataclass(frozen=True)
class Study:
    """Everything measured.

    Attributes:
        bundle: its id.
        data: name of the data set.
        split: its specification.
        seed: of everything random.
        versions: of what measured.
        val: the validation part as it is; its distance is that of the slices that calibrate it.
        halves: of the validation part.
        groups: all others.
    """

    bundle: str
    data: str
    split: str
    seed: int
    versions: dict[str, str]
    val: Group
    halves: Halves
    groups: tuple[Group, ...]

    def as_json(self, command: str) -> dict[str, Any]:
        """Plain values; ``command`` reproduces them."""
        return {
            "format": 1,
            "bundle": self.bundle,
            "data": self.data,
            "split": self.split,
            "seed": self.seed,
            "versions": self.versions,
            "val": {"accuracy": self.val.accuracy, "auc": self.val.auc},
            "halves_of_val": asdict(self.halves),
            "groups": [
                {
                    "name": group.name,
                    "kind": group.kind,
                    "accuracy": group.accuracy,
                    "auc": group.auc,
                    "distance": distance_document(group.distance),
                }
                for group in self.groups
            ],
            "command": command,
        }


def measure_study(job: StudyJob, tell: Callable[[str], None] = lambda step: None) -> Study:
    """Measure everything.

    Args:
        job: what on what.
        tell: told of each step, in words.

    Raises:
        DataError: a data set, part or folder is missing or empty.
        BundleError: the bundle carries no reference.
        ImageError: a slice of the data set cannot be read.
    """
    if job.bundle.reference is None:
        raise BundleError(
            f"{job.bundle.path}: knows nothing of its training data; `groundglass reference` mends that"
        )
    manifest, run = load_dataset(job.data), BundledRun(job.bundle)
    parts = {name: select_part(manifest, job.split, name, job.seed) for name in PARTS}
    tell("validation part")
    val = judge(run, Slices.of("validation part", "val", parts["val"]), job.resamples, job.seed)
    halves = _halves(job, val, parts)
    groups = []
    for slices in other_groups(parts, job.lesion_free, job.lungs, job.phantoms, job.seed):
        tell(slices.name)
        groups.append(judge(run, slices, job.resamples, job.seed))
    return Study(
        job.bundle.id,
        manifest.name,
        job.split,
        job.seed,
        versions(("numpy",)),
        val,
        halves,
        tuple(groups),
    )


def _halves(job: StudyJob, val: Group, parts: dict[str, Part]) -> Halves:
    train, held_out = (_embedded(job.bundle, parts[name]) for name in ("train", "val"))
    patients = np.unique(held_out.group)
    rng = np.random.default_rng([_STREAM, job.seed])
    distances = []
    for _ in range(job.halves):
        chosen = np.isin(held_out.group, rng.permutation(patients)[: len(patients) // 2])
        reference = Reference.fit(train, held_out.take(~chosen))
        if reference is None:
            raise DataError(f"{parts['val'].title}: half of it is too small to place the other half by")
        distances.append(_distance(reference, held_out.take(chosen), val.reason[chosen]))
    placed = [distance.placed for distance in distances if distance.placed is not None]
    told = [each.told_apart.auc for each in placed if each.told_apart.auc is not None]
    verdicts = Counter(distance.verdict for distance in distances)
    return Halves(
        job.halves,
        _summary([each.outside.value for each in placed]),
        _summary(told) if told else {},
        dict(verdicts.most_common()),
    )


def _distance(reference: Reference, slices: Embedded, reason: NDArray[np.object_]) -> Distance:
    places = reference.place(slices.embedding, slices.grey)
    placement = Placement(tuple(reason), reference, places)
    nothing = np.zeros(0)
    return measure_distance(Judged(nothing.astype(np.int8), nothing, slices.group, placement), resamples=1)


def _summary(values: Sequence[float]) -> dict[str, float]:
    quantiles = np.quantile(values, (0.05, 0.5, 0.95))
    named = dict(zip(("low", "median", "high"), map(float, quantiles), strict=True))
    return {"mean": float(np.mean(values)), **named}


def _embedded(bundle: Bundle, part: Part) -> Embedded:
    described = describe_slices(
        bundle.framing, map(read_pixels, part.records), [record.patient_id for record in part.records]
    )
    return embed(bundle.engine(), bundle.framing, described)
