"""``groundglass paper``: the paper's experiments, trained, evaluated, tested and rendered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from groundglass.cli.options import (
    Accelerator,
    Cache,
    LesionFree,
    Overrides,
    Quiet,
    RecipeName,
    Split,
    Threads,
)
from groundglass.errors import GroundglassError, RecipeError, RunError

if TYPE_CHECKING:
    from groundglass.experiments.plan import Task

app = typer.Typer(
    name="paper", help="The paper's experiments: networks, parts, weights, seeds.", no_args_is_help=True
)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="COVID-CT, a folder with COVID/ and NonCOVID/, or a manifest CSV."),
]
Runs = Annotated[
    Path | None, typer.Option("--runs", help="Folder of the runs.", show_default="runs/EXPERIMENT")
]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder of the results.", show_default="results/EXPERIMENT")
]
Protocols = Annotated[str, typer.Option("--protocols", help="Ways to split, comma-separated.")]
Networks = Annotated[
    str | None,
    typer.Option("--networks", help="Comma-separated.", show_default="the paper's; see docs/experiments.md"),
]
Weights = Annotated[str, typer.Option("--weights", help="Kinds of weights, comma-separated.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Of the trainings, such as 0-4, or 0,3,7.")]
Only = Annotated[
    str | None,
    typer.Option("--only", help="Rows, PROTOCOL/ROW or runs, comma-separated; * stands for anything."),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Of every training.", show_default="the recipe's")
]
Size = Annotated[
    int | None, typer.Option("--size", min=32, help="Of cropped slices.", show_default="the recipe's")
]
C2L = Annotated[
    list[str] | None,
    typer.Option("--c2l", metavar="NETWORK=FILE", help="C2L weights, from `groundglass pretrain`."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", help="Row that all others are tested against.", show_default="Mask-EfficientNet's"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the runs, and which are done.")]
RenderOnly = Annotated[bool, typer.Option("--render-only", help="Only render the results that there are.")]


@app.command()
def table1(
    data: Data = None,
    runs: Runs = None,
    output: Output = None,
    protocols: Protocols = "paper,official,patients",
    networks: Networks = None,
    weights: Weights = "none,imagenet,c2l",
    seeds: Seeds = "0-2",
    only: Only = None,
    epochs: Epochs = None,
    size: Size = None,
    overrides: Overrides = None,
    lesion_free: LesionFree = None,
    c2l: C2L = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of protocol `patients`.")] = 5,
    reference: Reference = None,
    accelerator: Accelerator = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
) -> None:
    """The paper's Table I: its networks by one recipe on the same slices, with paired statistics."""
    from groundglass.experiments.tables import render_rows

    def tasks() -> list[Task]:
        from groundglass.experiments.plan import table1_tasks

        names, kinds = _words(networks) if networks else None, _words(weights)
        settings, files = _settings(epochs, size, overrides), _files(c2l)
        return table1_tasks(
            _words(protocols), names, kinds, parse_seeds(seeds), settings, folds=folds, files=files
        )

    where = _Where("table1", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _experiment(where, tasks, partial(render_rows, reference=reference), only, dry_run, render_only)


@app.command()
def ablation(
    data: Data = None,
    runs: Runs = None,
    output: Output = None,
    recipe: RecipeName = "mask-efficientnet",
    protocols: Protocols = "official,left-out",
    left_out: Annotated[
        str | None,
        typer.Option("--left-out", help="Sources to train without: NAME[+NAME...].", show_default="by size"),
    ] = None,
    seeds: Seeds = "0-2",
    only: Only = None,
    epochs: Epochs = None,
    size: Size = None,
    overrides: Overrides = None,
    lesion_free: LesionFree = None,
    c2l: C2L = None,
    accelerator: Accelerator = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
) -> None:
    """What each part of the default recipe is worth: one change at a time, tested against the default."""
    from groundglass.experiments.tables import render_rows

    where = _Where("ablation", data, runs, output, lesion_free, accelerator, threads, cache, quiet)

    def tasks() -> list[Task]:
        from groundglass.data.load import load_dataset
        from groundglass.experiments.plan import ablation_tasks
        from groundglass.training.recipe import load_recipe

        chosen, manifest = (
            load_recipe(recipe, _settings(epochs, size, overrides)),
            load_dataset(where.data_set),
        )
        return ablation_tasks(
            chosen,
            manifest,
            parse_seeds(seeds),
            protocols=_words(protocols),
            left_out=left_out,
            files=_files(c2l),
        )

    _experiment(where, tasks, render_rows, only, dry_run, render_only)


@app.command()
def convergence(
    data: Data = None,
    runs: Runs = None,
    output: Output = None,
    networks: Networks = None,
    weights: Weights = "none,imagenet,c2l",
    split: Split = "official",
    seeds: Seeds = "0-2",
    only: Only = None,
    epochs: Epochs = None,
    size: Size = None,
    overrides: Overrides = None,
    lesion_free: LesionFree = None,
    c2l: C2L = None,
    accelerator: Accelerator = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
) -> None:
    """How fast networks learn from no weights, ImageNet's and C2L's: validation loss and AUC over epochs."""
    from groundglass.experiments.tables import render_convergence

    def tasks() -> list[Task]:
        from groundglass.experiments.plan import LEARNERS, convergence_tasks

        names, kinds = _words(networks) if networks else LEARNERS, _words(weights)
        settings, files = _settings(epochs, size, overrides), _files(c2l)
        return convergence_tasks(names, kinds, parse_seeds(seeds), settings, split=split, files=files)

    where = _Where("convergence", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _experiment(where, tasks, render_convergence, only, dry_run, render_only)


@app.command("seeds")
def over_seeds(
    data: Data = None,
    runs: Runs = None,
    output: Output = None,
    recipe: RecipeName = "mask-efficientnet",
    split: Split = "official",
    seeds: Seeds = "0-4",
    parts: Annotated[str, typer.Option("--parts", help="Parts evaluated, comma-separated.")] = "val,test",
    overrides: Overrides = None,
    lesion_free: LesionFree = None,
    accelerator: Accelerator = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
) -> None:
    """One recipe with several seeds: mean and standard deviation of every measure."""
    from groundglass.experiments.tables import render_seeds

    def tasks() -> list[Task]:
        from groundglass.experiments.plan import seeds_tasks
        from groundglass.training.recipe import load_recipe

        return seeds_tasks(load_recipe(recipe, overrides or ()), split, parse_seeds(seeds), _words(parts))

    where = _Where("seeds", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _experiment(where, tasks, render_seeds, None, dry_run, render_only)


@dataclass(frozen=True)
class _Where:
    """Where an experiment reads and writes, and on what, as the options name it."""

    experiment: str
    data: Path | None
    runs: Path | None
    output: Path | None
    lesion_free: Path | None
    accelerator: str
    threads: int
    cache: Path | None
    quiet: bool

    @property
    def results(self) -> Path:
        return self.output or Path("results", self.experiment)

    @property
    def data_set(self) -> Path:
        if self.data is None:
            raise GroundglassError("name the data set with --data; without it only --render-only is possible")
        return self.data


def _experiment(
    where: _Where,
    tasks: Callable[[], list[Task]],
    render: Callable[[Path], str],
    only: str | None,
    dry_run: bool,
    render_only: bool,
) -> None:
    """Train and evaluate what has no result yet, and render what there is; or only one of both."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if render_only:
        console.print(render(where.results))
        return
    from groundglass.experiments.plan import chosen
    from groundglass.experiments.runner import ExperimentPaths, run_all

    runs = where.runs or Path("runs", where.experiment)
    paths = ExperimentPaths(
        where.data_set,
        runs,
        where.results,
        where.lesion_free,
        where.threads,
        where.accelerator,
        where.cache,
        progress=not where.quiet,
    )
    listed = chosen(tasks(), _words(only) if only else ())
    if dry_run:
        for task in listed:
            console.print(f"{task.name}: {'done' if paths.result(task).exists() else 'to do'}")
        return
    failed = run_all(listed, paths, console.print)
    if not failed or any(where.results.glob("*/*-seed-*.json")):
        console.print(render(where.results))
    if failed:
        raise RunError(
            f"{len(failed)} of {len(listed)} runs failed; the others are done: {', '.join(failed)}"
        )


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


def _settings(epochs: int | None, size: int | None, overrides: Sequence[str] | None) -> list[str]:
    """Overrides of every recipe; those that have an option of their own come last."""
    own = {"training.epochs": epochs, "preprocessing.size": size}
    return [*(overrides or ()), *(f"{key}={value}" for key, value in own.items() if value is not None)]


def _words(text: str) -> list[str]:
    """``a,b`` as a list, each word once."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise RecipeError(f"{text!r}: expected words with commas between them")
    return words


def _files(given: Sequence[str] | None) -> Mapping[str, Path]:
    """``NETWORK=FILE`` as a mapping."""
    from groundglass.models.catalogue import find

    files = {}
    for each in given or ():
        network, equals, path = each.partition("=")
        if not equals or not path:
            raise RecipeError(
                f"--c2l {each}: expected NETWORK=FILE, such as resnet-18=runs/c2l/backbone.safetensors"
            )
        if not Path(path).is_file():
            raise RecipeError(f"--c2l {each}: there is no file {path}")
        files[find(network).name] = Path(path)
    return files
