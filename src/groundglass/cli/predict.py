"""``groundglass predict``: one prediction for every slice, as a table, as data, or as a report."""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from groundglass.cli.options import INTERRUPTED, BundlePath, Device, EngineThreads
from groundglass.errors import PredictionError

if TYPE_CHECKING:
    from groundglass.cluster.ray import RayClassifier
    from groundglass.inference.bundle import Bundle
    from groundglass.inference.classifier import Classifier
    from groundglass.inference.series import Totals

SOME_LEFT_OUT, NONE_CLASSIFIED = 3, 4
"""Exit statuses beside 0, every lung slice classified, 2, an error that the user can mend, and 130."""

_LONGEST_COMMAND = 800


Engine = Literal["local", "ray"]
"""What works through the files."""

Paths = Annotated[
    list[str],
    Argument(metavar="PATH...", help="Files, folders, zips, members (a.zip!b.png), 'patterns/**', manifest CSVs."),
]
AsParquet = Annotated[bool, Option("--parquet", help="With --output a folder: predictions.parquet too.")]
OutputPath = Annotated[
    Path | None, Option(help="A .jsonl, .csv or .parquet file; or a folder: pictures and a report too.")
]
Resume = Annotated[bool, Option("--resume", help="Skip what --output has, retry what failed.")]
Masks = Annotated[
    bool,
    Option("--masks", help="With a folder: lung and lesion masks; PNG, NIfTI, or DICOM SEG, which names the patient."),
]
EngineName = Annotated[Engine, Option(help="local; or ray: many processes, also of a cluster, no pictures.")]
Workers = Annotated[int | None, Option(min=1, help="Processes of --engine ray; one per core unless given.")]
Address = Annotated[str | None, Option(help="Ray cluster to join: host:port, ray://host:port or auto.")]
KeepIdentifiers = Annotated[
    bool, Option("--keep-identifiers", help="Add patient name, id and birth date to the predictions.")
]
Strict = Annotated[bool, Option("--strict", help="Exit status 3 for slices outside the lungs (neck, abdomen) as well.")]


def predict(
    paths: Paths,
    bundle: BundlePath = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON lines.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV.")] = False,
    as_parquet: AsParquet = False,
    output: OutputPath = None,
    masks: Masks = False,
    resume: Resume = False,
    threads: EngineThreads = 0,
    device: Device = "cpu",
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    keep_identifiers: KeepIdentifiers = False,
    strict: Strict = False,
    quiet: Annotated[bool, Option("--quiet", help="No table, summary or progress bar.")] = False,
) -> None:
    """Classify CT slices: COVID, NonCOVID or uncertain. Research use only, never a diagnosis.

    Exit status: 0 every lung slice classified, 2 usage or bundle error, 3 some refused or failed, 4 none classified.
    """
    from groundglass.cli.screen import Screen, shorten_middle
    from groundglass.inference.inputs import count_files, expand
    from groundglass.inference.output import REPORT, OutputPlan, open_output

    if as_json and as_csv:
        raise PredictionError("--json and --csv cannot both be printed; choose one")
    printed: Literal["jsonl", "csv"] | None = "jsonl" if as_json else "csv" if as_csv else None
    _check_engine(paths, engine, threads, workers, address, masks)
    inputs = expand(paths)
    command = shorten_middle(shlex.join(["groundglass", *sys.argv[1:]]), _LONGEST_COMMAND)
    plan = OutputPlan(output, resume, as_parquet, masks, keep_identifiers, command)
    plan.check()
    opened, classifier = _open(bundle, engine, threads, device, workers, address, keep_identifiers)
    report = plan.folder / REPORT if plan.folder else None
    try:
        with closing(Screen(printed, quiet=quiet, keep_identifiers=keep_identifiers)) as screen:
            with open_output(plan, opened) as target:
                skip = target.excludes
                screen.expect(lambda: count_files(inputs, lambda file: not skip(file)))
                found = classifier.predict_all(inputs, evidence=report is not None, skip=skip)
                with closing(found) as predictions:
                    for prediction in predictions:
                        screen.show(target.add(prediction))
                screen.finish(writing=report is not None)
            screen.conclude(target.totals, report)
    except KeyboardInterrupt:
        done = plan.predictions and f"; predictions so far are in {plan.predictions}, continue with --resume"
        typer.echo(f"interrupted{done or ''}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if status := _exit_status(target.totals, strict):
        raise typer.Exit(status)


def _check_engine(
    paths: list[str], engine: Engine, threads: int, workers: int | None, address: str | None, masks: bool
) -> None:
    ray = engine == "ray"
    faults = {
        "--workers and --address go with --engine ray": not ray and (workers or address) is not None,
        "--masks does not go with --engine ray, which brings no pictures": ray and masks,
        "--threads does not go with --engine ray, whose --workers have one thread each": ray and threads,
    }
    for words, wrong in faults.items():
        if wrong:
            raise PredictionError(words)


def _open(
    bundle: Path | None, engine: Engine, threads: int, device: str, workers: int | None, address: str | None, keep: bool
) -> tuple[Bundle, Classifier | RayClassifier]:
    import cv2

    from groundglass.files import usable_cores
    from groundglass.inference.bundle import Bundle

    cv2.setNumThreads(threads or usable_cores())
    opened = Bundle.open(bundle, threads, device)
    if engine == "ray":
        from groundglass.cluster.ray import RayClassifier

        return opened, RayClassifier(opened, workers, address, keep)
    from groundglass.inference.classifier import Classifier

    return opened, Classifier(opened, keep_identifiers=keep)


def _exit_status(totals: Totals, strict: bool) -> int:
    """Slices outside the lungs, in series that were otherwise classified, count only with ``strict``."""
    counts = totals.counts
    if counts.ok == 0:
        return NONE_CLASSIFIED
    return SOME_LEFT_OUT if (counts.total - counts.ok if strict else totals.left_out) else 0
