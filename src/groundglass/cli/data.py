"""``groundglass data``: fetch, describe and prepare data sets."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.audit import audit

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
    from groundglass.cli.progress import FileProgress  # noqa: PLC0415
    from groundglass.data.download import BASE_URL, NOTICE, download_covid_ct  # noqa: PLC0415

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
    """Count labels, patients, splits, sources, containers, sizes and grey values."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from groundglass.data.describe import describe as describe_manifest  # noqa: PLC0415
    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.data.tables import description_tables  # noqa: PLC0415

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
    count: Annotated[int, typer.Option(help="Number of slices; every other one has lesions.")] = 200,
    severity: Annotated[
        str, typer.Option(help="Range LO:HI of the lesions' severity, above 0 and at most 1.")
    ] = "0.2:0.8",
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same slices.")] = 0,
    file_format: Annotated[
        PhantomFormat, typer.Option("--format", help="Kind of files.")
    ] = PhantomFormat.PNG,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Pixels along each side.")] = 512,
) -> None:
    """Invent chest CT slices, healthy and with lesions, as a data set to train on."""
    from groundglass.data.phantoms import Severities, write_phantoms  # noqa: PLC0415

    manifest = write_phantoms(output, count, Severities.parse(severity), seed, file_format.value, size)
    typer.echo(f"{len(manifest)} phantoms in {output}, listed in {output / 'manifest.csv'}")


@app.command("phantom-series")
def phantom_series(
    output: Annotated[Path, typer.Option("--output", help="New folder to write to.")],
    severities: Annotated[
        str, typer.Option(help="One DICOM series for each of these, 0 healthy to 1.")
    ] = "0,0.2,0.5,0.9",
    count: Annotated[int, typer.Option(help="Slices per series, from the lungs' apex to their base.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same series.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Pixels along each side.")] = 512,
) -> None:
    """Invent chest CT series of patients from healthy to severely ill, as DICOM."""
    from groundglass.data.phantoms import write_series  # noqa: PLC0415
    from groundglass.errors import DataError  # noqa: PLC0415

    try:
        numbers = [float(part) for part in severities.split(",")]
    except ValueError:
        raise DataError(f"--severities {severities}: expected numbers such as 0,0.3,0.9") from None
    for series in write_series(output, numbers, count, seed, size):
        typer.echo(f"{series}: {count} slices")


@app.command("frame")
def frame_slices(
    path: Annotated[Path, typer.Argument(help="File, folder or zip of slices.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the pictures.")],
    size: Annotated[int, typer.Option("--size", min=32, max=1024, help="Side of the framed slice.")] = 160,
) -> None:
    """Write original, mask and framed slice side by side, one PNG per slice."""
    from groundglass.errors import ImageError  # noqa: PLC0415
    from groundglass.imaging.framing import Framing  # noqa: PLC0415
    from groundglass.imaging.preview import write_previews  # noqa: PLC0415

    failed: list[ImageError] = []
    written = sum(1 for _ in write_previews(path, output, Framing(size=size), failed.append))
    for error in failed:
        typer.echo(f"left out: {error}", err=True)
    typer.echo(f"{output}: {written} pictures written")
    if failed:
        raise typer.Exit(3)


@app.command("lesions")
def lesion_galleries(
    path: Annotated[Path, typer.Argument(help="File, folder or zip of slices without lesions.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the pictures.")],
    severity: Annotated[float, typer.Option(min=0, max=1, help="Of the lesions, 0 to 1.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="The same seed paints the same.")] = 0,
    most: Annotated[int, typer.Option("--most", min=1, help="Slices that are drawn.")] = 12,
) -> None:
    """Draw slices beside copies with painted lesions and signs of other diseases, one PNG per slice."""
    from groundglass.errors import ImageError  # noqa: PLC0415
    from groundglass.imaging.lesion_gallery import write_lesion_galleries  # noqa: PLC0415

    failed: list[ImageError] = []
    pictures = write_lesion_galleries(
        path, output, severity=severity, seed=seed, most=most, on_error=failed.append
    )
    written = sum(1 for _ in pictures)
    for error in failed:
        typer.echo(f"left out: {error}", err=True)
    typer.echo(f"{output}: {written} pictures written")
    if failed or not written:
        raise typer.Exit(3)


@app.command("foreign")
def write_foreign(
    output: Annotated[Path, typer.Option("--output", help="New folder to write to.")],
    dicom: Annotated[
        Path | None,
        typer.Option("--dicom", help="DICOM files; those not axial or not of the chest are copied as well."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same pictures.")] = 0,
    per_kind: Annotated[int, typer.Option("--per-kind", min=1, help="Generated pictures of each kind.")] = 20,
) -> None:
    """Write pictures that are no axial lung slices, to measure whether they are refused."""
    from groundglass.data.foreign import MANIFEST  # noqa: PLC0415
    from groundglass.data.foreign import write_foreign as write  # noqa: PLC0415

    pictures = write(output, seed, dicom, per_kind)
    kinds = len({picture.kind for picture in pictures})
    typer.echo(f"{len(pictures)} pictures of {kinds} kinds in {output}, listed in {output / MANIFEST}")


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
    from groundglass.errors import ImageError  # noqa: PLC0415
    from groundglass.imaging.cut import Selection  # noqa: PLC0415
    from groundglass.imaging.cut import cut_slices as cut  # noqa: PLC0415

    failed: list[ImageError] = []
    selection = Selection(every, least_lungs)
    written = sum(1 for volume in volumes for _ in cut(volume, output, selection, failed.append))
    for error in failed:
        typer.echo(f"left out: {error}", err=True)
    typer.echo(f"{output}: {written} slices written")
    if failed:
        raise typer.Exit(3)
