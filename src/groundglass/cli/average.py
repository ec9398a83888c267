"""``groundglass average``: one run whose weights are the mean of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.train import Cache, Data, LesionFree, Threads


def average(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of one recipe, split and start.")],
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Folder of the new run.")],
    lesion_free: LesionFree = None,
    threads: Threads = 0,
    cache: Cache = None,
) -> None:
    """Average the weights of runs that differ in their seed, and judge the result on the validation part."""
    from groundglass.training.average import Average, average  # noqa: PLC0415 - torch is slow to import
    from groundglass.training.run import Run  # noqa: PLC0415

    opened = [Run.open(run) for run in runs]
    made = average(Average(opened, data, output, lesion_free, threads, cache))
    judged = made.history()[-1]
    each = ", ".join(f"{run.history()[-1]['val_auc']:.3f}" for run in opened)
    typer.echo(
        f"{made.path}: validation AUC {judged['val_auc']:.3f}, accuracy {judged['val_accuracy']:.3f}; "
        f"AUC of each run {each}"
    )
