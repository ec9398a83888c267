"""``groundglass models``: every network with its size, cost and weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from groundglass.errors import GroundglassError
from groundglass.models.catalogue import Entry, entries, find

if TYPE_CHECKING:
    from groundglass.models.complexity import Complexity


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
        from groundglass.models.complexity import measure  # noqa: PLC0415 - torch is slow to import
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
