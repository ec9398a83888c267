"""The command ``groundglass``: assembles the sub-commands and turns user errors into one line."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Annotated, Any, Literal, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from groundglass import __version__
from groundglass.cli.options import report
from groundglass.errors import GroundglassError

# Name, module and panel of each command; "data" and "paper" have commands of their own.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "predict": ("predict", "Use"),
    "serve": ("serve", "Use"),
    "pacs": ("pacs", "Use"),
    "train": ("train", "Train"),
    "pretrain": ("train", "Train"),
    "evaluate": ("train", "Train"),
    "export": ("train", "Train"),
    "models": ("train", "Train"),
    "data": ("data", "Data"),
    "paper": ("experiments", "Paper"),
}

# Packages that the extra "train" brings and a plain installation lacks.
_TRAINING = frozenset({"torch", "torchmetrics", "torchvision", "timm", "lightning", "onnx", "safetensors"})
_SILENT = logging.NullHandler()
# Modules whose warnings tell of files, as a regular expression.
_READERS = r"(groundglass|highdicom|joblib|nibabel|PIL|pydicom)\b"


class _Commands(TyperGroup):
    """Imports a command when it is asked for, so that one command's start does not wait for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, panel = COMMANDS[cmd_name]
        loaded = import_module(f"groundglass.cli.{module}")
        found = getattr(loaded, "app", None)
        if found is None:
            found = typer.Typer(add_completion=False)
            found.command()(getattr(loaded, cmd_name))
        command = typer.main.get_command(found)
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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"],
        typer.Option(help="debug: of libraries too, which may quote patients' headers."),
    ] = "warning",
) -> None:
    """Options that belong to every command."""
    for name in ("SIGTERM", "SIGHUP") if context.invoked_subcommand != "serve" else ():
        number = getattr(signal, name, None)  # serve finishes what it has accepted first
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not below nohup
            # As after an error, so that temporary files are removed.
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    if log_level == "debug":
        logging.basicConfig(level=logging.DEBUG)
        return
    context.with_resource(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=_READERS)
    if COMMANDS.get(context.invoked_subcommand or "", ("", ""))[1] not in {"Train", "Paper"}:
        context.with_resource(_c_libraries_kept_quiet())
    logging.getLogger().addHandler(_SILENT)
    ours = logging.getLogger("groundglass")
    ours.handlers = [logging.StreamHandler()]
    ours.setLevel(log_level.upper())


@contextmanager
def _c_libraries_kept_quiet() -> Iterator[None]:
    """What C libraries print goes to file descriptor 2, and may quote a header, as warnings of damaged files may.

    Both are switched off for the whole process that a command is, and nowhere in the library. Training keeps what is
    printed: there it may be a driver's last word.
    """
    stderr, own, nowhere = sys.stderr, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # what has no descriptor stays
        if stderr.fileno() == 2:
            sys.stderr = os.fdopen(own, "w", 1, stderr.encoding, stderr.errors, closefd=False)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(own, 2)
        sys.stderr = stderr
        os.close(own)
        os.close(nowhere)


def main() -> None:
    """Entry point. A ``GroundglassError`` ends in one line on stderr and exit status 2.

    So does a missing package that training needs: most commands of an installation without it do not; and so do
    standard output that cannot be written, and a file that cannot be read or written.
    """
    _open_streams()
    # Python's last search for garbage among PyTorch's objects would take more than a second.
    atexit.register(gc.freeze)
    try:
        app()
    except SystemExit:
        if isinstance(fault := _settled(sys.stdout), GroundglassError):
            _fail(str(fault))
        _settled(sys.stderr)
        raise
    except GroundglassError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except ModuleNotFoundError as error:
        if error.name not in _TRAINING:
            raise
        _fail(f"this command needs {error.name}: `pip install '.[train]'` in a clone of groundglass brings it")


def _fail(words: str) -> NoReturn:
    with suppress(OSError):
        report("error", words)
    _settled(sys.stdout)
    _settled(sys.stderr)
    sys.exit(2)


class _StandardOutput(FileIO):
    """Standard output that says so where it cannot be written: no error of a file does."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise GroundglassError(f"standard output cannot be written ({error.strerror})") from None


def _open_streams() -> None:
    """Let closed standard streams lead nowhere, or the next file that is opened would become one."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # a file takes the lowest number that is free
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
    if (out := sys.stdout) is sys.__stdout__ and isinstance(out, TextIOWrapper) and os.name != "nt":
        plain = BufferedWriter(_StandardOutput(1, "w", closefd=False))
        sys.stdout = TextIOWrapper(plain, out.encoding, "backslashreplace", None, out.line_buffering, out.write_through)


def _settled(stream: TextIO) -> Exception | None:
    """Write what a stream holds; where that fails drop it, or Python would end with a status of its own."""
    try:
        stream.flush()
    except (OSError, GroundglassError) as error:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, suppress(OSError, ValueError):
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


if __name__ == "__main__":
    main()
