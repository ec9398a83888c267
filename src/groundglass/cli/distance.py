"""``groundglass distance``: what the distance from the training data says of data that are known."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def distance(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle; the one that comes with the installation unless given.")
    ] = None,
    *,
    data: Annotated[
        Path, typer.Option("--data", help="The data set the bundle was trained on: folder or manifest CSV.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for distance.json and distance.md.")],
    lesion_free: Annotated[
        Path | None, typer.Option("--lesion-free", help="Folder of slices without the disease.")
    ] = None,
    lungs: Annotated[
        list[Path] | None, typer.Option("--lungs", help="Further axial chest slices. Repeatable.")
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--fp32", help="Which model of the bundle; the smallest unless given."),
    ] = None,
    phantoms: Annotated[int, typer.Option("--phantoms", min=1, help="Of each severity.")] = 60,
    halves: Annotated[
        int, typer.Option("--halves", min=1, help="How often the validation part is parted in two.")
    ] = 100,
    resamples: Annotated[
        int, typer.Option("--bootstrap", min=1, metavar="N", help="Resamples of patients for the intervals.")
    ] = 2000,
    docs: Annotated[
        Path | None, typer.Option("--docs", help="Markdown file whose tables are replaced.")
    ] = None,
) -> None:
    """Measure what the distance from a bundle's training data says of data alike, altered, from elsewhere."""
    from rich.console import Console  # noqa: PLC0415

    from groundglass.evaluation.distance_study import StudyJob, measure_study  # noqa: PLC0415 - scikit-learn is slow
    from groundglass.evaluation.distance_study_tables import BEGIN, END, MARKDOWN, write_study  # noqa: PLC0415
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415
    from groundglass.inference.bundle import Bundle  # noqa: PLC0415

    opened = Bundle.open(bundle, None if int8 is None else "int8" if int8 else "fp32")
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
