"""``groundglass reference``: tell a bundle where its training data lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reference(
    bundle: Annotated[Path, typer.Argument(help="A bundle: folder or zip.")],
    *,
    data: Annotated[Path, typer.Option("--data", help="The data set that the bundle was trained on.")],
    output: Annotated[Path, typer.Option("--output", help="The new bundle: a folder, or a name in .zip.")],
) -> None:
    """Add to a bundle what `evaluate` needs to say how far other data lie from its training data."""
    from groundglass.evaluation.add_reference import add_reference  # noqa: PLC0415
    from groundglass.inference.bundle import Bundle  # noqa: PLC0415

    for precision in add_reference(bundle, data, output):
        typer.echo(f"{output}: {precision}, verified; bundle {Bundle.open(output, precision).id}")
