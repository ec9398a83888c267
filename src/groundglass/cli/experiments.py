"""``groundglass paper``: the paper's experiments, trained, evaluated, tested and rendered."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Option

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

Protocols = Annotated[str, Option(help="Ways to split, comma-separated.")]
Networks = Annotated[str | None, Option(help="Comma-separated; see docs/experiments.md.")]
Only = Annotated[str | None, Option(help="Rows, PROTOCOL/ROW or runs, comma-separated; * stands for anything.")]
Weights = Annotated[str, Option(help="Kinds of weights or a file of C2L's, comma-separated.")]


@dataclass(frozen=True)
class _Shared(options.Training):
    """Options that every experiment has."""

    data: Annotated[list[Path] | None, Option(help="As for `groundglass train`; repeat for more.")] = None
    runs: Annotated[Path | None, Option(help="Folder of the runs; default runs/EXPERIMENT.")] = None
    output: Annotated[Path | None, Option(help="Folder of results; default results/EXPERIMENT.")] = None
    seeds: Annotated[str, Option(help="Of the trainings, such as 0-4, or 0,3,7.")] = "0-2"
    only: Only = None
    lesion_free: options.LesionFree = None
    lungs: options.Lungs = None
    dry_run: Annotated[bool, Option("--dry-run", help="Only list runs, and which are done.")] = False
    render_only: Annotated[bool, Option("--render-only", help="Only render what there is.")] = False


def _command(planned: "Callable[..., list[Task]]") -> Callable[..., None]:
    """The command of an experiment, given its trainings: it has their options and those that all have."""

    @wraps(planned)
    def command(shared: _Shared, **own: Any) -> None:
        _experiment(planned.__name__, shared, partial(planned, shared, **own))

    return app.command()(options.with_options(_Shared)(command))


@_command
def table1(
    shared: _Shared,
    protocols: Protocols = "random,official,patients",
    networks: Networks = None,
    weights: Weights = "imagenet,c2l",
) -> "list[Task]":
    """The paper's Table I: its networks by one recipe on the same slices, with paired statistics."""
    from groundglass.experiments import plan

    names, kinds = _words(networks) or None, _words(weights)
    return plan.table1_tasks(_words(protocols), names, kinds, _numbers(shared), shared.overrides or ())


@_command
def ablation(
    shared: _Shared,
    recipe: options.RecipeName = "paper",
    protocols: Protocols = "random,official,patients",
    left_out: Annotated[
        str | None, Option(help="Sources to train without: NAME[+NAME...]; default COVID-CT's largest.")
    ] = None,
) -> "list[Task]":
    """What each part of a recipe is worth: one change at a time, tested against the recipe as it is."""
    from groundglass.experiments import plan
    from groundglass.training.recipe import load_recipe

    default, sources = load_recipe(recipe, shared.overrides or ()), left_out or plan.LARGEST_SOURCES
    return plan.ablation_tasks(default, _numbers(shared), protocols=_words(protocols), left_out=sources)


@_command
def convergence(
    shared: _Shared,
    networks: Networks = None,
    weights: Weights = "none,imagenet,c2l",
    split: options.Split = "official",
) -> "list[Task]":
    """How fast networks learn from no weights, ImageNet's and C2L's: validation loss and AUC over epochs."""
    from groundglass.experiments import plan

    names = _words(networks) or plan.LEARNERS
    return plan.convergence_tasks(names, _words(weights), _numbers(shared), shared.overrides or (), split=split)


@_command
def seeds(
    shared: _Shared,
    recipe: options.RecipeName = "mask-efficientnet",
    split: options.Split = "official",
    parts: Annotated[str, Option(help="Parts evaluated, comma-separated.")] = "val,test",
) -> "list[Task]":
    """One recipe with several seeds: mean and standard deviation of every measure."""
    from groundglass.experiments import plan
    from groundglass.training.recipe import load_recipe

    return plan.seeds_tasks(load_recipe(recipe, shared.overrides or ()), split, _numbers(shared), _words(parts))


def _experiment(name: str, shared: _Shared, plan: "Callable[[], list[Task]]") -> None:
    """Train and evaluate what has no result yet, and render what there is; or only one of both."""
    from groundglass.experiments import tables

    render = {"convergence": tables.render_convergence, "seeds": tables.render_seeds}.get(name, tables.render_rows)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    output = shared.output or Path("results", name)
    if shared.render_only:
        console.print(render(output))
        return
    if not shared.data:
        raise GroundglassError("name the data set with --data; without it only --render-only is possible")
    from groundglass.experiments.plan import chosen
    from groundglass.experiments.runner import ExperimentPaths, count_left, run_all

    paths = ExperimentPaths(
        tuple(shared.data), shared.runs or Path("runs", name), output, shared.lesion_free, shared.threads,
        shared.accelerator, shared.cache, shared.lungs, not shared.quiet, tuple(shared.map_label or ()),
    )  # fmt: skip
    tasks = chosen(plan(), _words(shared.only))
    if shared.dry_run:
        for task in tasks:
            console.print(f"{task.name}: {'done' if paths.result(task).exists() else 'to do'}")
        console.print(f"{count_left(tasks, paths)} runs to be trained")
        return
    failed = run_all(tasks, paths, console.print)
    if not failed or any(output.glob("*/*-seed-*.json")):
        console.print(render(output))
    if failed:
        raise RunError(f"{len(failed)} of {len(tasks)} runs failed ({', '.join(failed)}); the others are done")


def _numbers(shared: _Shared) -> list[int]:
    """Seeds ``0-4`` or ``0,3,7`` as numbers."""
    text = shared.seeds.strip()
    if (span := re.fullmatch(r"(\d{1,9})-(\d{1,9})", text)) and int(span[1]) <= int(span[2]) < int(span[1]) + 1000:
        return list(range(int(span[1]), int(span[2]) + 1))
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        return list(dict.fromkeys(map(int, text.split(","))))
    raise RecipeError(f"--seeds {shared.seeds}: expected a range such as 0-4 or a list such as 0,3,7")


def _words(text: str | None) -> list[str]:
    """``a,b`` as a list, each word once; none where nothing was given."""
    if text is None:
        return []
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise RecipeError(f"{text!r}: expected words with commas between them")
    return words
