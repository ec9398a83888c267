"""``groundglass predict``: one prediction for every slice, as a table, as data, or as a report."""

import shlex
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from groundglass.cli.options import BundlePath, Device, EngineThreads, interruptible, with_options
from groundglass.errors import PredictionError

if TYPE_CHECKING:
    from groundglass.cluster.ray import RayClassifier
    from groundglass.inference.bundle import Bundle
    from groundglass.inference.classifier import Classifier

SOME_LEFT_OUT, NONE_CLASSIFIED = 3, 4
"""Exit statuses beside 0, every lung slice classified, 2, an error that the user can mend, and 130."""

_LONGEST_COMMAND = 800

Masks = Annotated[
    bool,
    Option("--masks", help="With a folder: lung and lesion masks; PNG, NIfTI, or DICOM SEG, which names the patient."),
]
KeepIdentifiers = Annotated[
    bool, Option("--keep-identifiers", help="Add patient name, id and birth date to the predictions.")
]
Strict = Annotated[bool, Option("--strict", help="Exit status 3 for slices outside the lungs (neck, abdomen) as well.")]


@dataclass(frozen=True)
class _Engine:
    """Options that say what works through the files."""

    bundle: BundlePath = None
    threads: EngineThreads = 0
    device: Device = "cpu"
    engine: Annotated[
        Literal["local", "ray"], Option(help="local; or ray: many processes, also of a cluster, no pictures.")
    ] = "local"
    workers: Annotated[int | None, Option(min=1, help="Processes of --engine ray; one per core unless given.")] = None
    address: Annotated[str | None, Option(help="Ray cluster to join: host:port, ray://host:port or auto.")] = None

    def open(self, *, keep_identifiers: bool) -> "tuple[Bundle, Classifier | RayClassifier]":
        """The bundle, and what works through the files with it."""
        import cv2

        from groundglass.files import usable_cores
        from groundglass.inference.bundle import Bundle

        cv2.setNumThreads(self.threads or usable_cores())
        bundle = Bundle.open(self.bundle, self.threads, self.device)
        if self.engine == "ray":
            from groundglass.cluster.ray import RayClassifier

            return bundle, RayClassifier(bundle, self.workers, self.address, keep_identifiers)
        from groundglass.inference.classifier import Classifier

        return bundle, Classifier(bundle, keep_identifiers=keep_identifiers)


@with_options(_Engine)
def predict(
    engine: _Engine,
    paths: Annotated[
        list[str],
        Argument(metavar="PATH...", help="Files, folders, zips, members (a.zip!b.png), 'patterns/**', manifest CSVs."),
    ],
    as_json: Annotated[bool, Option("--json", help="Print JSON lines.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV.")] = False,
    as_parquet: Annotated[bool, Option("--parquet", help="With --output a folder: predictions.parquet too.")] = False,
    output: Annotated[
        Path | None, Option(help="A .jsonl, .csv or .parquet file; or a folder: pictures and a report too.")
    ] = None,
    masks: Masks = False,
    resume: Annotated[bool, Option("--resume", help="Skip what --output has, retry what failed.")] = False,
    keep_identifiers: KeepIdentifiers = False,
    strict: Strict = False,
    quiet: Annotated[bool, Option("--quiet", help="No table, summary or progress bar.")] = False,
) -> None:
    """Classify CT slices: COVID, NonCOVID or uncertain. Research use only, never a diagnosis.

    Exit status: 0 every lung slice classified, 2 usage or bundle error, 3 some refused or failed, 4 none classified.
    """
    from groundglass.cli.screen import Screen, shorten_middle
    from groundglass.inference.inputs import count_files, expand, named_by
    from groundglass.inference.output import REPORT, OutputPlan, open_output

    ray = engine.engine == "ray"
    faults = {
        "--json and --csv cannot both be printed; choose one": as_json and as_csv,
        "--workers and --address go with --engine ray": not ray and (engine.workers or engine.address) is not None,
        "--masks does not go with --engine ray, which brings no pictures": ray and masks,
        "--threads does not go with --engine ray, whose --workers have one thread each": ray and engine.threads,
    }
    for words, wrong in faults.items():
        if wrong:
            raise PredictionError(words)
    inputs = expand(paths)
    for _ in chain.from_iterable(map(named_by, inputs)):  # a damaged manifest ends it before anything is read
        pass
    command = shorten_middle(shlex.join(["groundglass", *sys.argv[1:]]), _LONGEST_COMMAND)
    plan = OutputPlan(output, resume, as_parquet, masks, keep_identifiers, command)
    plan.check()
    bundle, classifier = engine.open(keep_identifiers=keep_identifiers)
    report = plan.folder / REPORT if plan.folder else None
    done = plan.predictions and f"; predictions so far are in {plan.predictions}, continue with --resume"
    printed: Literal["jsonl", "csv"] | None = "jsonl" if as_json else "csv" if as_csv else None
    with (
        interruptible(lambda: f"interrupted{done or ''}"),
        closing(Screen(printed, quiet=quiet, keep_identifiers=keep_identifiers)) as screen,
    ):
        with open_output(plan, bundle) as target:
            skip = target.excludes
            screen.expect(lambda: count_files(inputs, lambda file: not skip(file)))
            found = classifier.predict_all(inputs, evidence=report is not None, skip=skip)
            with closing(found) as predictions:
                for prediction in predictions:
                    screen.show(target.add(prediction))
            screen.finish(writing=report is not None)
        screen.conclude(target.totals, report)
    counts = target.totals.counts
    if not counts.ok:
        raise typer.Exit(NONE_CLASSIFIED)
    # Slices outside the lungs, in series that were otherwise classified, count only with --strict.
    if counts.total - counts.ok if strict else target.totals.left_out:
        raise typer.Exit(SOME_LEFT_OUT)
