"""Activation maps judged against painted lesions: do they point where the lesion is, and is it noticed?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundglass.atomic import write_bytes
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record
from groundglass.errors import DataError
from groundglass.evaluation.by_patient import PatientResamples
from groundglass.evaluation.intervals import LEVEL, RESAMPLES
from groundglass.evaluation.map_answers import Answer, ask
from groundglass.evaluation.map_figures import Cases, Figures, MapDifference, differences, figures
from groundglass.evaluation.maps_picture import as_jpeg, maps_picture
from groundglass.evaluation.model_rows import ModelRow, RowDescription
from groundglass.evaluation.painted_slices import (
    KINDS,
    SEVERITIES,
    PaintedSlice,
    paint_records,
    scan_phantoms,
)
from groundglass.evaluation.part import content_hash
from groundglass.evaluation.protocol import TrainedRun
from groundglass.evaluation.result import versions

PHANTOMS = "phantoms"

_TOLD_EVERY = 50
_SHOWN = 3


@dataclass(frozen=True)
class MapsJob:
    """What is to be measured on what.

    Attributes:
        rows: the networks.
        slices: data sets without the disease, each a group of its own.
        phantoms: invented patients, a group as well; 0 for none.
        most: slices of a data set that are painted.
        seed: of everything random.
        resamples: of the bootstrap over patients.
    """

    rows: tuple[ModelRow, ...]
    slices: tuple[Path, ...] = ()
    phantoms: int = 50
    most: int = 200
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class ModelFigures:
    """One model on one group.

    Attributes:
        name: of the row; ``NAME, opacity`` for the second output of networks that have one.
        seen: whether the group's untouched slices were trained on: ``yes``, ``no`` or ``not known``.
        figures: on all paintings and on subsets.
    """

    name: str
    seen: str
    figures: tuple[Figures, ...]


@dataclass(frozen=True)
class GroupReport:
    """All models on one group of slices.

    Attributes:
        name: of the group.
        slices: untouched ones.
        patients: or series, whose they are.
        paintings: painted copies.
        too_small: copies left out, for hardly anything of their lesion can be seen.
        models: what came out.
        differences: between the first model and each other one.
    """

    name: str
    slices: int
    patients: int
    paintings: int
    too_small: int
    models: tuple[ModelFigures, ...]
    differences: tuple[MapDifference, ...]


@dataclass(frozen=True)
class MapsReport:
    """Everything measured.

    Attributes:
        rows: which networks they were.
        groups: what came out.
        seed: of everything random.
        resamples: of the bootstrap over patients.
    """

    rows: tuple[RowDescription, ...]
    groups: tuple[GroupReport, ...]
    seed: int
    resamples: int

    def as_json(self, command: str) -> dict[str, Any]:
        """Plain values; ``command`` reproduces them."""
        return {
            "format": 1,
            "rows": [asdict(row) for row in self.rows],
            "kinds": [kind.value for kind in KINDS],
            "severities": list(SEVERITIES),
            "seed": self.seed,
            "interval": {
                "level": LEVEL,
                "method": "percentile bootstrap over patients",
                "resamples": self.resamples,
            },
            "groups": [asdict(group) for group in self.groups],
            "versions": versions(),
            "command": command,
        }


@dataclass(frozen=True)
class _Group:
    """Slices to paint into: what they are called, the folder's name, copies of each, and themselves."""

    name: str
    folder: str | None
    copies: int
    slices: Iterator[PaintedSlice]


def measure_maps(job: MapsJob, tell: Callable[[str], None] = lambda step: None) -> MapsReport:
    """Paint, ask every network, and judge.

    Args:
        job: what on what.
        tell: told of each step, in words.

    Raises:
        DataError: there is nothing to paint into, or a slice is labelled COVID.
        ImageError: a slice cannot be read.
    """
    groups = list(_groups(job))
    if not groups:
        raise DataError("nothing to paint into: name a folder with --slices, or ask for --phantoms")
    reports = tuple(_judge(job, group, tell) for group in groups)
    return MapsReport(tuple(row.description for row in job.rows), reports, job.seed, job.resamples)


def write_picture(job: MapsJob, path: Path) -> None:
    """Write a picture of the first network's maps on a few phantoms."""
    phantoms = scan_phantoms(_SHOWN, job.seed)
    write_bytes(path, as_jpeg(maps_picture(job.rows[0].runs[0], phantoms)))


def picture_markdown(job: MapsJob, picture: Path, page: Path) -> str:
    """What a page says around that picture.

    Args:
        job: as for `write_picture`.
        picture: the file.
        page: the Markdown file that shows it.
    """
    name, place = job.rows[0].name, os.path.relpath(picture, page.parent).replace(os.sep, "/")
    return (
        f"![Phantoms and the activation maps of {name}]({place})\n\n"
        f"Phantoms and the maps of {name}, left to right: healthy; with a lesion, outlined; its map; that "
        "map less the healthy twin's. Orange speaks for COVID, blue against it.\n\n"
    )


def _groups(job: MapsJob) -> Iterator[_Group]:
    for path in job.slices:
        manifest, name = load_dataset(path), path.resolve().name
        slices = paint_records(manifest.records, job.most, job.seed)
        yield _Group(name, name, len(KINDS) * len(SEVERITIES), slices)
    if job.phantoms:
        yield _Group(PHANTOMS, None, len(SEVERITIES), scan_phantoms(job.phantoms, job.seed))


def _judge(job: MapsJob, group: _Group, tell: Callable[[str], None]) -> GroupReport:
    tell(f"painting and judging: {group.name}")
    answers: dict[str, list[list[Answer]]] = {}
    row_of: dict[str, ModelRow] = {}
    copies, twins, records = [], [], []
    for piece in group.slices:
        for row in job.rows:
            for number, run in enumerate(row.runs):
                for output, answer in ask(run, piece).items():
                    name = f"{row.name}, {output}" if output else row.name
                    row_of[name] = row
                    answers.setdefault(name, [[] for _ in row.runs])[number].append(answer)
        copies += Cases.rows(piece)
        twins.append(piece.patient)
        records += [] if piece.record is None else [piece.record]
        if len(twins) % _TOLD_EVERY == 0:
            tell(f"{group.name}: {len(twins)} slices")
    if not copies:
        raise DataError(f"{group.name}: none of its slices shows enough lung to paint a lesion into")
    cases, resamples = Cases.of(copies, twins), PatientResamples(twins, job.resamples, job.seed)
    models = [
        ModelFigures(name, _seen(row_of[name].runs, group.folder, records), figures(runs, cases, resamples))
        for name, runs in answers.items()
    ]
    return GroupReport(
        group.name,
        len(twins),
        resamples.patients,
        len(copies),
        group.copies * len(twins) - len(copies),
        tuple(models),
        tuple(differences(answers, cases, resamples)),
    )


def _seen(runs: Sequence[TrainedRun], folder: str | None, records: Sequence[Record]) -> str:
    """Whether slices were trained on, as far as a run says what it was trained on.

    A run names the content of its training slices, but of lesion-free slices only the folder's name.
    """
    if folder is None:
        return "no"
    hashes = {content_hash(record) for record in records}
    trained = [frozenset(run.info.get("training_sha256") or ()) for run in runs]
    if any(run.info.get("lesion_free") == folder for run in runs) or any(hashes & each for each in trained):
        return "yes"
    return "no" if all(trained) else "not known"
