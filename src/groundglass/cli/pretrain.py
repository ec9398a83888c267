"""``groundglass pretrain``: a network learns from slices without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.train import Cache, Overrides, Quiet, Threads


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
    from groundglass.training.pretrain import PretrainJob  # noqa: PLC0415 - torch is slow to import
    from groundglass.training.pretrain import pretrain as pretrain_network  # noqa: PLC0415
    from groundglass.training.pretrain_recipe import load_pretrain_recipe  # noqa: PLC0415

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
