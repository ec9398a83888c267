"""The command ``groundglass``: assembles the sub-commands and turns user errors into one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from groundglass import __version__
from groundglass.errors import GroundglassError

TRAINING = frozenset({"torch", "torchmetrics", "torchvision", "timm", "lightning", "onnx", "safetensors"})
"""Packages that the extra ``train`` brings and a plain installation lacks."""

# Name, module and panel of each command; "data" and "paper" have commands of their own.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "predict": ("predict", "Use"),
    "serve": ("serve", "Use"),
    "pacs": ("pacs", "Use"),
    "train": ("train", "Train"),
    "pretrain": ("train", "Train"),
    "evaluate": ("evaluate", "Train"),
    "export": ("train", "Train"),
    "models": ("train", "Train"),
    "data": ("data", "Data"),
    "paper": ("experiments", "Paper"),
}


class _Commands(TyperGroup):
    """Imports a command when it is asked for, so that one command's start does not wait for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, panel = COMMANDS[cmd_name]
        loaded = import_module(f"groundglass.cli.{module}")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        function = getattr(loaded, cmd_name, None)
        if function is not None:
            single.command(cmd_name)(function)
        command = typer.main.get_command(loaded.app if function is None else single)
        command.name, command.rich_help_panel = cmd_name, panel  # type: ignore[attr-defined]
        return command


app = typer.Typer(
    name="groundglass",
    cls=_Commands,
    help="Tell COVID-19 pneumonia from everything else on lung CT slices. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
