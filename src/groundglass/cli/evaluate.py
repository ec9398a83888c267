"""``groundglass evaluate``: judge a run on a part of a data set.

Trained networks as a command line names them: a run, a bundle, or a folder of runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from groundglass.cli.options import Data

if TYPE_CHECKING:
    from groundglass.evaluation.part import TrainedRun


def open_run(path: Path) -> TrainedRun:
    """A bundle, which needs no torch, or else a run.

    Raises:
        RunError, BundleError: it is neither, or damaged.
    """
    if path.suffix.lower() == ".zip" or (path / "bundle.json").is_file():
        from groundglass.evaluation.evaluate import BundledRun
        from groundglass.inference.bundle import Bundle

        return BundledRun(Bundle.open(path))
    from groundglass.training.run import Run

    return Run.open(path)


def chosen_part(split: str | None, part: str | None, trained_on: str) -> tuple[str | None, str]:
    """Split and part that are meant where one of them, or both, were not said.

    Args:
        split: as given, or None.
        part: as given, or None.
        trained_on: the split of the run that is judged.
    """
    if part is None:
        return split, "all" if split is None else "test"
    return (trained_on if split is None and part != "all" else split), part


Part = Annotated[
    str | None,
    typer.Option("--part", help="train, val, test, or all for every slice. Test with --split, else all."),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="official, random, patients:FOLD/FOLDS, official-cv:FOLD/FOLDS, "
        "official-source-cv:FOLD/FOLDS or leave-source-out:NAME. "
        "With --part alone: the split the run was trained on.",
    ),
]
Resamples = Annotated[
    int, typer.Option("--bootstrap", min=1, metavar="N", help="Resamples of patients for the intervals.")
]
BootstrapSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a bundle (folder or zip).")],
    *,
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", help="Folder for report.html, metrics.json, predictions.csv.")
    ],
    split: Split = None,
    part: Part = None,
    resamples: Resamples = 2000,
    seed: BootstrapSeed = 0,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Evaluate a run whose training has not ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of a table.")] = False,
) -> None:
    """Measure a run or bundle on a part of a data set, with intervals, and write a report."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from groundglass.data.load import load_dataset
    from groundglass.evaluation.evaluate import evaluate as evaluate_run
    from groundglass.evaluation.report import (
        distance_tables,
        measures_table,
    )
    from groundglass.evaluation.result import metrics_document

    opened, manifest = open_run(run), load_dataset(data)
    split, part = chosen_part(split, part, opened.split_spec)
    with Progress(console=Console(stderr=True), transient=True) as display:
        task = display.add_task("Evaluating", total=None)
        evaluation = evaluate_run(
            opened,
            manifest,
            split,
            part,
            output,
            data=data,
            resamples=resamples,
            seed=seed,
            allow_unfinished=allow_unfinished,
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    for warning in evaluation.warnings:
        Console(stderr=True, soft_wrap=True).print(f"[bold yellow]warning:[/] {escape(warning)}")
    if as_json:
        typer.echo(json.dumps(metrics_document(opened, evaluation), indent=2, ensure_ascii=False))
        return
    Console().print(measures_table(evaluation))
    if evaluation.distance is not None:
        Console().print(*distance_tables(evaluation.distance), sep="\n")
    typer.echo(f"Report: {output / 'report.html'}")
