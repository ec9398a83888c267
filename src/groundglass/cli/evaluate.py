"""``groundglass evaluate``: judge a run on a part of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.opening import chosen_part, open_run
from groundglass.cli.train import Data

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
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.evaluation.distance_section import distance_tables  # noqa: PLC0415
    from groundglass.evaluation.evaluate import evaluate as evaluate_run  # noqa: PLC0415 - scikit-learn is slow
    from groundglass.evaluation.result import metrics_document  # noqa: PLC0415
    from groundglass.evaluation.table import measures_table  # noqa: PLC0415

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
