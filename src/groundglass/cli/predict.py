"""``groundglass predict``: one prediction for every slice, as a table, as data, or as a report."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from groundglass.cli.options import INTERRUPTED, BundlePath, Device, EngineThreads
from groundglass.errors import PredictionError
from groundglass.files import one_line, usable_cores
from groundglass.imaging.source import is_stream
from groundglass.inference.prediction import COPY, Prediction, Status
from groundglass.inference.series import Curve, SeriesSummary, Totals
from groundglass.inference.writers import Format, PredictionsWriter

if TYPE_CHECKING:
    from groundglass.cluster.ray import RayClassifier
    from groundglass.inference.classifier import Classifier

SOME_LEFT_OUT, NONE_CLASSIFIED = 3, 4
"""Exit statuses beside 0, every lung slice classified, 2, an error that the user can mend, and 130."""

Part = tuple[str, str]
"""Text and its style."""

_GAP = "  "
_POSITION, _STATUS, _PROBABILITY, _LABEL = 9, 7, 5, 9
_FIXED = _POSITION + _STATUS + _PROBABILITY + _LABEL + 5 * len(_GAP)
_LEAST_FILE, _LEAST_NOTE = 12, 19
_STYLES = {"COVID": "bold dark_orange", "uncertain": "yellow", "refused": "magenta", "failed": "bold red"}
_LONGEST_REASON, _SERIES, _PATHS_SHOWN, _CURVE = 1000, 28, 8, 40


@dataclass
class PredictionsTable:
    """Lays predictions out. On a terminal what was refused for a reason that was given before is summed up at the end.

    Attributes:
        width: columns of the terminal; None where the output is no terminal: then nothing is shortened or
            wrapped, and the first column is as wide as the longest name so far.
        unicode: whether the output can hold more than ASCII.
    """

    width: int | None
    unicode: bool = True
    _longest: int = 4
    _reasons: dict[str, int] = field(default_factory=dict)

    def header(self, first: Prediction) -> list[Part]:
        """The names of the columns, above the first prediction."""
        self._longest = max(self._longest, cell_len(first.file))
        return [(self._line("File", "Position", "Status", "Prob.", "Label") + _GAP + "Flags", "bold")]

    def row(self, prediction: Prediction) -> Iterator[list[Part]]:
        """The lines of one prediction; more than one where a reason is long."""
        file = one_line(prediction.file, len(prediction.file) + 1)
        self._longest = max(self._longest, cell_len(file))
        file = shorten_middle(file, self._file_width, unicode=self.unicode)
        status, label = prediction.status.value, str(prediction.label)
        if prediction.status is Status.OK:
            probability = "" if prediction.probability is None else f"{prediction.probability:.3f}"
            start = self._line(file, where(prediction), status, probability) + _GAP
            first, *rest = self._wrapped(", ".join(prediction.flags), self._note_width)
            shown = _cell(label, _LABEL) + _GAP if first else label
            yield [(start, ""), (shown, _STYLES.get(label, "")), (first, "")]
            for line in rest:
                yield [(" " * (cell_len(start) + _LABEL) + _GAP + line, "")]
            return
        said = f"{status}: {COPY if prediction.is_copy else _without_numbers(prediction.reason or '')}"
        self._reasons[said] = self._reasons.get(said, 0) + 1
        if self.width is not None and self._reasons[said] > 1:
            return
        head = self._line(file, where(prediction)) + _GAP
        reason = one_line(prediction.reason or "", _LONGEST_REASON)
        room = _PROBABILITY + _LABEL + self._note_width + 2 * len(_GAP)
        first, *rest = self._wrapped(reason, room)
        yield [(head, ""), (_cell(status, _STATUS), _STYLES[status]), (_GAP + first, "")]
        for line in rest:
            yield [(" " * (cell_len(head) + _STATUS) + _GAP + line, "")]

    def repeated(self) -> Iterator[str]:
        """On a terminal, how often each reason was given that was given more than once."""
        for said, count in self._reasons.items():
            if self.width is not None and count > 1:
                yield f"{count:,} {said}"

    def _wrapped(self, text: str, width: int) -> list[str]:
        """Lines of whole words; a word that is longer than a line is shortened in the middle."""
        if self.width is None:
            return [text]
        words = (shorten_middle(word, width, unicode=self.unicode) for word in text.split())
        return textwrap.wrap(" ".join(words), width, break_long_words=False, break_on_hyphens=False) or [""]

    @property
    def _note_width(self) -> int:
        return max(_LEAST_NOTE, round(0.4 * ((self.width or 0) - _FIXED)))

    @property
    def _file_width(self) -> int:
        if self.width is None:
            return self._longest
        return max(_LEAST_FILE, self.width - _FIXED - self._note_width)

    def _line(self, *cells: str) -> str:
        widths = (self._file_width, _POSITION, _STATUS, _PROBABILITY, _LABEL)
        return _GAP.join(_cell(text, width) for text, width in zip(cells, widths, strict=False))


def _without_numbers(reason: str) -> str:
    """A reason without the measurements that differ from slice to slice."""
    return re.sub(r"\d[\d.,]*", "…", re.sub(r" \([^)]*\d[^)]*\)", "", one_line(reason, _LONGEST_REASON)))


def _cell(text: str, width: int) -> str:
    return text if cell_len(text) > width else set_cell_size(text, width)


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
    opacity = "" if summary.opacity is None else f"; {summary.opacity.in_words}"
    label = f"{summary.label}, " if summary.label else ""
    between = " ({:.3f} to {:.3f})".format(*summary.interval) if summary.interval else ""
    yield f"  {label}series score {summary.series_score:.3f}{between}{opacity}; no diagnosis"
    curve = summary.curve
    if len(curve.at) > 1:
        ends = (curve.at[0], curve.at[-1])
        first, last = (_millimetres(end) if curve.axis == "mm" else f"{curve.axis} {end:g}" for end in ends)
        line = _sparkline(curve, "▁▂▃▄▅▆▇█" if unicode else "_.:-=+*#")
        yield f"  {first} {line} {last}, highest {max(curve.probability):.3f}"


def _sparkline(curve: Curve, blocks: str) -> str:
    """One character per slice, or per stretch where there are more than 40: of its mean, blank without a slice."""
    stretches: list[list[float]] = [[value] for value in curve.probability]
    if len(stretches) > _CURVE:
        first, span, count = curve.at[0], curve.at[-1] - curve.at[0], len(stretches)
        stretches = [[] for _ in range(_CURVE)]
        for index, (at, value) in enumerate(zip(curve.at, curve.probability, strict=True)):
            share = (at - first) / span if span > 0 else index / count
            stretches[min(int(share * _CURVE), _CURVE - 1)].append(value)
    means = [sum(values) / len(values) if values else None for values in stretches]
    highest = len(blocks) - 1
    return "".join(" " if mean is None else blocks[min(int(mean * len(blocks)), highest)] for mean in means)


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
        self._table = None if printed or quiet else PredictionsTable(self._width, self._unicode)
        self._writer: PredictionsWriter | None = None
        if printed is not None:
            self._writer = PredictionsWriter(printed, sys.stdout.buffer, keep_identifiers=keep_identifiers)
        watched = self._console.is_terminal and not (printed is not None and on_terminal)
        self._progress = _progress(self._console) if watched and not quiet else None
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
            self._progress.add_task("Reading", total=count(), rate="")
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
        if prediction.file != self._file:
            self._file, self._files = prediction.file, self._files + 1
        if self._progress is not None:
            rate = self._slices / max(time.monotonic() - self._start, 1e-3)
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=self._files, rate=f"{rate:.1f} slices/s")

    def finish(self, *, writing: bool) -> None:
        """All predictions have come; ``writing`` says whether a report follows, which takes a while."""
        if self._writer is not None:
            self._writer.close()
            sys.stdout.buffer.flush()
        if self._progress is not None:
            words, task = "Writing the report" if writing else "Done", self._progress.task_ids[0]
            self._progress.update(task, description=words, completed=self._files, total=self._files)

    def conclude(self, totals: Totals, report: Path | None) -> None:
        """Show what all predictions say together: below the table, else on standard error."""
        if self._progress is not None:
            self._progress.stop()
        total = f"{totals.in_words}. Research use only, no diagnosis."
        if self._table is None:
            with suppress(OSError):  # what is said of the predictions changes nothing about them
                sys.stderr.write("" if self._quiet else f"{total}\n")
            return
        if self._slices:
            self._print([])
        for text in self._table.repeated():
            self._print_wrapped(text)
        for summary in totals.summaries():
            for text in series_lines(summary, self._width, unicode=self._unicode):
                self._print_wrapped(text)
        self._print_wrapped(total, "bold")
        if report is not None:
            self._print([(f"Report: {report}", "")])

    def _print_wrapped(self, text: str, style: str = "") -> None:
        """Print a line, on a terminal as several of whole words where it is too long."""
        lines = [text]
        if self._width is not None and cell_len(text) > self._width:
            indent = " " * (len(text) - len(text.lstrip()))
            whole = textwrap.TextWrapper(
                self._width, indent, indent + "  ", break_long_words=False, break_on_hyphens=False
            )
            lines = whole.wrap(text.strip())
        for line in lines:
            self._print([(line, style)])

    def _print(self, line: Sequence[Part]) -> None:
        if self._width is None:
            sys.stdout.write("".join(text for text, _ in line).rstrip() + "\n")
            sys.stdout.flush()
        else:
            self._console.print(Text.assemble(*line), soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    text, rate = TextColumn("{task.description}"), TextColumn("files {task.fields[rate]}")
    columns = (text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(compact=True))
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def _holds_unicode(encoding: str | None) -> bool:
    try:
        return bool("▁…".encode(encoding or "ascii"))
    except (UnicodeEncodeError, LookupError):
        return False


class Engine(str, Enum):
    """What works through the files."""

    LOCAL = "local"
    RAY = "ray"


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="Files, folders, zips, members (a.zip!b.png), 'patterns/**', manifest CSVs.",
    ),
]
AsParquet = Annotated[
    bool,
    typer.Option("--parquet", help="Send Parquet to a pipe; with a folder: predictions.parquet too."),
]
OutputPath = Annotated[
    Path | None,
    typer.Option("--output", help="A .jsonl, .csv or .parquet file; or a folder: pictures and a report too."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip what --output has, retry what failed.")]
Masks = Annotated[
    bool,
    typer.Option(
        "--masks",
        help="With a folder: lung and lesion masks; PNG, NIfTI, or DICOM SEG, which names the patient.",
    ),
]
EngineName = Annotated[
    Engine,
    typer.Option("--engine", help="local; or ray: many processes, also of a cluster, no pictures."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes of --engine ray; one per core unless given."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to join: host:port, ray://host:port or auto.")
]
KeepIdentifiers = Annotated[
    bool,
    typer.Option("--keep-identifiers", help="Add patient name, id and birth date to the predictions."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Exit status 3 for slices outside the lungs (neck, abdomen) as well."),
]


def predict(
    paths: Paths,
    bundle: BundlePath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_parquet: AsParquet = False,
    output: OutputPath = None,
    masks: Masks = False,
    resume: Resume = False,
    threads: EngineThreads = 0,
    device: Device = "cpu",
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
    import cv2

    from groundglass.inference.bundle import Bundle
    from groundglass.inference.inputs import count_files, expand
    from groundglass.inference.output import OutputPlan, open_output

    _check_engine(paths, engine, threads, workers, address, masks)
    printed = _printed(as_json, as_csv, as_parquet and output is None)
    inputs = expand(paths)
    beside = as_parquet and output is not None
    plan = OutputPlan(output, resume, beside, masks, keep_identifiers, inputs, _command(paths))
    plan.check()
    cv2.setNumThreads(threads or usable_cores())
    opened = Bundle.open(bundle, threads, device)
    classifier: Classifier | RayClassifier
    if engine is Engine.RAY:
        from groundglass.cluster.ray import RayClassifier

        classifier = RayClassifier(opened, workers, address, keep_identifiers)
    else:
        from groundglass.inference.classifier import Classifier

        classifier = Classifier(opened, keep_identifiers=keep_identifiers)
    screen = Screen(printed, quiet=quiet, keep_identifiers=keep_identifiers)
    with _interruptible(plan.predictions), screen:
        with open_output(plan, opened) as target:
            screen.expect(lambda: count_files(inputs, lambda file: not target.excludes(file)))
            skip, evidence = target.done.has_slice, target.wants_evidence
            found = classifier.predict_all(inputs, evidence=evidence, skip=skip, skip_file=target.excludes)
            with closing(found) as predictions:
                for prediction in predictions:
                    screen.show(target.add(prediction))
            screen.finish(writing=plan.report is not None)
        screen.conclude(target.totals, plan.report)
    if status := exit_status(target.totals, strict=strict):
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
    chosen = [name for name, requested in wanted.items() if requested]
    if len(chosen) > 1:
        raise PredictionError("--json, --csv and --parquet cannot all be printed; choose one")
    if chosen == ["parquet"] and sys.stdout.isatty():
        raise PredictionError("Parquet is no text: send it to a pipe or a file, or name a file by --output")
    return chosen[0] if chosen else None


def _check_engine(
    paths: Sequence[str], engine: Engine, threads: int, workers: int | None, address: str | None, masks: bool
) -> None:
    if engine is Engine.LOCAL and not (workers is None and address is None):
        raise PredictionError("--workers and --address go with --engine ray")
    if engine is Engine.RAY and masks:
        raise PredictionError("--masks does not go with --engine ray, which brings no pictures")
    if engine is Engine.RAY and any(map(is_stream, paths)):
        raise PredictionError(
            "pipes and standard input do not go with --engine ray, whose workers cannot read them"
        )
    if engine is Engine.RAY and threads:
        raise PredictionError("--threads does not go with --engine ray, whose --workers have one thread each")


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
        kept = f"; predictions so far are in {predictions}, continue with --resume" if predictions else ""
        typer.echo(f"interrupted{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
