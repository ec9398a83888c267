"""``groundglass predict``: what a trained model says of slices, one finding each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from groundglass.errors import PredictionError

if TYPE_CHECKING:
    from groundglass.cluster.predict import RayClassifier
    from groundglass.inference.bundle import Precision
    from groundglass.inference.classifier import Classifier
    from groundglass.inference.finding import Finding
    from groundglass.inference.findings_file import Format
    from groundglass.inference.output import Output
    from groundglass.inference.study import Counts

SOME_LEFT_OUT, NONE_CLASSIFIED, INTERRUPTED = 3, 4, 130
"""Exit statuses beside 0, all slices classified, and 2, an error that the user can mend."""

_PATHS_TOLD = 8


class ModelPrecision(str, Enum):
    """Number formats a bundle's model may come in."""

    FP32 = "fp32"
    INT8 = "int8"


class Engine(str, Enum):
    """What works through the files."""

    LOCAL = "local"
    RAY = "ray"


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...", help="Files, folders, zips, members (a.zip!b.png), 'patterns/**', manifest CSVs."
    ),
]
BundlePath = Annotated[
    Path | None, typer.Option("--bundle", help="Trained model; the installed one unless given.")
]
AsParquet = Annotated[
    bool, typer.Option("--parquet", help="Send Parquet to a pipe; with a folder: findings.parquet too.")
]
OutputPath = Annotated[
    Path | None,
    typer.Option("--output", help="A .jsonl, .csv or .parquet file; or a folder: pictures and a report too."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip what --output has, try again what failed.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: one per core but one.")]
Chosen = Annotated[
    ModelPrecision | None, typer.Option("--precision", help="Which model; the smaller one unless given.")
]
KeepIdentifiers = Annotated[
    bool, typer.Option("--keep-identifiers", help="Add patient name, id and birth date to the findings.")
]
EngineName = Annotated[
    Engine, typer.Option("--engine", help="local; or ray: many processes, also of a cluster, no pictures.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes of --engine ray; one per core unless given.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to join: host:port, ray://host:port or auto.")
]


def predict(
    paths: Paths,
    bundle: BundlePath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_parquet: AsParquet = False,
    output: OutputPath = None,
    resume: Resume = False,
    threads: Threads = 0,
    engine: EngineName = Engine.LOCAL,
    workers: Workers = None,
    address: Address = None,
    precision: Chosen = None,
    keep_identifiers: KeepIdentifiers = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table, summary or progress bar.")] = False,
) -> None:
    """Classify CT slices: COVID, NonCOVID or uncertain. Research use only, never a diagnosis.

    Exit status: 0 all classified, 2 usage or bundle error, 3 some refused or failed, 4 none classified.
    """
    from groundglass.cli.screen import Screen  # noqa: PLC0415 - slow to import
    from groundglass.inference.bundle import Bundle  # noqa: PLC0415
    from groundglass.inference.output import OutputPlan, open_output  # noqa: PLC0415
    from groundglass.inference.paths import count_files, expand  # noqa: PLC0415

    _check_engine(engine, threads, workers, address)
    printed = _printed(as_json, as_csv, as_parquet and output is None)
    inputs = expand(paths)
    beside = as_parquet and output is not None
    plan = OutputPlan(output, resume, beside, keep_identifiers, inputs, _command(paths))
    plan.check()
    chosen = cast("Precision | None", precision and precision.value)
    opened = Bundle.open(bundle, chosen, threads)
    classifier: Classifier | RayClassifier
    if engine is Engine.RAY:
        from groundglass.cluster.predict import RayClassifier  # noqa: PLC0415

        classifier = RayClassifier(opened, workers, address, keep_identifiers)
    else:
        from groundglass.inference.classifier import Classifier  # noqa: PLC0415

        classifier = Classifier(opened, threads, keep_identifiers=keep_identifiers)
    with (
        _interruptible(plan.findings),
        Screen(printed, quiet=quiet, keep_identifiers=keep_identifiers) as screen,
    ):
        with open_output(plan, opened) as target:
            screen.expect(lambda: count_files(inputs, lambda file: not target.excludes(file)))
            with closing(_find(classifier, inputs, target)) as findings:
                for finding in findings:
                    target.add(finding)
                    screen.show(finding)
            screen.finish(writing=plan.report is not None)
        screen.conclude(target.studies, plan.report)
    status = exit_status(target.studies.counts)
    if status:
        raise typer.Exit(status)


def _command(paths: Sequence[str]) -> str:
    """The command as it was given, of many paths the first few."""
    if len(paths) <= _PATHS_TOLD:
        return shlex.join(["groundglass", *sys.argv[1:]])
    told = [*paths[:_PATHS_TOLD], f"... {len(paths) - _PATHS_TOLD} more paths ..."]
    options = [word for word in sys.argv[2:] if word not in set(paths)]
    return shlex.join(["groundglass", "predict", *options]) + " " + " ".join(told)


def _printed(as_json: bool, as_csv: bool, as_parquet: bool) -> Format | None:
    """What goes to standard output; None for the table."""
    wanted: dict[Format, bool] = {"jsonl": as_json, "csv": as_csv, "parquet": as_parquet}
    chosen = [name for name, asked in wanted.items() if asked]
    if len(chosen) > 1:
        raise PredictionError("--json, --csv and --parquet cannot all be printed; choose one")
    if chosen == ["parquet"] and sys.stdout.isatty():
        raise PredictionError("Parquet is no text: send it to a pipe or a file, or name a file by --output")
    return chosen[0] if chosen else None


def _check_engine(engine: Engine, threads: int, workers: int | None, address: str | None) -> None:
    if engine is Engine.LOCAL and not (workers is None and address is None):
        raise PredictionError("--workers and --address go with --engine ray")
    if engine is Engine.RAY and threads:
        raise PredictionError("--threads does not go with --engine ray, whose --workers have one thread each")


def _find(
    classifier: Classifier | RayClassifier, inputs: Sequence[Path], target: Output
) -> Generator[Finding, None, None]:
    yield from classifier.predict_all(
        inputs, evidence=target.wants_evidence, skip=target.done.has_slice, skip_file=target.excludes
    )


def exit_status(counts: Counts) -> int:
    """0 where all slices were classified, 3 where some were not, 4 where none was."""
    if counts.ok == 0:
        return NONE_CLASSIFIED
    return 0 if counts.ok == counts.total else SOME_LEFT_OUT


@contextmanager
def _interruptible(findings: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = "" if findings is None else f"; what was found is in {findings}, go on with --resume"
        typer.echo(f"interrupted{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
