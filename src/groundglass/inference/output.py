"""Where predictions go as they come: nowhere, a single file, or a folder with pictures and a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from groundglass.errors import PredictionError
from groundglass.files import atomic_path, write_json
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import Prediction
from groundglass.inference.series import SERIES_SCORE, Totals
from groundglass.inference.writers import (
    Done,
    Format,
    PredictionsWriter,
    appending,
    drop_overtaken,
    file_errors,
    load_done,
    read_predictions,
)

if TYPE_CHECKING:
    from groundglass.inference.masks import MaskWriter

PREDICTIONS, TABLE, PARQUET = "predictions.jsonl", "predictions.csv", "predictions.parquet"
SERIES, OVERLAYS, MASKS, REPORT = "series.json", "overlays", "masks", "report.html"

_SERIES_FORMAT = 2
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
# A folder of such a name is a slip of the hand.
_OTHER_FILES = frozenset({".json", ".html", ".htm", ".xlsx", ".xls", ".tsv", ".txt", ".zip", ".pdf", ".png"})


@dataclass(frozen=True)
class OutputPlan:
    """What shall be written, checked before a bundle is opened.

    Attributes:
        path: a file that ends in ``.jsonl``, ``.csv`` or ``.parquet``, or a folder; None for nothing.
        resume: continue what is there.
        parquet: a folder gets ``predictions.parquet`` too.
        masks: a folder gets lung and lesion masks too.
        keep_identifiers: predictions say who is on a slice.
        inputs: what is read, so that a folder in it does not read its own pictures.
        command: as it was given, for the report.
    """

    path: Path | None = None
    resume: bool = False
    parquet: bool = False
    masks: bool = False
    keep_identifiers: bool = False
    inputs: Sequence[Path] = ()
    command: str = ""

    @property
    def file_format(self) -> Format | None:
        """The format of a single file, None for a folder or nothing."""
        return None if self.path is None else _FORMATS.get(self.path.suffix.lower())

    @property
    def predictions(self) -> Path | None:
        """The JSON lines that a run can be resumed from, None where there are none."""
        if self.path is None or self.file_format in {"csv", "parquet"}:
            return None
        return self.path if self.file_format == "jsonl" else self.path / PREDICTIONS

    @property
    def report(self) -> Path | None:
        """The page that a folder gets."""
        return None if self.path is None or self.file_format is not None else self.path / REPORT

    def check(self) -> None:
        """Refuse what cannot be written, or would overwrite.

        Raises:
            PredictionError: saying what to do.
        """
        if self.resume and self.predictions is None:
            raise PredictionError("--resume needs --output with a folder or a file that ends in .jsonl")
        if self.masks and (self.path is None or self.file_format is not None):
            raise PredictionError("--masks needs --output with a folder")
        if self.path is None:
            return
        with file_errors(self.path, "opened"):
            fault = self._fault(self.path)
        if fault:
            raise PredictionError(f"{self.path}: {fault}")

    def _fault(self, path: Path) -> str | None:
        if self.parquet and self.file_format not in {None, "parquet"}:
            return "--parquet goes with a folder or a .parquet file"
        if self.file_format is None:
            return self._fault_of_folder(path)
        if path.is_dir():
            return "is a folder; choose another name for the file"
        advice = ", or resume it with --resume" if self.file_format == "jsonl" else ""
        taken = path.exists() and not self.resume
        return f"exists; remove it, choose another name{advice}" if taken else None

    def _fault_of_folder(self, path: Path) -> str | None:
        if path.suffix.lower() in _OTHER_FILES:
            return "--output takes a folder, or a file that ends in .jsonl, .csv or .parquet"
        if path.exists() and not path.is_dir():
            return "is a file; choose a folder, or a .jsonl, .csv or .parquet file"
        begun = (path / PREDICTIONS).is_file()
        if (begun and self.resume) or not (path.is_dir() and any(path.iterdir())):
            return None
        advice = ", or resume it with --resume" if begun else ""
        return f"the folder is not empty; choose another one{advice}"


class Output:
    """Sums predictions up, and writes each to one file where there is one.

    Attributes:
        done: what an earlier run has predicted.
        totals: what all predictions say together; those of earlier runs are in it when the output is closed.
        wants_evidence: predictions shall bring their pixels.
    """

    wants_evidence = False

    def __init__(
        self,
        totals: Totals,
        path: Path | None = None,
        writer: PredictionsWriter | None = None,
        done: Done | None = None,
    ) -> None:
        self.done = done or Done()
        self.totals = totals
        self._path, self._writer = path, writer

    def excludes(self, file: str) -> bool:
        """Whether a file needs no prediction: it has one already."""
        return self.done.has_file(file)

    def add(self, prediction: Prediction) -> Prediction:
        """Take one prediction; gives what counts, for a copy of an earlier slice says nothing else of it."""
        prediction = self.done.copies.checked(prediction)
        if self._path is not None and self._writer is not None:
            with file_errors(self._path):
                self._writer.write(prediction)
        self.totals.add(prediction)
        return prediction


class _Folder(Output):
    wants_evidence = True

    def __init__(
        self,
        totals: Totals,
        folder: Path,
        inputs: Sequence[Path],
        writer: PredictionsWriter,
        done: Done,
        masks: MaskWriter | None,
    ) -> None:
        super().__init__(totals, folder / PREDICTIONS, writer, done)
        self._masks = masks
        self._overlays = folder / OVERLAYS
        with file_errors(self._overlays):
            self._overlays.mkdir(exist_ok=True)
        self._own = Path(os.path.realpath(folder))
        self._within_inputs = any(self._own.is_relative_to(os.path.realpath(path)) for path in inputs)

    def excludes(self, file: str) -> bool:
        """Whether a file needs no prediction, or is a picture of one."""
        own = self._within_inputs and Path(os.path.realpath(file)).is_relative_to(self._own)
        return own or super().excludes(file)

    def add(self, prediction: Prediction) -> Prediction:
        """Save the picture, then append the line: where there is a line, there is a picture."""
        from groundglass.inference.report import picture_name, save_picture  # noqa: PLC0415

        prediction = self.done.copies.checked(prediction)
        if prediction.evidence is not None:
            name = picture_name(prediction.file, prediction.frame)
            save_picture(prediction.evidence, self._overlays / name)
            prediction = replace(prediction, overlay=f"{OVERLAYS}/{name}")
        prediction = super().add(prediction)
        if self._masks is not None:
            self._masks.add(prediction)
        return prediction


@contextmanager
def open_output(plan: OutputPlan, bundle: Bundle) -> Iterator[Output]:
    """Open what predictions go to; it is complete when the block has ended without an error.

    After an error or an interruption JSON lines and folders hold what had been predicted, ready to be resumed;
    CSV and Parquet files do not appear at all.

    Raises:
        PredictionError: nothing can be written there, or what is there cannot be resumed.
    """
    if plan.path is None:
        yield Output(Totals(bundle.series_rule))
    elif plan.predictions is not None:
        with _json_lines(plan, plan.path, plan.predictions, bundle) as output:
            yield output
    elif plan.file_format is not None:
        with _table(plan.path, plan.file_format, plan.keep_identifiers) as writer:
            yield Output(Totals(bundle.series_rule), plan.path, writer)


@contextmanager
def _table(path: Path, file_format: Format, keep_identifiers: bool) -> Iterator[PredictionsWriter]:
    with ExitStack() as stack:
        with file_errors(path):
            stream = stack.enter_context(stack.enter_context(atomic_path(path)).open("wb", buffering=0))
            writer = PredictionsWriter(file_format, stream, keep_identifiers=keep_identifiers)
        yield writer
        with file_errors(path):
            writer.close()
            stack.close()


@contextmanager
def _json_lines(plan: OutputPlan, path: Path, predictions: Path, bundle: Bundle) -> Iterator[Output]:
    done = Done()
    if predictions.exists():
        done = load_done(predictions, bundle.id, keep_identifiers=plan.keep_identifiers)
    is_folder = plan.file_format is None
    if is_folder and plan.parquet:
        with open(os.devnull, "wb") as nowhere:  # fail now where pyarrow is missing, not after hours
            PredictionsWriter("parquet", nowhere).close()
    with appending(predictions) as stream, ExitStack() as stack:
        writer = PredictionsWriter("jsonl", stream)
        output = Output(Totals(bundle.series_rule), predictions, writer, done)
        if is_folder:
            masks = stack.enter_context(_masks(path, bundle, done)) if plan.masks else None
            output = _Folder(output.totals, path, plan.inputs, writer, done, masks)
        yield output
    if done.predictions:
        drop_overtaken(predictions)
        output.totals = Totals(bundle.series_rule)
        for prediction in read_predictions(predictions):
            output.totals.add(prediction)
    if is_folder:
        with file_errors(path):
            _complete(path, plan, bundle, output.totals)


def _masks(folder: Path, bundle: Bundle, done: Done) -> MaskWriter:
    """A writer of masks; predictions of an earlier run without masks are not done."""
    from groundglass.inference.masks import MaskWriter, without_masks  # noqa: PLC0415 - brings the report's

    if done.predictions:
        for prediction in without_masks(folder / MASKS, read_predictions(folder / PREDICTIONS)):
            done.forget(prediction)
    return MaskWriter(folder / MASKS, bundle)


def _complete(folder: Path, plan: OutputPlan, bundle: Bundle, totals: Totals) -> None:
    """Write what follows from the predictions."""
    from groundglass.inference.report import write_report  # noqa: PLC0415 - brings Jinja

    for name in (TABLE, PARQUET) if plan.parquet else (TABLE,):
        with _table(folder / name, _FORMATS[Path(name).suffix], plan.keep_identifiers) as table:
            for prediction in read_predictions(folder / PREDICTIONS):
                table.write(prediction)
    series = [summary.to_dict() for summary in totals.summaries()]
    about = {"format": _SERIES_FORMAT, "bundle": bundle.id, "series_score": SERIES_SCORE}
    write_json(folder / SERIES, {**about, "series": series})
    write_report(folder / REPORT, folder / PREDICTIONS, folder / OVERLAYS, bundle, totals, plan.command)
