"""``groundglass predict``: one prediction for every slice, as a table, as data, or as a report."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from groundglass.errors import PredictionError
from groundglass.files import one_line
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.series import SeriesSummary, Totals
from groundglass.inference.writers import Format, PredictionsWriter, predictions_writer

if TYPE_CHECKING:
    from groundglass.cluster.ray import RayClassifier
    from groundglass.inference.classifier import Classifier
    from groundglass.inference.output import Output

SOME_LEFT_OUT, NONE_CLASSIFIED, INTERRUPTED = 3, 4, 130
"""Exit statuses beside 0, every lung slice classified, and 2, an error that the user can mend."""

Part = tuple[str, str]
"""Text and its style."""

_GAP = "  "
_POSITION, _STATUS, _PROBABILITY, _LABEL = 9, 7, 5, 9
_FIXED = _POSITION + _STATUS + _PROBABILITY + _LABEL + 5 * len(_GAP)
_LEAST_FILE, _LEAST_NOTE = 12, 15
_STYLES = {"COVID": "bold dark_orange", "uncertain": "yellow", "refused": "magenta", "failed": "bold red"}
_LONGEST_REASON = 1000
_SERIES = 28
_PATHS_SHOWN = 8
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


@dataclass
class PredictionsTable:
    """Lays predictions out.

    Attributes:
        width: columns of the terminal; None where the output is no terminal: then nothing is shortened or
            wrapped, and the first column is as wide as the longest name so far.
        unicode: whether the output can hold more than ASCII.
    """

    width: int | None
    unicode: bool = True
    _longest: int = 4

    def header(self, first: Prediction) -> list[Part]:
        """The names of the columns, above the first prediction."""
        if self.width is None:
            self._longest = max(self._longest, cell_len(first.file))
        names = ("File", "Position", "Status", "Prob.", "Label", "Flags")
        return [(self._line(*names), "bold")]

    def row(self, prediction: Prediction) -> Iterator[list[Part]]:
        """The lines of one prediction; more than one where a reason is long."""
        file = one_line(prediction.file, len(prediction.file) + 1)
        if self.width is None:
            self._longest = max(self._longest, cell_len(file))
        file = shorten_middle(file, self._file_width, unicode=self.unicode)
        start = [self._cell(file, self._file_width), self._cell(where(prediction), _POSITION)]
        status = prediction.status.value
        if prediction.status is Status.OK:
            label = str(prediction.label)
            probability = "" if prediction.probability is None else f"{prediction.probability:.3f}"
            cells = [*start, self._cell(status, _STATUS), self._cell(probability, _PROBABILITY)]
            flags = f"{_GAP}{', '.join(prediction.flags)}" if prediction.flags else ""
            label = label if not flags else self._cell(label, _LABEL)
            yield [(_GAP.join(cells) + _GAP, ""), (label, _STYLES.get(label.strip(), "")), (flags, "")]
            return
        head = _GAP.join(start) + _GAP
        reason = self._wrapped(one_line(prediction.reason or "", _LONGEST_REASON))
        yield [(head, ""), (self._cell(status, _STATUS), _STYLES[status]), (_GAP + reason[0], "")]
        for line in reason[1:]:
            yield [(" " * (cell_len(head) + _STATUS) + _GAP + line, "")]

    @property
    def _note_width(self) -> int:
        return max(_LEAST_NOTE, round(0.4 * ((self.width or 0) - _FIXED)))

    @property
    def _file_width(self) -> int:
        if self.width is None:
            return self._longest
        return max(_LEAST_FILE, self.width - _FIXED - self._note_width)

    def _line(self, file: str, position: str, status: str, probability: str, label: str, note: str) -> str:
        widths = (self._file_width, _POSITION, _STATUS, _PROBABILITY, _LABEL)
        cells = zip((file, position, status, probability, label), widths, strict=True)
        return _GAP.join([*(self._cell(text, width) for text, width in cells), note])

    def _cell(self, text: str, width: int) -> str:
        return text if cell_len(text) > width else set_cell_size(text, width)

    def _wrapped(self, reason: str) -> list[str]:
        if self.width is None:
            return [reason]
        room = _PROBABILITY + _LABEL + self._note_width + 2 * len(_GAP)
        return textwrap.wrap(reason, room) or [""]


def where(prediction: Prediction) -> str:
    """Position in mm, else the frame's number, else nothing."""
    if prediction.position is not None:
        return _millimetres(prediction.position)
    return "" if prediction.frame is None else f"#{prediction.frame}"


def _millimetres(position: float) -> str:
    digits = 1 if abs(position) < 1000 else 0
    return f"{round(position, digits) + 0.0:.{digits}f} mm"


def shorten_middle(text: str, width: int, *, unicode: bool = True) -> str:
    """Text of at most so many terminal columns; more of its end is kept than of its beginning."""
    if cell_len(text) <= width:
        return text
    mark = "…" if unicode else ".."
    head, tail = "", ""
    for character in text:
        if cell_len(head + character) > (width - len(mark)) // 3:
            break
        head += character
    for character in reversed(text):
        if cell_len(head) + len(mark) + cell_len(character + tail) > width:
            break
        tail = character + tail
    return f"{head}{mark}{tail}"


def series_lines(summary: SeriesSummary, width: int | None, *, unicode: bool) -> Iterator[str]:
    """What is printed of a series: counts, series score, curve."""
    place, uid = one_line(summary.place, len(summary.place) + 1), one_line(summary.series or "", 64)
    if width is not None:
        uid = shorten_middle(uid, _SERIES, unicode=unicode)
        place = shorten_middle(place, width - len(", series ") - _SERIES, unicode=unicode)
    yield f"{place}, series {uid}" if uid else place
    yield f"  {summary.in_words}"
    if summary.series_score is None:
        return
    yield f"  series score {summary.series_score:.3f} (no diagnosis)"
    curve = summary.curve
    if len(curve.at) < 2:
        return
    first, last = (
        _millimetres(end) if curve.axis == "mm" else f"{curve.axis} {end:g}"
        for end in (curve.at[0], curve.at[-1])
    )
    line = _sparkline(curve.at, curve.probability, unicode=unicode)
    yield f"  {first} {line} {last}, highest {max(curve.probability):.3f}"


def _sparkline(
    at: Sequence[float], probability: Sequence[float], width: int = 40, *, unicode: bool = True
) -> str:
    """A curve as one line of text: one character per slice, or per stretch where there are more of them.

    Args:
        at: where each slice lies, not falling.
        probability: 0 to 1; of a stretch the mean is shown, and nothing where no slice lies in it.
        width: most characters.
        unicode: block characters; otherwise ASCII.
    """
    values: list[float | None] = list(probability)
    if len(values) > width:
        values = _means(at, probability, width)
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    return "".join(
        " " if value is None else blocks[min(int(max(value, 0.0) * len(blocks)), len(blocks) - 1)]
        for value in values
    )


def _means(at: Sequence[float], probability: Sequence[float], width: int) -> list[float | None]:
    first, span = at[0], at[-1] - at[0]
    sums, counts = [0.0] * width, [0] * width
    for index, value in enumerate(probability):
        share = (at[index] - first) / span if span > 0 else index / len(probability)
        place = min(int(share * width), width - 1)
        sums[place] += value
        counts[place] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


class Screen:
    """Shows predictions as they come, and holds none of them.

    The progress bar is drawn only where a terminal shows nothing else but the table, so that no output is
    disturbed by it.

    Args:
        printed: format on standard output; None for the table.
        quiet: print nothing but predictions in the format requested.
        keep_identifiers: predictions say who is on a slice.
    """

    def __init__(
        self, printed: Format | None, *, quiet: bool = False, keep_identifiers: bool = False
    ) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        on_terminal = sys.stdout.isatty()
        self._quiet = quiet
        self._console = Console() if on_terminal else Console(stderr=True)
        self._width = self._console.width if on_terminal else None
        self._unicode = _holds_unicode(sys.stdout.encoding)
        self._table = None
        self._writer: PredictionsWriter | None = None
        if printed is not None:
            self._writer = predictions_writer(printed, sys.stdout.buffer, keep_identifiers=keep_identifiers)
        elif not quiet:
            self._table = PredictionsTable(self._width, self._unicode)
        watched = self._console.is_terminal and not (printed is not None and on_terminal)
        self._progress = _progress(self._console) if watched and not quiet else None
        self._task = TaskID(0)
        self._file: str | None = None
        self._files = self._slices = 0
        self._start = time.monotonic()

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, count: Callable[[], int]) -> None:
        """Start the progress bar; ``count`` says for how many files, and is called only where one is shown."""
        self._start = time.monotonic()
        if self._progress is not None:
            self._task = self._progress.add_task("Reading", total=count(), rate="")
            self._progress.start()

    def show(self, prediction: Prediction) -> None:
        """Show one prediction."""
        if self._writer is not None:
            self._writer.write(prediction)
            sys.stdout.buffer.flush()
        elif self._table is not None:
            if self._slices == 0:
                self._print(self._table.header(prediction))
            for line in self._table.row(prediction):
                self._print(line)
        self._slices += 1
        if self._progress is not None:
            self._advance(self._progress, prediction)

    def finish(self, *, writing: bool) -> None:
        """All predictions have come; ``writing`` says whether a report follows, which takes a while."""
        if self._writer is not None:
            self._writer.close()
            sys.stdout.buffer.flush()
        if self._progress is not None:
            words = "Writing the report" if writing else "Done"
            self._progress.update(self._task, description=words, completed=self._files, total=self._files)

    def conclude(self, totals: Totals, report: Path | None) -> None:
        """Show what all predictions say together: below the table, else on standard error."""
        if self._progress is not None:
            self._progress.stop()
        if self._quiet:
            return
        total = f"{totals.in_words}. Research use only, no diagnosis."
        if self._table is None:
            sys.stderr.write(f"{total}\n")
            return
        if self._slices:
            self._print([])
        for summary in totals.summaries():
            for line in series_lines(summary, self._width, unicode=self._unicode):
                self._print([(line, "")])
        self._print([(total, "bold")])
        if report is not None:
            self._print([(f"Report: {report}", "")])

    def _advance(self, progress: Progress, prediction: Prediction) -> None:
        if prediction.file != self._file:
            self._file, self._files = prediction.file, self._files + 1
        seconds = max(time.monotonic() - self._start, 1e-3)
        progress.update(self._task, completed=self._files, rate=f"{self._slices / seconds:.1f} slices/s")

    def _print(self, line: Sequence[Part]) -> None:
        if self._width is None:
            sys.stdout.write("".join(text for text, _ in line).rstrip() + "\n")
            sys.stdout.flush()
        else:
            self._console.print(Text.assemble(*line), soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files {task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _holds_unicode(encoding: str | None) -> bool:
    try:
        "▁…".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


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
    Path | None, typer.Option("--bundle", help="Trained model; default: the installed one.")
]
AsParquet = Annotated[
    bool, typer.Option("--parquet", help="Send Parquet to a pipe; with a folder: predictions.parquet too.")
]
OutputPath = Annotated[
    Path | None,
    typer.Option("--output", help="A .jsonl, .csv or .parquet file; or a folder: pictures and a report too."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip what --output has, retry what failed.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: one per core but one.")]
KeepIdentifiers = Annotated[
    bool, typer.Option("--keep-identifiers", help="Add patient name, id and birth date to the predictions.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit status 3 for slices outside the lungs (neck, abdomen) as well.")
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
    keep_identifiers: KeepIdentifiers = False,
    strict: Strict = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table, summary or progress bar.")] = False,
) -> None:
    """Classify CT slices: COVID, NonCOVID or uncertain. Research use only, never a diagnosis.

    Exit status: 0 every lung slice classified, 2 usage or bundle error, 3 some refused or failed, 4 none classified.
    """
    from groundglass.inference.bundle import Bundle
    from groundglass.inference.inputs import count_files, expand
    from groundglass.inference.output import OutputPlan, open_output

    _check_engine(engine, threads, workers, address)
    printed = _printed(as_json, as_csv, as_parquet and output is None)
    inputs = expand(paths)
    beside = as_parquet and output is not None
    plan = OutputPlan(output, resume, beside, keep_identifiers, inputs, _command(paths))
    plan.check()
    opened = Bundle.open(bundle, threads)
    classifier: Classifier | RayClassifier
    if engine is Engine.RAY:
        from groundglass.cluster.ray import RayClassifier

        classifier = RayClassifier(opened, workers, address, keep_identifiers)
    else:
        from groundglass.inference.classifier import Classifier

        classifier = Classifier(opened, threads, keep_identifiers=keep_identifiers)
    with (
        _interruptible(plan.predictions),
        Screen(printed, quiet=quiet, keep_identifiers=keep_identifiers) as screen,
    ):
        with open_output(plan, opened) as target:
            screen.expect(lambda: count_files(inputs, lambda file: not target.excludes(file)))
            with closing(_predictions(classifier, inputs, target)) as predictions:
                for prediction in predictions:
                    target.add(prediction)
                    screen.show(prediction)
            screen.finish(writing=plan.report is not None)
        screen.conclude(target.totals, plan.report)
    status = exit_status(target.totals, strict=strict)
    if status:
        raise typer.Exit(status)


def _command(paths: Sequence[str]) -> str:
    """The command as it was given, of many paths the first few."""
    if len(paths) <= _PATHS_SHOWN:
        return shlex.join(["groundglass", *sys.argv[1:]])
    shown = [*paths[:_PATHS_SHOWN], f"... {len(paths) - _PATHS_SHOWN} more paths ..."]
    options = [word for word in sys.argv[2:] if word not in set(paths)]
    return shlex.join(["groundglass", "predict", *options]) + " " + " ".join(shown)


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


def _predictions(
    classifier: Classifier | RayClassifier, inputs: Sequence[Path], target: Output
) -> Generator[Prediction, None, None]:
    yield from classifier.predict_all(
        inputs, evidence=target.wants_evidence, skip=target.done.has_slice, skip_file=target.excludes
    )


def exit_status(totals: Totals, *, strict: bool) -> int:
    """0 where every lung slice was classified, 3 where some were not, 4 where none was.

    Slices outside the lungs, in series that were otherwise classified, count only with ``strict``.
    """
    counts = totals.counts
    if counts.ok == 0:
        return NONE_CLASSIFIED
    left_out = counts.total - counts.ok if strict else totals.left_out
    return SOME_LEFT_OUT if left_out else 0


@contextmanager
def _interruptible(predictions: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = (
            ""
            if predictions is None
            else f"; predictions so far are in {predictions}, continue with --resume"
        )
        typer.echo(f"interrupted{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
