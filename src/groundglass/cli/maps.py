"""``groundglass maps``: judge activation maps against painted lesions."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.evaluate import Resamples
from groundglass.cli.opening import Models, open_rows
from groundglass.cli.train import Seed
from groundglass.cli.trust import Docs


def maps(
    models: Models = None,
    *,
    slices: Annotated[
        list[Path] | None,
        typer.Option(
            "--slices",
            help="Folder or manifest of slices without the disease, to paint lesions into. Repeatable.",
        ),
    ] = None,
    phantoms: Annotated[
        int, typer.Option("--phantoms", min=0, help="Invented patients that carry lesions of their own.")
    ] = 50,
    most: Annotated[
        int, typer.Option("--most", min=1, help="Slices of each folder, drawn at random where it holds more.")
    ] = 200,
    output: Annotated[Path, typer.Option("--output", help="Folder for maps.json and maps.md.")],
    seed: Seed = 0,
    resamples: Resamples = 2000,
    docs: Docs = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="JPEG to draw: the first model's maps on phantoms.")
    ] = None,
) -> None:
    """Judge activation maps against painted lesions: pointing, energy, and whether a lesion is noticed."""
    from rich.console import Console  # noqa: PLC0415

    from groundglass.evaluation.maps import (  # noqa: PLC0415 - scikit-learn is slow to import
        MapsJob,
        measure_maps,
        picture_markdown,
        write_picture,
    )
    from groundglass.evaluation.maps_tables import BEGIN, END, MARKDOWN, write_maps  # noqa: PLC0415
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415

    console = Console(stderr=True)
    job = MapsJob(open_rows(models or ()), tuple(slices or ()), phantoms, most, seed, resamples)
    report = measure_maps(job, lambda step: console.print(step, markup=False, highlight=False))
    write_maps(report, output, shlex.join(["groundglass", *sys.argv[1:]]))
    if picture is not None:
        write_picture(job, picture)
    tables = (output / MARKDOWN).read_text(encoding="utf-8")
    if docs is not None:
        shown = "" if picture is None else picture_markdown(job, picture, docs)
        update_readme(docs, shown + tables, BEGIN, END)
    typer.echo(tables)
