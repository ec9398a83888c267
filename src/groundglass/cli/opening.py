"""Trained networks as a command line names them: a run, a bundle, or a folder of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from groundglass.errors import DataError

if TYPE_CHECKING:
    from groundglass.evaluation.model_rows import ModelRow
    from groundglass.evaluation.protocol import TrainedRun
    from groundglass.inference.bundle import Bundle

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH|NAME=PATH",
        help="Runs, bundles, or folders that hold the seeds of one recipe; what has the same name makes one "
        "row. The bundle that comes with the installation unless given.",
        show_default=False,
    ),
]

BundleArgument = Annotated[
    Path | None, typer.Argument(help="The bundle; the one that comes with the installation unless given.")
]
Int8 = Annotated[
    bool | None, typer.Option("--int8/--fp32", help="Which model of the bundle; the smallest unless given.")
]

_MARKS = ("bundle.json", "run.json")


def open_run(path: Path) -> TrainedRun:
    """A bundle, which needs no torch, or else a run.

    Raises:
        RunError, BundleError: it is neither, or damaged.
    """
    if path.suffix.lower() == ".zip" or (path / "bundle.json").is_file():
        from groundglass.evaluation.bundled import BundledRun  # noqa: PLC0415
        from groundglass.inference.bundle import Bundle  # noqa: PLC0415

        return BundledRun(Bundle.open(path))
    from groundglass.training.run import Run  # noqa: PLC0415 - torch is slow to import

    return Run.open(path)


def open_bundle(path: Path | None, int8: bool | None) -> Bundle:
    """The model of a bundle that is asked for.

    Args:
        path: of the bundle; None for the one that comes with the installation.
        int8: whether the INT8 or the FP32 model; None for the smallest.

    Raises:
        BundleError: it is no bundle, damaged, or has no such model.
    """
    from groundglass.inference.bundle import Bundle  # noqa: PLC0415 - slow to import

    return Bundle.open(path, None if int8 is None else "int8" if int8 else "fp32")


def open_rows(words: Iterable[str]) -> tuple[ModelRow, ...]:
    """Rows of a table, in the order in which their names first occur.

    Args:
        words: ``NAME=PATH`` or ``PATH``; without a name it is that of the file or folder. A folder that is
            neither run nor bundle stands for those directly in it. None for the bundle that comes with the
            installation.

    Raises:
        DataError: runs of one name differ in their recipe or split.
        RunError, BundleError: a path is neither, or damaged.
    """
    from groundglass.evaluation.model_rows import ModelRow  # noqa: PLC0415

    rows: dict[str, list[TrainedRun]] = {}
    for word in words:
        name, path = _named(word)
        rows.setdefault(name, []).extend(open_run(each) for each in _models_at(path))
    if not rows:
        from groundglass.inference.bundle import DEFAULT  # noqa: PLC0415

        rows = {DEFAULT.name: [open_run(DEFAULT)]}
    return tuple(ModelRow.of(name, runs) for name, runs in rows.items())


def chosen_part(split: str | None, part: str | None, trained_on: str) -> tuple[str | None, str]:
    """Split and part that are meant where one of them, or both, were not said.

    Args:
        split: as given, or None.
        part: as given, or None.
        trained_on: the split of the run that is judged.
    """
    if part is None:
        return split, "all" if split is None else "test"
    return (trained_on if split is None and part != "all" else split), part


def _named(word: str) -> tuple[str, Path]:
    path = Path(word)
    name, equals, rest = word.partition("=")
    if equals and not path.exists():
        if not name or not rest:
            raise DataError(f"{word}: expected NAME=PATH")
        return name, Path(rest)
    resolved = path.resolve()
    return (resolved.stem if resolved.suffix.lower() == ".zip" else resolved.name), path


def _models_at(path: Path) -> list[Path]:
    """The path itself, or the runs and bundles directly in a folder that is none."""
    if not path.is_dir() or _is_model(path):
        return [path]
    return sorted(each for each in path.iterdir() if each.is_dir() and _is_model(each)) or [path]


def _is_model(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _MARKS)
