"""``groundglass robustness``: evaluate in one container, and without slices that contradict each other."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.evaluate import BootstrapSeed, Part, Resamples, Split
from groundglass.cli.opening import Models, chosen_part, open_rows
from groundglass.cli.train import Data
from groundglass.cli.trust import Docs
from groundglass.errors import DataError

Audit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        help="audit.json of `groundglass data audit` of the same data: judge also without the slices that "
        "have a copy with the opposite label.",
    ),
]
Qualities = Annotated[
    str,
    typer.Option(
        "--container", metavar="QUALITIES", help="JPEG qualities every slice is brought to, such as 90,50."
    ),
]


def robustness(
    models: Models = None,
    *,
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Folder for robustness.json and robustness.md.")],
    split: Split = None,
    part: Part = None,
    audit: Audit = None,
    container: Qualities = "90,50",
    resamples: Resamples = 2000,
    seed: BootstrapSeed = 0,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Judge runs whose training has not ended.")
    ] = False,
    docs: Docs = None,
) -> None:
    """Evaluate with every slice in one container, without conflicting twins, and both; one look in all."""
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.evaluation.conflicts import read_conflicts  # noqa: PLC0415
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415 - scikit-learn is slow to import
    from groundglass.evaluation.robustness import RobustnessJob, measure_robustness  # noqa: PLC0415
    from groundglass.evaluation.robustness_tables import BEGIN, END, MARKDOWN, write_robustness  # noqa: PLC0415

    qualities, rows = parse_qualities(container), open_rows(models or ())
    split, part = chosen_part(split, part, rows[0].runs[0].split_spec)
    conflicts = None if audit is None else read_conflicts(audit)
    job = RobustnessJob(
        rows, load_dataset(data), split, part, conflicts, qualities, resamples, seed, allow_unfinished
    )
    console = Console(stderr=True, soft_wrap=True)
    report = measure_robustness(job, output, lambda step: console.print(step, markup=False, highlight=False))
    write_robustness(report, output, shlex.join(["groundglass", *sys.argv[1:]]))
    for warning in dict.fromkeys(warning for row in report.rows for warning in row.warnings):
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
    tables = (output / MARKDOWN).read_text(encoding="utf-8")
    if docs is not None:
        update_readme(docs, tables, BEGIN, END)
    typer.echo(tables)


def parse_qualities(text: str) -> tuple[int, ...]:
    """``90`` or ``90,50`` as numbers, each once.

    Raises:
        DataError: a quality is no whole number from 1 to 100.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 100 for word in words):
        raise DataError(f"--container {text}: expected JPEG qualities from 1 to 100, such as 90,50")
    return tuple(dict.fromkeys(int(word) for word in words))
