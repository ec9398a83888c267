"""``groundglass export``: a run becomes a bundle that predicts without torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from groundglass.cli.train import Cache

if TYPE_CHECKING:
    from groundglass.inference.bundle import Precision


class Precisions(str, Enum):
    """Models that a bundle can hold."""

    BOTH = "both"
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
        Precisions, typer.Option("--precision", help="Models to write; INT8 only where it is as good.")
    ] = Precisions.BOTH,
    name: Annotated[str | None, typer.Option("--name", help="Of the model, for its card.")] = None,
    cache: Cache = None,
) -> None:
    """Write a run as a bundle: ONNX models, calibration, refusal, self-test, measured figures, model card."""
    from rich.console import Console  # noqa: PLC0415

    from groundglass.inference.bundle import Bundle  # noqa: PLC0415
    from groundglass.training.export import Export  # noqa: PLC0415 - torch is slow to import
    from groundglass.training.export import export as export_run  # noqa: PLC0415
    from groundglass.training.run import Run  # noqa: PLC0415

    precisions: tuple[Precision, ...] = (
        ("fp32", "int8") if precision is Precisions.BOTH else (precision.value,)
    )
    console = Console(stderr=True)
    job = Export(Run.open(run), output, data, lesion_free, precisions, name, cache)
    for kept in export_run(job, lambda step: console.print(step, markup=False, highlight=False)):
        bundle = Bundle.open(output, kept)
        typer.echo(f"{output}: {kept}, {len(bundle.model) / 1e6:.1f} MB, verified; bundle {bundle.id}")
