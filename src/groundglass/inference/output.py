"""Where predictions go as they come: nowhere, a single file, or a folder with pictures and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from groundglass.errors import PredictionError
from groundglass.files import atomic_path, printable, write_json
from groundglass.imaging.read import lying_in
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Totals
from groundglass.inference.writers import PredictionsWriter, appending, file_errors, json_line, read_predictions, table

if TYPE_CHECKING:
    from groundglass.inference.masks import MaskWriter

PREDICTIONS, TABLE, PARQUET = "predictions.jsonl", "predictions.csv", "predictions.parquet"
SERIES, OVERLAYS, MASKS, REPORT = "series.json", "overlays", "masks", "report.html"

_SERIES_FORMAT = 2
_FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_Key = tuple[str, int | None]  # of a slice: file and frame
# A folder of such a name is a slip of the hand.
_OTHER_FILES = frozenset({".json", ".html", ".htm", ".xlsx", ".xls", ".tsv", ".txt", ".zip", ".pdf", ".png"})


@dataclass(frozen=True)
class OutputPlan:
    """What shall be written, checked before a bundle is opened."""

    # a file that ends in `.jsonl`, `.csv` or `.parquet`, or a folder; None for nothing
    path: Path | None = None
    resume: bool = False  # continue what is there
    parquet: bool = False  # a folder gets `predictions.parquet` too
    masks: bool = False  # a folder gets lung and lesion masks too
    keep_identifiers: bool = False  # predictions say who is on a slice
    command: str = ""  # as it was given, for the report

    @property
    def file_format(self) -> str | None:
        """The format of a single file, None for a folder or nothing."""
        return None if self.path is None else _FORMATS.get(self.path.suffix.lower())

    @property
    def folder(self) -> Path | None:
        """The folder that gets everything, None for a single file or nothing."""
        return None if self.file_format else self.path

    @property
    def predictions(self) -> Path | None:
        """The JSON lines that a run can be resumed from, None where there are none."""
        if self.folder is not None:
            return self.folder / PREDICTIONS
        return self.path if self.file_format == "jsonl" else None

    def check(self) -> None:
        """Refuse what cannot be written, or would overwrite, by a PredictionError that says what to do."""
        if self.resume and self.predictions is None:
            raise PredictionError("--resume needs --output with a folder or a file that ends in .jsonl")
        if self.parquet and (self.path is None or self.file_format not in {None, "parquet"}):
            raise PredictionError("--parquet needs --output with a folder or a file that ends in .parquet")
        again = self.resume and self.folder is not None and (self.folder / PARQUET).exists()
        if (self.parquet or again or self.file_format == "parquet") and find_spec("pyarrow") is None:
            raise PredictionError("Parquet needs pyarrow; install it with `pip install '.[parquet]'` from a clone")
        if self.masks and self.folder is None:
            raise PredictionError("--masks needs --output with a folder")
        if self.path is not None:
            with file_errors(self.path, "opened"):
                fault = self._fault(self.path)
            if fault:
                raise PredictionError(f"{self.path}: {fault}")

    def _fault(self, path: Path) -> str | None:
        begun = self.predictions is not None and self.predictions.is_file()
        if begun and self.resume:
            return None
        if self.file_format is None and path.suffix.lower() in _OTHER_FILES:
            return "--output takes a folder, or a file that ends in .jsonl, .csv or .parquet"
        if path.is_file() and self.file_format is None:
            return "is a file; choose a folder, or a .jsonl, .csv or .parquet file"
        if path.exists() and (self.file_format is not None or any(path.iterdir())):
            advice = ", or resume it with --resume" if begun else ""
            return f"exists{'' if self.file_format else ' and is not empty'}; choose another name{advice}"
        return None


class Output:
    """Sums predictions up, those of an earlier run too, and writes each where the plan says."""

    def __init__(self, plan: OutputPlan, bundle: Bundle) -> None:
        self.totals = Totals(bundle.info.series)
        self.write: Callable[[Prediction], None] | None = None
        self.masks: MaskWriter | None = None
        self._plan, self._bundle, self._done = plan, bundle.id, set[_Key]()
        self._own = lying_in(plan.folder) if plan.folder else lambda _: False

    def excludes(self, file: str, frame: int | None = None) -> bool:
        """Whether a file, or a slice of one, needs no prediction: it has one already, or is a picture of one.

        A file of several slices is read again, for only its end shows whether it is done.
        """
        return self._own(file) or (printable(file), frame) in self._done

    def add(self, prediction: Prediction) -> Prediction:
        """Take one prediction; gives what counts, see :meth:`groundglass.inference.series.Totals.add`.

        The picture is saved before the line is appended: where there is a line, there is a picture.
        """
        prediction = self.totals.add(prediction)
        if self._plan.folder is not None and prediction.evidence is not None:
            from groundglass.inference.report import picture_stem, save_picture  # noqa: PLC0415

            overlay = f"{OVERLAYS}/{picture_stem(prediction.file, prediction.frame)}.svg"
            save_picture(prediction.evidence, self._plan.folder / overlay)
            prediction = replace(prediction, overlay=overlay)
        if self._plan.path is not None and self.write is not None:
            with file_errors(self._plan.predictions or self._plan.path):
                self.write(prediction)
        if self.masks is not None:
            self.masks.add(prediction)
        return prediction

    def resume(self, path: Path) -> None:
        """Take the predictions of an earlier run, and leave in its file all but what is tried again.

        That is what failed or lacks its masks.
        """
        lacking = set[_Key]()
        if self._plan.masks:
            from groundglass.inference.masks import without_masks  # noqa: PLC0415 - the report's

            lacking |= {(each.file, each.frame) for each in without_masks(path.parent / MASKS, read_predictions(path))}
        with appending(path), file_errors(path), atomic_path(path) as kept, kept.open("wb") as target:
            for prediction in read_predictions(path):
                self._check_alike(path, prediction)
                key = (prediction.file, prediction.frame)
                if prediction.status is not Status.FAILED and key not in lacking:
                    self._done.add(key)
                    target.write(json_line(self.totals.add(prediction)))

    def _check_alike(self, path: Path, prediction: Prediction) -> None:
        """Runs of different kinds are not mixed."""
        if prediction.bundle != self._bundle:
            of = f"of bundle {prediction.bundle}, not of {self._bundle}; resume with that bundle"
            raise PredictionError(f"{path}: these predictions are {of}, or choose another output")
        if (prediction.patient is not None) != self._plan.keep_identifiers:
            made = f"made {'with' if prediction.patient else 'without'} --keep-identifiers; resume in the same way"
            raise PredictionError(f"{path}: these predictions were {made}, or choose another output")


@contextmanager
def open_output(plan: OutputPlan, bundle: Bundle) -> Iterator[Output]:
    """Open what predictions go to; it is complete when the block has ended without an error.

    After an error or an interruption JSON lines and folders hold what had been predicted, ready to be resumed;
    CSV and Parquet files do not appear at all.

    Raises:
        PredictionError: nothing can be written there, or what is there cannot be resumed.
    """
    output, lines, folder = Output(plan, bundle), plan.predictions, plan.folder
    with ExitStack() as stack:
        if lines is not None:
            if lines.exists():
                output.resume(lines)
            output.write = PredictionsWriter("jsonl", stack.enter_context(appending(lines))).write
        elif plan.path is not None:
            output.write = stack.enter_context(table(plan.path, plan.keep_identifiers)).write
        if folder is not None:
            with file_errors(folder / OVERLAYS):
                (folder / OVERLAYS).mkdir(exist_ok=True)
        if folder is not None and plan.masks:
            from groundglass.inference.masks import MaskWriter  # noqa: PLC0415 - the report's

            output.masks = MaskWriter(folder / MASKS, bundle)
        yield output
        if output.masks is not None:
            output.masks.finish()
    if folder is not None:
        with file_errors(folder):
            _complete(plan, folder, bundle, output.totals)


def _complete(plan: OutputPlan, folder: Path, bundle: Bundle, totals: Totals) -> None:
    """Write what follows from the predictions."""
    from groundglass.inference.report import write_report  # noqa: PLC0415 - brings Jinja

    for name in (TABLE, PARQUET) if plan.parquet or (folder / PARQUET).exists() else (TABLE,):
        with table(folder / name, plan.keep_identifiers) as writer:
            for prediction in read_predictions(folder / PREDICTIONS):
                writer.write(prediction)
    about = {"format": _SERIES_FORMAT, "bundle": bundle.id, "series_score": SERIES_SCORE}
    write_json(folder / SERIES, {**about, "series": [summary.to_dict() for summary in totals.summaries()]})
    write_report(folder / REPORT, folder / PREDICTIONS, folder / OVERLAYS, bundle, totals, plan.command)
