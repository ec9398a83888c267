"""``groundglass data``: fetch, describe and prepare data sets.

Progress of an audit on stderr: a bar for each of its stages.

``groundglass data audit``: what is wrong with a data set, found before training.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from groundglass.files import printable
from groundglass.audit.audit import Audit

_TITLES = {"reading": "Reading", "comparing": "Comparing", "fitting": "Shortcuts"}


class AuditProgress:
    """Shows how far each stage is, as long as the block lasts; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> AuditProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def advance(self, stage: str, steps: int, total: int | None) -> None:
        """``steps`` more of a stage are done, of ``total`` if that is known."""
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(_TITLES[stage], total=total)
        self._display.update(self._tasks[stage], advance=steps, total=total)


FOUND = 5
"""Exit status where a condition of ``--fail-on`` holds."""


Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help="End with status 5 where this was found: leakage, duplicates, conflicts, lookalikes, sources, "
        "shortcuts[:AUC] or unreadable; can be repeated, or several joined by commas.",
    ),
]
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        help="Folder for report.html, audit.md and audit.json, or a .html, .md or .json file; can be "
        "repeated.",
    ),
]
Network = Annotated[
    Path | None,
    typer.Option(
        "--network",
        help="A network's figures to compare shortcuts with: predictions.csv or metrics.json of `evaluate`, "
        "seed-N.json or summary.json of `repeat`.",
    ),
]


def audit(
    path: Annotated[
        Path, typer.Argument(help="COVID-CT, a folder COVID/ NonCOVID/, a manifest CSV or slices.")
    ],
    *,
    output: Outputs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of tables.")] = False,
    fail_on: Conditions = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Audit the parts of this split instead of the data's own.")
    ] = None,
    network: Network = None,
    shortcuts: Annotated[
        bool, typer.Option("--shortcuts/--no-shortcuts", help="Measure the shortcut baselines as well.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split and the shortcut baselines.")] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="To read and compare in; default: one per core.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option("--docs", exists=True, dir_okay=False, help="Markdown file whose tables are replaced."),
    ] = None,
) -> None:
    """Find copies, leakage, label conflicts and shortcuts in a data set."""
    from groundglass.audit import audit as auditing
    from groundglass.audit.report import (
        BEGIN,
        END,
        audit_markdown,
        write_audit,
    )
    from groundglass.audit.shortcuts import read_stated
    from groundglass.data.load import load_dataset
    from groundglass.data.splits import make_split
    from groundglass.experiments.results import update_readme

    # An empty one is refused: a CI job whose variable is not set must not pass for that.
    conditions = [condition.strip() for given in fail_on or () for condition in given.split(",")]
    manifest = load_dataset(path)
    parts = None if split is None else make_split(manifest, split, seed, allow_overlap=True)
    auditing.check_conditions(conditions, manifest, parts, shortcuts=shortcuts)
    with AuditProgress() as progress:
        audited = auditing.audit(
            manifest,
            parts,
            shortcuts=shortcuts,
            network=None if network is None else read_stated(network),
            seed=seed,
            threads=threads,
            progress=progress.advance,
        )
    command = printable(shlex.join(["groundglass", *sys.argv[1:]]))
    for target in output or ():
        write_audit(audited, target, command)
    if docs is not None:
        update_readme(docs, audit_markdown(audited, command, level=3), BEGIN, END)
    held = auditing.found(audited, conditions)
    _show(audited, held, as_json=as_json)
    if held:
        raise typer.Exit(FOUND)


def _show(audited: Audit, held: Sequence[str], *, as_json: bool) -> None:
    """Predictions on standard output, warnings and what holds of ``--fail-on`` on standard error."""
    from rich.console import Console
    from rich.markup import escape

    from groundglass.audit.audit import document
    from groundglass.audit.report import audit_tables

    if as_json:
        typer.echo(json.dumps(document(audited), indent=2, ensure_ascii=False))
    else:
        for table in audit_tables(audited):
            Console().print(table)
    errors = Console(stderr=True, soft_wrap=True)
    for warning in audited.warnings():
        errors.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for words in held:
        errors.print(f"[bold red]found:[/] {escape(words)}")


app = typer.Typer(name="data", help="Fetch, describe and prepare data sets.", no_args_is_help=True)
app.command()(audit)


class Published(str, Enum):
    """A data set that can be downloaded."""

    COVID_CT = "covid-ct"


@app.command()
def download(
    name: Annotated[Published, typer.Argument(help="Which data set.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to put it in.")],
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            envvar="GROUNDGLASS_COVID_CT_URL",
            help="Fetch from here instead of the authors' repository; Images-processed/ must lie in it.",
        ),
    ] = None,
) -> None:
    """Download COVID-CT and verify every image; run again after an interruption, it goes on."""
    from groundglass.cli.predict import FileProgress
    from groundglass.data.covid_ct import BASE_URL, NOTICE, download_covid_ct

    typer.echo(NOTICE)
    done = download_covid_ct(output, base_url or BASE_URL, FileProgress)
    typer.echo(f"{done.folder}: {done.fetched} images fetched, {done.kept} were there; all as published")


@app.command()
def describe(
    path: Annotated[
        Path, typer.Argument(help="COVID-CT, a folder COVID/ NonCOVID/, a manifest CSV or slices.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count labels, patients, splits, sources, file_formats, sizes and grey values."""
    from rich.console import Console
    from rich.progress import track

    from groundglass.data.describe import describe as describe_manifest
    from groundglass.data.describe import description_tables
    from groundglass.data.load import load_dataset

    manifest = load_dataset(path)
    watched = track(manifest.records, "Reading", console=Console(stderr=True), transient=True)
    description = describe_manifest(manifest, watched)
    if as_json:
        typer.echo(json.dumps(description.as_json(), indent=2, ensure_ascii=False))
    else:
        console = Console()
        for table in description_tables(description):
            console.print(table)


class PhantomFormat(str, Enum):
    """File formats phantoms are written in."""

    PNG = "png"
    DICOM = "dicom"


@app.command()
def phantoms(
    output: Annotated[Path, typer.Option("--output", help="New folder to write to.")],
    series: Annotated[
        str | None,
        typer.Option(
            "--series", help="Write one DICOM series for each of these severities instead: 0,0.2,0.5,0.9."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="Slices; default: 200, or 12 in each series.")
    ] = None,
    severity: Annotated[
        str, typer.Option("--severity", help="Range LO:HI of the lesions' severity, above 0 and at most 1.")
    ] = "0.2:0.8",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed writes the same files.")] = 0,
    file_format: Annotated[
        PhantomFormat, typer.Option("--format", help="Of single slices.")
    ] = PhantomFormat.PNG,
    size: Annotated[int, typer.Option("--size", min=64, max=2048, help="Pixels along each side.")] = 512,
) -> None:
    """Write synthetic chest CT: slices, half of them with lesions, to train on; or whole series."""
    from groundglass.data.phantoms import Severities, write_phantoms, write_series
    from groundglass.errors import DataError

    if series is None:
        count = 200 if count is None else count
        manifest = write_phantoms(output, count, Severities.parse(severity), seed, file_format.value, size)
        typer.echo(f"{len(manifest)} phantoms in {output}, listed in {output / 'manifest.csv'}")
        return
    try:
        severities = [float(part) for part in series.split(",")]
    except ValueError:
        raise DataError(f"--series {series}: expected numbers such as 0,0.3,0.9") from None
    count = 12 if count is None else count
    for folder in write_series(output, severities, count, seed, size):
        typer.echo(f"{folder}: {count} slices")


@app.command()
def preview(
    path: Annotated[Path, typer.Argument(help="File, folder or zip of slices.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the pictures.")],
    size: Annotated[int, typer.Option("--size", min=32, max=1024, help="Side of the crop, pixels.")] = 256,
    severity: Annotated[float, typer.Option("--severity", min=0, max=1, help="Of the lesions.")] = 0.5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed paints the same.")] = 0,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Slices; default: all.")] = None,
) -> None:
    """Draw each slice, its mask, its crop and copies with painted lesions as one PNG."""
    from groundglass.data.preview import write_previews
    from groundglass.errors import ImageError
    from groundglass.imaging.crop import Preprocessing

    failed: list[ImageError] = []
    previews = write_previews(
        path,
        output,
        Preprocessing(size=size),
        severity=severity,
        seed=seed,
        most=most,
        on_error=failed.append,
    )
    written = sum(1 for _ in previews)
    for error in failed:
        typer.echo(f"left out: {error}", err=True)
    typer.echo(f"{output}: {written} pictures written")
    if failed:
        raise typer.Exit(3)


@app.command("slices")
def cut_slices(
    volumes: Annotated[list[Path], typer.Argument(help="Series and volumes: files, folders or zips.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the pictures.")],
    every: Annotated[int, typer.Option("--every", min=1, help="Look at the first of every so many.")] = 10,
    least_lungs: Annotated[
        float, typer.Option("--least-lungs", min=0.01, max=0.9, help="Share of the picture that is lung.")
    ] = 0.05,
) -> None:
    """Cut axial lung slices out of CT volumes as grey PNGs in the lung window, naming no patient."""
    from groundglass.data.slices import Selection
    from groundglass.data.slices import cut_slices as cut
    from groundglass.errors import ImageError

    failed: list[ImageError] = []
    selection = Selection(every, least_lungs)
    written = sum(1 for volume in volumes for _ in cut(volume, output, selection, failed.append))
    for error in failed:
        typer.echo(f"left out: {error}", err=True)
    typer.echo(f"{output}: {written} slices written")
    if failed:
        raise typer.Exit(3)
