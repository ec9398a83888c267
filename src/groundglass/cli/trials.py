"""``groundglass trials``: keep the log of what was tried on validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.train import RecipeName


def trials(
    output: Annotated[Path, typer.Option("--output", help="Folder of the log, one JSON per trial.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs to add; none: only make the table.")] = None,
    recipe: RecipeName = "mask-efficientnet",
    readme: Annotated[
        Path | None, typer.Option("--readme", help="Markdown file whose table of trials is replaced.")
    ] = None,
) -> None:
    """Record trainings judged on validation, and tabulate them by what they change in the recipe."""
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415 - slow to import
    from groundglass.evaluation.trials import BEGIN, END, record_trial, trials_table  # noqa: PLC0415
    from groundglass.training.recipe import load_recipe, parse_recipe  # noqa: PLC0415
    from groundglass.training.run import Run  # noqa: PLC0415

    for run in runs or ():
        typer.echo(f"{record_trial(Run.open(run), output)}: written")
    default = load_recipe(recipe).model_dump(mode="json")
    table = trials_table(output, default, lambda old: parse_recipe(old, "of a trial").model_dump(mode="json"))
    if readme is not None:
        update_readme(readme, table, BEGIN, END)
    typer.echo(table)
