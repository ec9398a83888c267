"""``groundglass evaluate``: measure a run or bundle on a part of a data set, with intervals, and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from groundglass.cli.data import stages
from groundglass.cli.options import Data, MapLabel, print_json, report
from groundglass.errors import RunError

if TYPE_CHECKING:
    from groundglass.evaluation.evaluate import TrainedRun

_DEFAULT = "default"


def _open(name: str) -> TrainedRun:
    """The installed bundle, another bundle, which needs no torch, or a run."""
    path = Path(name)
    if name == _DEFAULT or path.suffix.lower() == ".zip" or (path / "bundle.json").is_file():
        from groundglass.evaluation.bundled import BundledRun
        from groundglass.inference.bundle import Bundle

        return BundledRun(Bundle.open(name))
    if not (path / "run.json").is_file():
        raise RunError(
            f"{name}: neither a run nor a bundle; give a run's folder (with run.json), a bundle's folder (with "
            f"bundle.json), a bundle's zip, or `{_DEFAULT}` for the installed bundle"
        )
    from groundglass.training.run import Run

    return Run.open(path)


def evaluate(
    run: Annotated[str, Argument(help="Folder of a run, a bundle (folder or zip), or `default`: the installed one.")],
    *,
    data: Data,
    output: Annotated[Path, Option(help="Folder for report.html, metrics.json, predictions.csv.")],
    map_label: MapLabel = None,
    split: Annotated[
        str | None, Option(help="As for `groundglass train`. With --part alone: the split the run was trained on.")
    ] = None,
    part: Annotated[
        str | None, Option(help="train, val, test, or all for every slice. Test with --split, else all.")
    ] = None,
    resamples: Annotated[
        int, Option("--bootstrap", min=1, metavar="N", help="Resamples of patients for the intervals.")
    ] = 2000,
    seed: Annotated[int, Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print metrics.json instead of a table.")] = False,
) -> None:
    """Measure a run or bundle on a part of a data set, with intervals, and write a report."""
    from rich.console import Console

    from groundglass.data.load import load_pool
    from groundglass.evaluation.evaluate import evaluate as evaluate_run
    from groundglass.evaluation.report import tables, write_report

    opened, manifest = _open(run), load_pool(data, map_label or ())
    if part is None:
        part = "all" if split is None else "test"
    elif split is None and part != "all":
        split = opened.info["split"]
    if part != "all" and (recipe := getattr(opened, "recipe", None)):  # a bundle has none
        manifest = manifest.without(recipe.sampling.leave_out)
    with stages() as advance:
        evaluation = evaluate_run(
            opened, manifest, split, part, output, resamples=resamples, seed=seed,
            progress=lambda _, total: advance("evaluating", 1, total),
        )  # fmt: skip
    write_report(opened, evaluation, output)
    report("warning", *evaluation.document["warnings"])
    if as_json:
        print_json(evaluation.document)
    else:
        Console().print(*tables(evaluation), sep="\n")
        typer.echo(f"Report: {output / 'report.html'}")
