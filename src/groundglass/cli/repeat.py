"""``groundglass repeat``: one recipe over several seeds, trained, judged and summed up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from groundglass.cli.train import Cache, Data, LesionFree, Overrides, Quiet, RecipeName, Threads
from groundglass.errors import RecipeError


def repeat(
    data: Data,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the runs, one per seed; large.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the results: JSON and a table.")],
    recipe: RecipeName = "mask-efficientnet",
    split: Annotated[str, typer.Option("--split", help="As for `groundglass train`.")] = "official",
    seeds: Annotated[str, typer.Option("--seeds", help="Such as 0-4, or 0,3,7.")] = "0-4",
    parts: Annotated[str, typer.Option("--parts", help="Parts judged, comma-separated.")] = "val,test",
    lesion_free: LesionFree = None,
    overrides: Overrides = None,
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="Markdown file whose results table is replaced.")
    ] = None,
) -> None:
    """Train and judge a recipe over several seeds; interrupted and started again, it goes on where it was."""
    from groundglass.atomic import write_json  # noqa: PLC0415 - torch is slow to import
    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.evaluation.evaluate import evaluate  # noqa: PLC0415
    from groundglass.evaluation.repeat import (  # noqa: PLC0415
        seed_document,
        summary_table,
        update_readme,
        write_summary,
    )
    from groundglass.training.job import Job  # noqa: PLC0415
    from groundglass.training.recipe import load_recipe  # noqa: PLC0415
    from groundglass.training.train import trained  # noqa: PLC0415

    console = Console()
    chosen = load_recipe(recipe, overrides or ())
    manifest = load_dataset(data)
    for seed in parse_seeds(seeds):
        folder, document = runs / f"seed-{seed}", output / f"seed-{seed}.json"
        if document.exists():
            console.print(f"{document}: is there already")
            continue
        job = Job(
            chosen,
            data,
            split,
            seed,
            folder,
            lesion_free,
            resume=True,
            threads=threads,
            cache=cache,
            progress=not quiet,
        )
        run = trained(job)
        judged = {part: folder / f"evaluation-{part}" for part in parts.split(",")}
        for part, place in judged.items():
            evaluate(run, manifest, split, part, place, data=data)
        write_json(document, seed_document(run, judged))
        console.print(f"{document}: written")
    table = summary_table(write_summary(output))
    if readme is not None:
        update_readme(readme, table)
    console.print(table, markup=False)


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,3,7`` as numbers.

    Raises:
        RecipeError: for anything else.
    """
    span = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    if span and int(span[1]) <= int(span[2]):
        return list(range(int(span[1]), int(span[2]) + 1))
    if re.fullmatch(r"\d+(,\d+)*", text.strip()):
        return [int(seed) for seed in text.split(",")]
    raise RecipeError(f"--seeds {text}: expected a range such as 0-4 or a list such as 0,3,7")
