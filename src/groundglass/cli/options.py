"""What several commands have: options, one name and one meaning for one thing; warnings, JSON, interruptions."""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from groundglass.files import one_line, printable

Data = Annotated[
    list[Path],
    Option(help="COVID-CT, a folder with COVID/ and NonCOVID/, or a manifest CSV; repeat it for several data sets."),
]
MapLabel = Annotated[
    list[str] | None, Option(metavar="NAME=LABEL", help="Read labels of other names: positive=COVID,CAP=NonCOVID.")
]
Lungs = Annotated[
    Path | None, Option(help="Model of the lung fields, .onnx; default: the run's, else the installed one.")
]
Split = Annotated[
    str, Option(help="official, random[:FOLD/FOLDS], patients:FOLD/FOLDS[:SEED] or leave-source-out:NAME[+NAME].")
]
GREATEST_SEED = 2**32 - 1  # that scikit-learn takes
Seed = Annotated[int, Option(min=0, max=GREATEST_SEED, help="Of everything random.")]
RecipeName = Annotated[str, Option(help="Name of a recipe, or a YAML file.")]
LesionFree = Annotated[
    Path | None, Option(help="Folder of lesion-free slices: to paint into; at export for the input check.")
]
Resume = Annotated[bool, Option("--resume", help="Continue where an earlier run stopped.")]
Threads = Annotated[int, Option(min=0, help="CPU threads; 0: one per core.")]
Cache = Annotated[Path | None, Option(help="Folder for preprocessed slices.")]
BundlePath = Annotated[str | None, Option(metavar="PATH", help="Trained model; default: the installed one.")]
Device = Annotated[str, Option(help="ONNX Runtime's provider: cpu, cuda, ...; an error for another lists them.")]
EngineThreads = Annotated[int, Option(min=0, help="CPU threads; 0: one per core but one.")]


@dataclass(frozen=True)
class Training:
    """Options of all that trains."""

    map_label: MapLabel = None
    overrides: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override a field: optimiser.lr=3e-4.")
    ] = None
    accelerator: Annotated[str, Option(help="auto, cpu or gpu.")] = "auto"
    threads: Threads = 0
    cache: Cache = None
    quiet: Annotated[bool, Option("--quiet", help="No progress bar.")] = False


def report(kind: str, *messages: str) -> None:
    """Print messages on standard error, each after its kind: ``warning``, ``found`` or ``error``."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, soft_wrap=True)
    for message in messages:
        console.print(f"[bold {'yellow' if kind == 'warning' else 'red'}]{kind}:[/] {escape(one_line(message, 2**20))}")


def print_json(document: Any) -> None:
    """Print a document on standard output, in which names of files may be no UTF-8."""
    typer.echo(printable(json.dumps(document, indent=2, ensure_ascii=False)))


@contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """An interruption from the keyboard ends in one line of advice and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(advice(), err=True)
        raise typer.Exit(130) from None


def with_options(shared: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Has a command take the fields of a dataclass as options after its own; it gets the dataclass first."""

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function).parameters.values()
        fields = inspect.signature(shared).parameters

        @wraps(function, ("__name__", "__doc__"))
        def command(**given: Any) -> None:
            function(shared(**{name: given.pop(name) for name in fields}), **given)

        # Typer reads the options from here.
        keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *fields.values())]
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        return command

    return decorated
