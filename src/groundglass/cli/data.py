"""``groundglass data``: download, describe, audit and prepare data sets."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, track
from typer import Argument, Option

from groundglass.cli.options import GREATEST_SEED, MapLabel, print_json, report
from groundglass.files import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from groundglass.errors import ImageError

FOUND = 5
"""Exit status where a condition of ``--fail-on`` holds."""

app = typer.Typer(
    name="data", help="Download, describe, audit and prepare data sets.", no_args_is_help=True, add_completion=False
)

DataSets = Annotated[
    list[Path], Argument(help="COVID-CT, a folder with COVID/ and NonCOVID/, a manifest CSV or slices; or several.")
]
Pictures = Annotated[Path, Option(help="Folder for the pictures.")]


class Condition(Enum):
    """What an audit can be asked to fail on."""

    LEAKAGE, DUPLICATES, CONFLICTS, UNREADABLE = "leakage", "duplicates", "conflicts", "unreadable"


PublicCollection = Literal[
    "mosmeddata", "covid-ct-md", "cc-ccii", "covidx-ct", "covid-semiseg", "zenodo-3757476", "iq-oth-nccd",
    "finding-lungs", "luna16", "ricord-1a",
]  # fmt: skip


@contextmanager
def stages() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on standard error for each stage of the work; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def advance(stage: str, steps: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage.capitalize(), total=total)
            display.update(tasks[stage], advance=steps, total=total)

        yield advance


@app.command()
def download(
    name: Annotated[Literal["covid-ct"], Argument(help="Which data set.")],
    output: Annotated[Path, Option(help="Folder to put it in.")],
    base_url: Annotated[
        str | None,
        Option(
            envvar="GROUNDGLASS_COVID_CT_URL",
            help="Fetch from here instead of the authors' repository; Images-processed/ must lie in it.",
        ),
    ] = None,
) -> None:
    """Download COVID-CT and verify every image; run again after an interruption, it resumes."""
    from groundglass.data.covid_ct import BASE_URL, NOTICE, download_covid_ct

    typer.echo(NOTICE)
    with stages() as progress:
        fetched = download_covid_ct(output, base_url or BASE_URL, progress)
    typer.echo(f"{output}: {fetched} images fetched, all others were there; all are as published")


@app.command("import")
def import_(
    collection: Annotated[PublicCollection, Argument(help="Which collection.")],
    path: Annotated[Path, Argument(help="Folder that it was unpacked to.")],
    output: Annotated[Path, Option(help="New manifest; slices go to a folder beside it.")],
) -> None:
    """Bring a public collection into a manifest: slices in the lung window, labels, masks, patients."""
    from groundglass.data.collections import import_collection

    failed: list[ImageError] = []
    with stages() as progress:
        manifest = import_collection(collection, path, output, failed.append, progress)
    lungs = sum(record.lung_mask is not None for record in manifest)
    lesions = sum(record.lesion_mask is not None for record in manifest)
    _written(output, len(manifest), f"slices ({lungs} with lung masks, {lesions} with lesion masks)", failed)


@app.command()
def describe(
    data: DataSets,
    map_label: MapLabel = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON, no tables.")] = False,
) -> None:
    """Count labels, patients, parts, sources, file formats, sizes and grey values."""
    from groundglass.data import describe as describing
    from groundglass.data.load import load_pool

    manifest = load_pool(data, map_label or ())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    watched = track(manifest.records, "Reading", console=console, transient=True, disable=hidden)
    description = describing.describe(manifest, watched)
    if as_json:
        print_json(asdict(description))
    else:
        Console().print(*describing.description_tables(description), sep="\n")


@app.command()
def audit(
    data: DataSets,
    *,
    map_label: MapLabel = None,
    output: Annotated[Path | None, Option(help="Folder for report.html and audit.json.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print audit.json instead of tables.")] = False,
    fail_on: Annotated[
        list[Condition] | None, Option(help="End with status 5 if this was found; can be repeated.")
    ] = None,
    split: Annotated[str | None, Option(help="Audit the parts of this split instead of the data's own.")] = None,
    shortcuts: Annotated[bool, Option(help="Measure the shortcut baselines as well.")] = True,
    seed: Annotated[int, Option(min=0, max=GREATEST_SEED, help="Of the split and the shortcut baselines.")] = 0,
    threads: Annotated[int, Option(min=0, help="CPU threads; 0: one per core.")] = 0,
) -> None:
    """Find copies, leakage, label conflicts and shortcuts in a data set."""
    from groundglass.audit import audit as auditing
    from groundglass.audit.report import audit_tables, document, write_audit
    from groundglass.data.load import load_pool
    from groundglass.data.splits import make_split
    from groundglass.errors import DataError
    from groundglass.files import printable

    manifest = load_pool(data, map_label or ())
    parts = None if split is None else make_split(manifest, split, seed, allow_overlap=True)
    if output is not None and output.is_file():
        raise DataError(f"{output}: is a file; name a folder with --output")
    if Condition.LEAKAGE in (fail_on or ()) and parts is None and not any(record.split for record in manifest):
        raise DataError(f"{manifest}: leakage cannot be checked: no slice is in a part; name one with --split")
    with stages() as progress:
        audited = auditing.audit(
            manifest, parts, shortcuts=shortcuts, seed=seed, threads=threads or None, progress=progress
        )
    if as_json:
        print_json(document(audited))
    else:
        Console().print(*audit_tables(audited), sep="\n")
    report("warning", *audited.warnings())
    if output is not None:
        write_audit(audited, output, printable(shlex.join(["groundglass", *sys.argv[1:]])))
    if held := auditing.found(audited, [each.value for each in fail_on or ()]):
        report("found", *held)
        raise typer.Exit(FOUND)


@app.command()
def slices(
    volumes: Annotated[list[Path], Argument(help="Series and volumes: files, folders or zips.")],
    output: Pictures,
    every: Annotated[int, Option(min=1, help="Take one slice of so many.")] = 10,
) -> None:
    """Cut axial lung slices out of CT volumes as grey PNGs in the lung window, naming no patient."""
    from groundglass.data.slices import cut_slices

    failed: list[ImageError] = []
    cut = (cut_slices(volume, output, every, failed.append) for volume in volumes)
    _written(output, len({picture for pictures in cut for picture in pictures}), "slices", failed)


@app.command()
def preview(
    path: Annotated[Path, Argument(help="File, folder or zip of slices.")],
    output: Pictures,
    size: Annotated[int, Option(min=32, max=1024, help="Side of the cropped slice.")] = 256,
    severity: Annotated[float, Option(min=0, max=1, help="Of the painted lesions, 0 to 1.")] = 0.5,
    seed: Annotated[int, Option(min=0, help="Of the painted lesions.")] = 0,
) -> None:
    """Write one PNG per slice: the slice, its mask, its crop, and the crop with painted lesions."""
    from groundglass.data.preview import write_previews
    from groundglass.imaging.crop import Preprocessing

    failed: list[ImageError] = []
    pictures = write_previews(
        path, output, Preprocessing(size=size), severity=severity, seed=seed, on_error=failed.append
    )
    _written(output, sum(1 for _ in pictures), "pictures", failed)


@app.command()
def phantoms(
    output: Annotated[Path, Option(help="New folder to write to.")],
    count: Annotated[int | None, Option(min=1, help="Number of slices; 200, or 12 for each series.")] = None,
    severity: Annotated[str, Option(help="Range LO:HI of the lesions' severity, above 0 and at most 1.")] = "0.2:0.8",
    series: Annotated[
        str | None,
        Option(metavar="SEVERITIES", help="Write one DICOM series for each severity instead, such as 0,0.3,0.9."),
    ] = None,
    seed: Annotated[int, Option(min=0, help="The same seed writes the same slices.")] = 0,
    size: Annotated[int, Option(min=64, max=2048, help="Pixels along each side.")] = 512,
) -> None:
    """Synthesise chest CT slices, healthy and with lesions, as PNG to train on or as DICOM series."""
    from groundglass.data.phantoms import parse_severities, write_phantoms, write_series
    from groundglass.errors import DataError

    if series is None:
        manifest = write_phantoms(output, count or 200, parse_severities(severity), seed, size)
        typer.echo(f"{len(manifest)} phantoms in {output}, listed in {output / 'manifest.csv'}")
        return
    try:
        severities = [float(part) for part in series.split(",")]
    except ValueError:
        raise DataError(f"--series {series}: expected severities such as 0,0.3,0.9") from None
    for folder in write_series(output, severities, count or 12, seed, size):
        typer.echo(f"{folder}: {count or 12} slices")


def _written(output: Path, count: int, what: str, failed: Sequence[ImageError]) -> None:
    """Say what was written and what was not; exit status 3 if something failed or nothing was written."""
    for error in failed:
        typer.echo(f"left out: {one_line(str(error), 4096)}", err=True)
    typer.echo(f"{output}: {count} {what} written")
    if not (failed or count):
        typer.echo(f"no lung slice was found; what lies in {output} itself is not read", err=True)
    if failed or not count:
        raise typer.Exit(3)
