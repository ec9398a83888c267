"""The command ``groundglass``: assembles the sub-commands and turns user errors into one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from groundglass import __version__
from groundglass.cli import data, evaluate, experiments, pacs, predict, serve, train
from groundglass.errors import GroundglassError

TRAINING = frozenset({"torch", "torchmetrics", "torchvision", "timm", "lightning", "onnx", "safetensors"})
"""Packages that the extra ``train`` brings and a plain installation lacks."""

app = typer.Typer(
    name="groundglass",
    help="Tell COVID-19 pneumonia from everything else on lung CT slices. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
PANELS: Mapping[str, Sequence[Callable[..., None]]] = {
    "Use": (predict.predict, serve.serve, pacs.pacs),
    "Train": (train.train, train.pretrain, evaluate.evaluate, train.export, train.models),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(data.app, rich_help_panel="Data")
app.add_typer(experiments.app, rich_help_panel="Paper")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"groundglass {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that belong to every command."""


def main() -> None:
    """Entry point. A ``GroundglassError`` ends in one line on stderr and exit status 2.

    So does a missing package that training needs: most commands of an installation without it do not.
    """
    try:
        app()
    except GroundglassError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        _fail(
            f"this command needs {error.name}: `pip install '.[train]'` in a clone of groundglass brings it"
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(words: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(words)}")
    sys.exit(2)


if __name__ == "__main__":
    main()
