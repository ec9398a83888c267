"""``groundglass trust``: measure how far a bundle's findings can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.opening import BundleArgument, Int8, open_bundle
from groundglass.cli.train import Data, Seed

LesionFree = Annotated[
    Path | None, typer.Option("--lesion-free", help="Folder of slices without the disease.")
]
Lungs = Annotated[list[Path] | None, typer.Option("--lungs", help="Further axial chest slices. Repeatable.")]
Docs = Annotated[Path | None, typer.Option("--docs", help="Markdown file whose tables are replaced.")]


def trust(
    bundle: BundleArgument = None,
    *,
    data: Data,
    output: Annotated[Path, typer.Option("--output", help="Folder for trust.json and trust.md.")],
    foreign: Annotated[
        list[Path] | None,
        typer.Option("--foreign", help="Pictures to be refused; see `groundglass data foreign`. Repeatable."),
    ] = None,
    lesion_free: LesionFree = None,
    lungs: Lungs = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Of the data; the one the bundle was trained on unless given."),
    ] = None,
    int8: Int8 = None,
    phantoms: Annotated[int, typer.Option("--phantoms", min=2, help="Of the dose-response.")] = 200,
    seed: Seed = 0,
    docs: Docs = None,
) -> None:
    """Measure calibration, prediction sets, refusal, dose-response and activation maps of a bundle."""
    from rich.console import Console  # noqa: PLC0415

    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415 - slow to import
    from groundglass.evaluation.trust import TrustJob, measure_trust  # noqa: PLC0415
    from groundglass.evaluation.trust_tables import BEGIN, END, MARKDOWN, write_trust  # noqa: PLC0415

    opened = open_bundle(bundle, int8)
    chosen = split or str(opened.info.training.get("split") or "official")
    others = tuple(lungs or ()), tuple(foreign or ())
    job = TrustJob(opened, data, chosen, seed, lesion_free, *others, phantoms)
    console = Console(stderr=True)
    report = measure_trust(job, lambda step: console.print(step, markup=False, highlight=False))
    write_trust(report, output)
    tables = (output / MARKDOWN).read_text(encoding="utf-8")
    if docs is not None:
        update_readme(docs, tables, BEGIN, END)
    typer.echo(tables)
