"""``groundglass distance``: what the distance from the training data says of data that are known."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.evaluate import Resamples
from groundglass.cli.opening import BundleArgument, Int8, open_bundle
from groundglass.cli.trust import Docs, LesionFree, Lungs


def distance(
    bundle: BundleArgument = None,
    *,
    data: Annotated[
        Path, typer.Option("--data", help="The data set the bundle was trained on: folder or manifest CSV.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for distance.json and distance.md.")],
    lesion_free: LesionFree = None,
    lungs: Lungs = None,
    int8: Int8 = None,
    phantoms: Annotated[int, typer.Option("--phantoms", min=1, help="Of each severity.")] = 60,
    halves: Annotated[
        int, typer.Option("--halves", min=1, help="How often the validation part is parted in two.")
    ] = 100,
    resamples: Resamples = 2000,
    docs: Docs = None,
) -> None:
    """Measure what the distance from a bundle's training data says of data alike, altered, from elsewhere."""
    from rich.console import Console  # noqa: PLC0415

    from groundglass.evaluation.distance_study import StudyJob, measure_study  # noqa: PLC0415 - scikit-learn is slow
    from groundglass.evaluation.distance_study_tables import BEGIN, END, MARKDOWN, write_study  # noqa: PLC0415
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415

    opened = open_bundle(bundle, int8)
    training = opened.info.training
    split, seed = str(training.get("split") or "official"), int(training.get("seed") or 0)
    job = StudyJob(opened, data, split, seed, lesion_free, tuple(lungs or ()), phantoms, halves, resamples)
    console = Console(stderr=True)
    study = measure_study(job, lambda step: console.print(step, markup=False, highlight=False))
    write_study(study, output, shlex.join(["groundglass", *sys.argv[1:]]))
    tables = (output / MARKDOWN).read_text(encoding="utf-8")
    if docs is not None:
        update_readme(docs, tables, BEGIN, END)
    typer.echo(tables)
