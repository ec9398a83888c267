"""``groundglass paper``: the paper's experiments, trained, evaluated, tested and rendered."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from groundglass.cli import options
from groundglass.errors import GroundglassError, RecipeError, RunError

if TYPE_CHECKING:
    from groundglass.experiments.plan import Task

app = typer.Typer(
    name="paper",
    help="The paper's experiments: networks, parts, weights, seeds.",
    no_args_is_help=True,
    add_completion=False,
)

Protocols = Annotated[str, typer.Option(help="Ways to split, comma-separated.")]
Networks = Annotated[str | None, typer.Option(help="Comma-separated; see docs/experiments.md.")]
Weights = Annotated[str, typer.Option(help="Kinds of weights or a file of C2L's, comma-separated.")]


@dataclass(frozen=True)
class _Shared:
    """Options that every experiment has."""

    data: Annotated[list[Path] | None, typer.Option(help="As for `groundglass train`; repeat for more.")] = None
    map_label: options.MapLabel = None
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs; default runs/EXPERIMENT.")] = None
    output: Annotated[Path | None, typer.Option(help="Folder of results; default results/EXPERIMENT.")] = None
    seeds: Annotated[str, typer.Option(help="Of the trainings, such as 0-4, or 0,3,7.")] = "0-2"
    only: Annotated[
        str | None, typer.Option(help="Rows, PROTOCOL/ROW or runs, comma-separated; * stands for anything.")
    ] = None
    overrides: options.Overrides = None
    lesion_free: options.LesionFree = None
    accelerator: options.Accelerator = "auto"
    threads: options.Threads = 0
    cache: options.Cache = None
    lungs: options.Lungs = None
    quiet: options.Quiet = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list runs, and about how long they take.")] = False
    render_only: Annotated[bool, typer.Option("--render-only", help="Only render what there is.")] = False


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command with a function's own options and, after these, those that every experiment has."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    shared = inspect.signature(_Shared, eval_str=True).parameters

    @wraps(function)
    def command(**given: Any) -> None:
        function(_Shared(**{name: given.pop(name) for name in shared}), **given)

    # Typer reads the options from here.
    keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *shared.values())]
    command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return app.command()(command)


@_command
def table1(
    shared: _Shared,
    protocols: Protocols = "random,official,patients",
    networks: Networks = None,
    weights: Weights = "imagenet,c2l",
) -> None:
    """The paper's Table I: its networks by one recipe on the same slices, with paired statistics."""
    from groundglass.experiments import plan, tables

    def tasks() -> list[Task]:
        names, kinds, numbers = _words(networks) if networks else None, _words(weights), _numbers(shared)
        return plan.table1_tasks(_words(protocols), names, kinds, numbers, shared.overrides or ())

    _experiment("table1", shared, tasks, tables.render_rows)


@_command
def ablation(
    shared: _Shared,
    recipe: options.RecipeName = "paper",
    protocols: Protocols = "random,official,patients",
    left_out: Annotated[
        str | None, typer.Option(help="Sources to train without: NAME[+NAME...]; default COVID-CT's largest.")
    ] = None,
) -> None:
    """What each part of a recipe is worth: one change at a time, tested against the recipe as it is."""
    from groundglass.experiments import plan, tables
    from groundglass.training.recipe import load_recipe

    def tasks() -> list[Task]:
        default, sources = load_recipe(recipe, shared.overrides or ()), left_out or plan.LARGEST_SOURCES
        names, numbers = _words(protocols), _numbers(shared)
        return plan.ablation_tasks(default, numbers, protocols=names, left_out=sources)

    _experiment("ablation", shared, tasks, tables.render_rows)


@_command
def convergence(
    shared: _Shared,
    networks: Networks = None,
    weights: Weights = "none,imagenet,c2l",
    split: options.Split = "official",
) -> None:
    """How fast networks learn from no weights, ImageNet's and C2L's: validation loss and AUC over epochs."""
    from groundglass.experiments import plan, tables

    def tasks() -> list[Task]:
        names, numbers = _words(networks) if networks else plan.LEARNERS, _numbers(shared)
        return plan.convergence_tasks(names, _words(weights), numbers, shared.overrides or (), split=split)

    _experiment("convergence", shared, tasks, tables.render_convergence)


@_command
def seeds(
    shared: _Shared,
    recipe: options.RecipeName = "mask-efficientnet",
    split: options.Split = "official",
    parts: Annotated[str, typer.Option(help="Parts evaluated, comma-separated.")] = "val,test",
) -> None:
    """One recipe with several seeds: mean and standard deviation of every measure."""
    from groundglass.experiments import plan, tables
    from groundglass.training.recipe import load_recipe

    def tasks() -> list[Task]:
        default = load_recipe(recipe, shared.overrides or ())
        return plan.seeds_tasks(default, split, _numbers(shared), _words(parts))

    _experiment("seeds", shared, tasks, tables.render_seeds)


def _experiment(name: str, shared: _Shared, plan: Callable[[], list[Task]], render: Callable[[Path], str]) -> None:
    """Train and evaluate what has no result yet, and render what there is; or only one of both."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    output = shared.output or Path("results", name)
    if shared.render_only:
        console.print(render(output))
        return
    if not shared.data:
        raise GroundglassError("name the data set with --data; without it only --render-only is possible")
    from groundglass.experiments.plan import chosen
    from groundglass.experiments.runner import ExperimentPaths, estimate, run_all

    paths = ExperimentPaths(
        tuple(shared.data), shared.runs or Path("runs", name), output, shared.lesion_free, shared.threads,
        shared.accelerator, shared.cache, shared.lungs, not shared.quiet, tuple(shared.map_label or ()),
    )  # fmt: skip
    only = _words(shared.only) if shared.only else ()
    tasks = chosen(plan(), only)
    if shared.dry_run:
        for task in tasks:
            console.print(f"{task.name}: {'done' if paths.result(task).exists() else 'to do'}")
        count, seconds = estimate(tasks, paths)
        console.print(f"{count} runs to be trained: about {options.duration(seconds)}")
        return
    failed = run_all(tasks, paths, console.print)
    if not failed or any(output.glob("*/*-seed-*.json")):
        console.print(render(output))
    if failed:
        done = f"{len(failed)} of {len(tasks)} runs failed; the others are done"
        raise RunError(f"{done}: {', '.join(failed)}")


def _numbers(shared: _Shared) -> list[int]:
    """Seeds ``0-4`` or ``0,3,7`` as numbers."""
    text = shared.seeds.strip()
    if (span := re.fullmatch(r"(\d+)-(\d+)", text)) and int(span[1]) <= int(span[2]):
        return list(range(int(span[1]), int(span[2]) + 1))
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(seed) for seed in text.split(",")]
    raise RecipeError(f"--seeds {shared.seeds}: expected a range such as 0-4 or a list such as 0,3,7")


def _words(text: str) -> list[str]:
    """``a,b`` as a list, each word once."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise RecipeError(f"{text!r}: expected words with commas between them")
    return words
