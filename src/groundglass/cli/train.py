"""``groundglass train``: one recipe, one split, one seed, one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from groundglass.training.job import Job

RecipeName = Annotated[str, typer.Option("--recipe", help="Name of a recipe, or a YAML file.")]
Data = Annotated[
    Path, typer.Option("--data", help="COVID-CT, a folder with COVID/ and NonCOVID/, or a manifest CSV.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
LesionFree = Annotated[
    Path | None, typer.Option("--lesion-free", help="Folder of lesion-free slices for lesion synthesis.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field: optimiser.lr=3e-4.")
]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Accept patients who stand in several parts of the split.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads per process; 0: one per core.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder for framed slices.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Folder of the run.")],
    recipe: RecipeName = "mask-efficientnet",
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="official, random, patients:FOLD/FOLDS, official-cv:FOLD/FOLDS, "
            "official-source-cv:FOLD/FOLDS or leave-source-out:NAME; :SEED at the end of folds fixes them.",
        ),
    ] = "official",
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
    from groundglass.training.job import Job  # noqa: PLC0415 - torch is slow to import
    from groundglass.training.recipe import load_recipe  # noqa: PLC0415
    from groundglass.training.train import train  # noqa: PLC0415

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
    from rich.markup import escape  # noqa: PLC0415

    from groundglass.data.audit import quick_audit  # noqa: PLC0415
    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.data.splits import make_split  # noqa: PLC0415

    manifest = load_dataset(job.data)
    split = make_split(manifest, job.split, seed=job.seed, allow_overlap=job.allow_overlap)
    console = Console(stderr=True, soft_wrap=True)
    with console.status("Looking for what parts of the split share"):
        audited = quick_audit(manifest, split, threads=job.threads or None)
    for warning in audited.warnings():
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
