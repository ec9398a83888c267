"""``groundglass models``: every network with its size, cost and weights.

``groundglass train``: one recipe, one split, one seed, one run.

``groundglass pretrain``: a network learns from slices without labels.

``groundglass export``: a run becomes a bundle that predicts without torch.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from groundglass.cli.options import (
    AllowOverlap,
    Cache,
    Data,
    LesionFree,
    Overrides,
    Quiet,
    RecipeName,
    Seed,
    Split,
    Threads,
)
from groundglass.errors import GroundglassError
from groundglass.models.catalogue import Entry, entries, find

if TYPE_CHECKING:
    from groundglass.inference.bundle import Precision
    from groundglass.models.registry import Complexity
    from groundglass.training.train import Job


def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Folder of the run.")],
    recipe: RecipeName = "mask-efficientnet",
    split: Split = "official",
    seed: Seed = 0,
    lesion_free: LesionFree = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run was stopped.")] = False,
    allow_overlap: AllowOverlap = False,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes a machine.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    accelerator: Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")] = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit/--no-audit",
            help="First look for copies, patients and publications that parts of the split share, and warn.",
        ),
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Train a network; killed at any moment, it goes on with --resume as if nothing had happened."""
    from groundglass.training.recipe import load_recipe
    from groundglass.training.train import (
        Job,
        train,
    )

    job = Job(
        recipe=load_recipe(recipe, overrides or ()),
        data=data,
        split=split,
        seed=seed,
        output=output,
        lesion_free=lesion_free,
        allow_overlap=allow_overlap,
        resume=resume,
        devices=devices,
        nodes=nodes,
        threads=threads,
        accelerator=accelerator,
        cache=cache,
        progress=not quiet,
    )
    if audit and job.rank == 0:
        _warn(job)
    run = train(job)
    last = run.history()[-1]
    Console().print(
        f"{run.path}: {run.recipe.network.name}, {len(run.history())} epochs, "
        f"validation AUC {last['val_auc']:.3f}, accuracy {last['val_accuracy']:.3f} after the last"
    )


def _warn(job: Job) -> None:
    """Say on standard error what the parts of the job's split share."""
    from rich.markup import escape

    from groundglass.audit.audit import audit
    from groundglass.data.load import load_dataset
    from groundglass.data.splits import make_split

    manifest = load_dataset(job.data)
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    console = Console(stderr=True, soft_wrap=True)
    with console.status("Looking for what parts of the split share"):
        audited = audit(manifest, split, shortcuts=False, quick=True, threads=job.threads or None)
    for warning in audited.warnings():
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")


def pretrain(
    output: Annotated[Path, typer.Option("--output", help="Folder of the run.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Name of a recipe, or a YAML file.")] = "c2l",
    network: Annotated[
        str | None,
        typer.Option("--network", help="Any of `groundglass models`.", show_default="the recipe's"),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Files and folders of slices without labels.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A data set, of which only the training part is used.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Of --data; as for `groundglass train`.")
    ] = "official",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run was stopped.")] = False,
    accelerator: Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")] = "auto",
    threads: Threads = 0,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Pretrain a network by C2L on slices without labels; killed at any moment, it goes on with --resume."""
    from groundglass.training.c2l import PretrainJob
    from groundglass.training.c2l import pretrain as pretrain_network
    from groundglass.training.recipe import load_pretrain_recipe

    job = PretrainJob(
        recipe=load_pretrain_recipe(recipe, overrides or (), network),
        output=output,
        data=data,
        images=tuple(images or ()),
        split=split,
        seed=seed,
        resume=resume,
        threads=threads,
        accelerator=accelerator,
        cache=cache,
        progress=not quiet,
    )
    done = pretrain_network(job)
    typer.echo(
        f"{done.path}: {done.info['network']}, {len(done.history)} epochs over {done.info['slices']} slices, "
        f"loss {done.history[-1]['train_loss']:.3f} after the last; start from it with "
        f"--set network.weights={done.backbone}"
    )


class Precisions(str, Enum):
    """Number formats of a bundle's model."""

    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    *,
    output: Annotated[Path, typer.Option("--output", help="The bundle: a folder, or a name ending in .zip.")],
    data: Annotated[Path, typer.Option("--data", help="The data set that the run was trained on.")],
    lesion_free: Annotated[
        Path | None, typer.Option("--lesion-free", help="Lesion-free slices: more of what lungs look like.")
    ] = None,
    precision: Annotated[
        Precisions, typer.Option("--precision", help="auto: INT8 unless it loses validation AUC.")
    ] = Precisions.AUTO,
    name: Annotated[str | None, typer.Option("--name", help="Of the model, for its card.")] = None,
    cache: Cache = None,
) -> None:
    """Write a run as a bundle: ONNX model, calibration, input check, self-test, measured figures, model card."""
    from rich.console import Console

    from groundglass.inference.bundle import Bundle
    from groundglass.training.export import Export
    from groundglass.training.export import export as export_run
    from groundglass.training.run import Run

    chosen: Precision | None = None if precision is Precisions.AUTO else precision.value
    console = Console(stderr=True)
    job = Export(Run.open(run), output, data, lesion_free, chosen, name, cache)
    export_run(job, lambda step: console.print(step, markup=False, highlight=False))
    bundle = Bundle.open(output)
    size = len(bundle.model) / 1e6
    typer.echo(f"{output}: {bundle.precision}, {size:.1f} MB, verified; bundle {bundle.id}")


def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Only these networks.", show_default="all")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=32, help="Side of the input in pixels.")] = 160,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the networks: parameters, multiply-accumulate operations, weights to start from."""
    chosen = [find(name) for name in names] if names else list(entries())
    costs = _measure(chosen, size)
    if as_json:
        rows = [_row(entry, cost) for entry, cost in zip(chosen, costs, strict=True)]
        typer.echo(json.dumps({"input_size": size, "networks": rows}, indent=2))
    else:
        Console().print(_table(chosen, costs, size))


def _measure(chosen: list[Entry], size: int) -> list[Complexity]:
    try:
        from groundglass.models.registry import measure
    except ModuleNotFoundError as error:
        raise GroundglassError(
            f"networks need {error.name}, which comes with `pip install groundglass[train]`"
        ) from error

    console = Console(stderr=True)
    return [
        measure(entry.name, size)
        for entry in track(chosen, "Measuring", console=console, transient=True, disable=len(chosen) == 1)
    ]


def _row(entry: Entry, cost: Complexity) -> dict[str, object]:
    return {
        "name": entry.name,
        "family": entry.family,
        "timm_name": entry.timm_name,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "weights": list(entry.weights),
        "weights_package": entry.package,
    }


def _table(chosen: list[Entry], costs: list[Complexity], size: int) -> Table:
    table = Table(
        "Network",
        title=f"Networks for slices of {size} x {size} pixels",
        caption="*: installed already, no network needed. A .safetensors file serves as well.",
    )
    table.add_column("Parameters, M", justify="right")
    table.add_column("MACs, G", justify="right")
    table.add_column("Weights")
    for entry, cost in zip(chosen, costs, strict=True):
        installed = {"imagenet": entry.package, "c2l": entry.pretrained}
        weights = [f"{name}*" if installed.get(name) else name for name in entry.weights]
        table.add_row(
            entry.name, f"{cost.parameters / 1e6:.2f}", f"{cost.macs / 1e9:.3f}", ", ".join(weights)
        )
    return table
