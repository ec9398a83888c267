"""``groundglass compare``: the paper's experiments, trained, judged, tested and drawn.

``groundglass repeat``: one recipe over several seeds, trained, judged and summed up.

The runs of an experiment on a terminal: what is done, what is left, and how long it may take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundglass.cli.options import Cache, Data, LesionFree, Overrides, Quiet, RecipeName, Threads
from groundglass.errors import GroundglassError, RecipeError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from groundglass.experiments.plan import Task
    from groundglass.experiments.runner import Planned


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
    from groundglass.data.load import load_dataset
    from groundglass.evaluation.evaluate import evaluate
    from groundglass.evaluation.report import write_report
    from groundglass.experiments.results import seed_document, summary_table, update_readme, write_summary
    from groundglass.files import write_json
    from groundglass.training.recipe import load_recipe
    from groundglass.training.train import (
        Job,
        trained,
    )

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
            write_report(run, evaluate(run, manifest, split, part, place, data=data), place)
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


def print_plan(planned: Sequence[Planned], console: Console) -> None:
    """Print one line per run and the sum."""
    table = Table()
    for head in ("Run", "State", "Estimated time", "Judged by"):
        table.add_column(head, overflow="fold")
    for each in planned:
        time = "" if each.seconds == 0 else duration(each.seconds)
        table.add_row(escape(each.task.name), escape(each.state), time, each.measured_on)
    console.print(table)
    for reason in dict.fromkeys(each.reason for each in planned if each.reason):
        rows = dict.fromkeys(each.task.identity.row for each in planned if each.reason == reason)
        console.print(f"skipped: {', '.join(rows)}: {reason}")
    console.print(in_sum(planned))


def in_sum(planned: Sequence[Planned]) -> str:
    """How many runs are left and how long they may take together."""
    left = [each for each in planned if each.state not in {"done", "skipped"}]
    done = sum(each.state == "done" for each in planned)
    known = [each.seconds for each in left if each.seconds is not None]
    text = f"{len(planned)} runs, {done} done, {len(left)} to do"
    if not left:
        return f"{text}."
    if not known:
        return f"{text}; no run is finished yet to judge the time by."
    text += f", about {duration(sum(known))}"
    return f"{text} for {len(known)} of them." if len(known) < len(left) else f"{text}."


def duration(seconds: float | None) -> str:
    """``2 h 05 min``, ``12 min``, ``40 s``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


app = typer.Typer(
    name="paper",
    help="The experiments of the paper: networks, ablation, convergence, seeds.",
    no_args_is_help=True,
)

Studied = Annotated[
    Path | None,
    typer.Option("--data", help="COVID-CT, a folder with COVID/ and NonCOVID/, or a manifest CSV."),
]
Runs = Annotated[
    Path | None, typer.Option("--runs", help="Folder of the runs; large.", show_default="runs/EXPERIMENT")
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
    typer.Option(
        "--c2l", metavar="NETWORK=FILE", help="C2L weights of a network, from `groundglass pretrain`."
    ),
]
SplitSeed = Annotated[
    int, typer.Option("--split-seed", min=0, help="Of the random split of protocol `paper`.")
]
Folds = Annotated[int, typer.Option("--folds", min=2, help="Of protocol `patients`.")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Row the others are tested against.", show_default="Mask-EfficientNet"),
]
Speed = Annotated[
    bool,
    typer.Option("--speed", help="Measure the networks' speed side by side, in alternating rounds."),
]
LeftOut = Annotated[
    str | None,
    typer.Option("--left-out", help="Sources to train without: NAME[+NAME...].", show_default="by size"),
]
Split = Annotated[str, typer.Option("--split", help="As for `groundglass train`.")]
Accelerator = Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the runs and how long they may take.")]
RenderOnly = Annotated[bool, typer.Option("--render-only", help="Only render what is there already.")]
Readme = Annotated[
    Path | None, typer.Option("--readme", help="Markdown file whose text between the markers is replaced.")
]


@app.command()
def table1(
    data: Studied = None,
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
    split_seed: SplitSeed = 0,
    folds: Folds = 5,
    reference: Reference = None,
    speed: Speed = False,
    accelerator: Accelerator = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
    readme: Readme = None,
) -> None:
    """The paper's Table I: its networks under one recipe on the same slices, with paired statistics."""

    def tasks(_: Path) -> Sequence[Task]:
        from groundglass.experiments.plan import table1_tasks

        settings = _settings(epochs, size, overrides)
        kinds, names = _words(weights), _words(networks) if networks else None
        return table1_tasks(
            _words(protocols),
            names,
            kinds,
            parse_seeds(seeds),
            settings,
            split_seed=split_seed,
            folds=folds,
            files=_files(c2l),
        )

    def render(folder: Path) -> str:
        from groundglass.experiments.tables import render_table1

        if speed:
            _measure_speed(folder, accelerator, threads)
        return render_table1(folder, reference=reference, readme=readme)

    place = _Place("table1", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _compare(place, tasks, only, render, dry_run=dry_run, render_only=render_only)


@app.command()
def ablation(
    data: Studied = None,
    runs: Runs = None,
    output: Output = None,
    recipe: RecipeName = "mask-efficientnet",
    protocols: Protocols = "official,left-out",
    left_out: LeftOut = None,
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
    readme: Readme = None,
) -> None:
    """What each part of the default recipe is worth: one change at a time, tested against the default."""

    def tasks(data: Path) -> Sequence[Task]:
        from groundglass.data.load import load_dataset
        from groundglass.experiments.plan import ablation_tasks
        from groundglass.training.recipe import load_recipe

        return ablation_tasks(
            load_recipe(recipe, _settings(epochs, size, overrides)),
            load_dataset(data),
            parse_seeds(seeds),
            protocols=_words(protocols),
            left_out=left_out,
            files=_files(c2l),
        )

    def render(folder: Path) -> str:
        from groundglass.experiments.tables import render_ablation

        return render_ablation(folder, readme=readme)

    place = _Place("ablation", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _compare(place, tasks, only, render, dry_run=dry_run, render_only=render_only)


@app.command()
def convergence(
    data: Studied = None,
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
    readme: Readme = None,
) -> None:
    """How fast networks learn from no weights, ImageNet's and C2L's: validation loss and AUC over epochs."""

    def tasks(_: Path) -> Sequence[Task]:
        from groundglass.experiments import plan as experiment

        return experiment.convergence_tasks(
            _words(networks) if networks else experiment.NETWORKS,
            _words(weights),
            parse_seeds(seeds),
            _settings(epochs, size, overrides),
            split=split,
            files=_files(c2l),
        )

    def render(folder: Path) -> str:
        from groundglass.experiments.tables import render_convergence

        return render_convergence(folder, readme=readme)

    place = _Place("convergence", data, runs, output, lesion_free, accelerator, threads, cache, quiet)
    _compare(place, tasks, only, render, dry_run=dry_run, render_only=render_only)


@dataclass(frozen=True)
class _Place:
    """Where an experiment reads and writes, as the options name it."""

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
    def folder(self) -> Path:
        return self.runs or Path("runs", self.experiment)


def _compare(
    place: _Place,
    tasks: Callable[[Path], Sequence[Task]],
    only: str | None,
    render: Callable[[Path], str],
    *,
    dry_run: bool,
    render_only: bool,
) -> None:
    """Work off the tasks and render what is there; or only one of both."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if render_only:
        console.print(render(place.results))
        return
    if place.data is None:
        raise GroundglassError("name the data set with --data; without it only --render-only can be done")
    try:
        from groundglass.experiments.plan import chosen
        from groundglass.experiments.runner import ExperimentPaths, run_all
    except ModuleNotFoundError as error:
        raise GroundglassError(
            f"experiments need {error.name}, which comes with `pip install groundglass[train]`"
        ) from error
    work = ExperimentPaths(
        place.data,
        place.folder,
        place.results,
        place.lesion_free,
        place.threads,
        place.accelerator,
        place.cache,
        progress=not place.quiet,
    )
    listed = chosen(tasks(place.data), _words(only) if only else ())
    if dry_run:
        from groundglass.experiments.runner import plan

        print_plan(plan(listed, work), console)
        return
    failed = run_all(listed, work, console.print)
    if not failed or any(place.results.glob("*/*-seed-*.json")):
        console.print(render(place.results))
    if failed:
        raise RunError(
            f"{len(failed)} of {len(listed)} runs failed; the others are done: {', '.join(failed)}"
        )


def _measure_speed(folder: Path, accelerator: str, threads: int) -> None:
    """Measure the networks of the results below a folder, those of one size together."""
    from groundglass.experiments.results import SPEED, read_run_results
    from groundglass.experiments.runner import speed_side_by_side
    from groundglass.files import write_json

    networks = {each.network: int(each.cost["input_size"]) for each in read_run_results(folder)}
    measured: dict[str, dict[str, Any]] = {}
    for size in sorted(set(networks.values())):
        chosen = [network for network, own in networks.items() if own == size]
        measured |= speed_side_by_side(chosen, size, accelerator, threads)
    write_json(folder / SPEED, measured)


def _settings(epochs: int | None, size: int | None, overrides: Sequence[str] | None) -> list[str]:
    """Overrides of every recipe; those for which there is an option of its own come last."""
    settings = list(overrides or ())
    settings += [f"training.epochs={epochs}"] if epochs is not None else []
    return settings + ([f"preprocessing.size={size}"] if size is not None else [])


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


app.command("seeds")(repeat)
