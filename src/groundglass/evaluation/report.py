"""The report of an evaluation: measures, figures, worst errors and identity, as files and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from sklearn import metrics as sklearn

from groundglass.data.manifest import read_record
from groundglass.evaluation.evaluate import BEYOND, Applicability, Evaluation, TrainedRun, metrics_document
from groundglass.evaluation.metrics import BINS, LOWER_IS_BETTER, THRESHOLD, TITLES, Estimate, reliability
from groundglass.evaluation.segmentation import SEGMENTATION_TITLES, CountedEstimate
from groundglass.files import counted, printable, write_json, write_text
from groundglass.inference.prediction import COVID, NON_COVID, lesion_mask
from groundglass.reporting import figures
from groundglass.reporting.figures import inline_svg
from groundglass.reporting.html import (
    FigurePanel,
    GalleryGroup,
    GalleryItem,
    MeasureRow,
    Report,
    render,
)
from groundglass.reporting.overlay import Layers

GALLERY = 6
"""Slices shown of each kind of error."""

_HEADLINES = frozenset({"accuracy", "auc", "recall", "specificity"})
_UNDEFINED_WORTH_A_NOTE = 0.001


def write_report(run: TrainedRun, evaluation: Evaluation, output: Path) -> None:
    """Write ``predictions.csv``, ``report.html`` and ``metrics.json``.

    Args:
        run: the trained network; it predicts the slices of the gallery once more for their lesion maps.
        evaluation: what came out.
        output: folder for the files, made where it is missing.
    """
    write_text(output / "predictions.csv", predictions_csv(evaluation))
    write_text(output / "report.html", render(_build_report(run, evaluation)))
    write_json(output / "metrics.json", metrics_document(run, evaluation))


def predictions_csv(evaluation: Evaluation) -> str:
    """One line per slice: file, label, patient_id, source, split, probability, logit, prediction."""
    text, part = io.StringIO(), evaluation.part
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "patient_id", "source", "split", "probability", "logit", "prediction"])
    for index, record in enumerate(part.records):
        numbers = [f"{values[index]:.9g}" for values in (evaluation.probability, evaluation.logit)]
        whence = printable(record.patient_id), printable(record.source), record.split or ""
        label, called = _label(part.label[index] == 1), _label(evaluation.called[index])
        writer.writerow([part.file(record), label, *whence, *numbers, called])
    return text.getvalue()


def _label(covid: np.bool_) -> str:
    return COVID if covid else NON_COVID


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """The measures, and for a bundle whether it can be relied on for these slices, for a terminal."""
    measured, confusion = evaluation.measured, evaluation.confusion
    yield _table(
        f"{evaluation.part.title}: {len(evaluation.part.records)} slices of {measured.patients} patients",
        measure_rows(evaluation),
        f"COVID right {confusion.true_positive}, missed {confusion.false_negative}; "
        f"NonCOVID right {confusion.true_negative}, false alarms {confusion.false_positive}. "
        f"Intervals: bootstrap over patients, {measured.resamples} resamples.",
    )
    if evaluation.applicability is not None:
        yield _table("Whether the bundle fits these slices", _fit_rows(evaluation.applicability))
    if evaluation.segmentation:
        yield _table("Lungs and lesions against their masks", _segmentation_rows(evaluation.segmentation))


def _table(title: str, rows: list[MeasureRow], caption: str | None = None) -> Table:
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("Measure")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("Note", style="dim")
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.3f}"
        interval = "–" if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"
        table.add_row(row.title, value, interval, row.note)
    return table


def _row(title: str, estimate: Estimate, note: str = "", *, headline: bool = False) -> MeasureRow:
    return MeasureRow(title, estimate.value, estimate.low, estimate.high, note, headline)


def measure_rows(evaluation: Evaluation) -> list[MeasureRow]:
    """The measures in their order, with intervals and notes."""
    rows, resamples = [], evaluation.measured.resamples
    for name, each in evaluation.measured.metrics.items():
        notes = ["lower is better"] if name in LOWER_IS_BETTER else []
        if name == "calibration_error" and each.low is not None:
            notes.append("resampling raises it, so its interval lies high")
        if reason := each.reason or each.interval_reason:
            notes.append(reason)
        elif each.undefined_resamples > _UNDEFINED_WORTH_A_NOTE * resamples:
            notes.append(f"undefined in {each.undefined_resamples} of {resamples} resamples, left out")
        rows.append(_row(TITLES[name], each, "; ".join(notes), headline=name in _HEADLINES))
    return rows


def _fit_rows(applicability: Applicability) -> list[MeasureRow]:
    sets = applicability.prediction_sets
    reasons = "; ".join(f"{reason}: {count}" for reason, count in applicability.reasons.items())
    nominal = f"nominal coverage {sets.nominal_coverage:g}"
    unknown = "the bundle holds no reference of its training data"
    beyond = applicability.beyond_95
    return [
        _row("Refused by the input check", applicability.refused, reasons),
        _row("Far from the training data", beyond or Estimate(None), BEYOND if beyond else unknown),
        *(
            _row(f"Prediction sets that hold the label, {name} slices", share, nominal)
            for name, share in sets.coverage.items()
        ),
        _row("Uncertain", sets.uncertain, "prediction set of both labels or none"),
        _row("Accuracy where certain", sets.accuracy_where_certain),
    ]


def _segmentation_rows(segmentation: Mapping[str, CountedEstimate]) -> list[MeasureRow]:
    return [
        _row(SEGMENTATION_TITLES[name], each.estimate, counted(each.slices, "slice"))
        for name, each in segmentation.items()
    ]


def _build_report(run: TrainedRun, evaluation: Evaluation) -> Report:
    part, measured = evaluation.part, evaluation.measured
    covid = int(part.label.sum())
    return Report(
        title=f"{run.recipe.name} on {part.title}",
        subtitle=(
            f"{len(part.records)} slices of {measured.patients} patients: {covid} COVID, "
            f"{len(part.records) - covid} NonCOVID. COVID is the positive class."
        ),
        warnings=evaluation.warnings,
        measures=measure_rows(evaluation),
        measures_note=(
            f"A slice is called COVID where its probability is at least {THRESHOLD:g}. 95 % intervals: "
            f"percentiles of {measured.resamples:,} bootstrap resamples over patients, each drawn with all "
            f"their slices (seed {measured.seed}; {measured.one_class} resamples held one class only)."
        ),
        fit=[] if evaluation.applicability is None else _fit_rows(evaluation.applicability),
        segmentation=_segmentation_rows(evaluation.segmentation),
        figures=_panels(run, evaluation),
        gallery=list(_gallery(run, evaluation)),
        gallery_note=("The most confident wrong calls, with the lungs and lesions that were found."),
        facts=_facts(run, evaluation),
        command=evaluation.command,
    )


def _panel(
    name: str, title: str, figure: Figure | None, words: str, width: Literal["third", "half"] = "third"
) -> FigurePanel:
    return FigurePanel(name, title, None if figure is None else inline_svg(figure, name), words, width)


def _panels(run: TrainedRun, evaluation: Evaluation) -> list[FigurePanel]:
    label, probability, confusion = evaluation.part.label, evaluation.probability, evaluation.confusion
    right, missed = confusion.true_positive, confusion.false_negative
    alarms, spared = confusion.false_positive, confusion.true_negative
    counts = (
        f"{right} COVID slices called COVID, {missed} missed; "
        f"{spared} NonCOVID slices called NonCOVID, {alarms} called COVID."
    )
    histogram = figures.histogram_figure(probability[label == 1], probability[label == 0], THRESHOLD)
    sides = (
        "Slices labelled COVID count upwards, NonCOVID downwards; those on the wrong side of the "
        "threshold are the errors."
    )
    return [
        _roc(evaluation),
        _precision_recall(evaluation),
        _panel(
            "confusion",
            "Confusion matrix",
            figures.confusion_figure([[right, missed], [alarms, spared]]),
            counts,
        ),
        _panel("histogram", "Probabilities by label", histogram, sides, "half"),
        _reliability(evaluation),
        *_training(run),
    ]


def _roc(evaluation: Evaluation) -> FigurePanel:
    metrics = evaluation.measured.metrics
    auc, recall, specificity = metrics["auc"], metrics["recall"].value, metrics["specificity"].value
    if auc.value is None or recall is None or specificity is None:
        return _panel("roc", "ROC curve", None, f"Not drawn: {auc.reason}.")
    x, y, _ = sklearn.roc_curve(evaluation.part.label, evaluation.probability, drop_intermediate=False)
    words = (
        f"At the threshold {THRESHOLD:g} the network finds {recall:.1%} of the COVID slices and takes "
        f"{1 - specificity:.1%} of the NonCOVID slices for COVID. Area under the curve {auc.value:.3f}."
    )
    names = "False positive rate (1 − specificity)", "True positive rate (recall)"
    point = (1 - specificity, recall)
    drawn = figures.curve_figure((x, y), f"AUC {auc.value:.3f}", (0.0, 1.0), point, names)
    return _panel("roc", "ROC curve", drawn, words)


def _precision_recall(evaluation: Evaluation) -> FigurePanel:
    title, name, label = "Precision and recall", "precision-recall", evaluation.part.label
    metrics = evaluation.measured.metrics
    average, recall, precision = (metrics[key] for key in ("average_precision", "recall", "precision"))
    if average.value is None or recall.value is None:
        return _panel(name, title, None, f"Not drawn: {average.reason}.")
    y, x, _ = sklearn.precision_recall_curve(label, evaluation.probability)
    point = None if precision.value is None else (recall.value, precision.value)
    names = "Recall (share of COVID slices found)", "Precision (share of COVID calls right)"
    chance, legend = float(label.mean()), f"average precision {average.value:.3f}"
    drawn = figures.curve_figure((x, y), legend, (chance, chance), point, names)
    words = f"Average precision {average.value:.3f}; {chance:.1%} of the slices are COVID."
    return _panel(name, title, drawn, words)


def _reliability(evaluation: Evaluation) -> FigurePanel:
    points = [
        (each.mean_probability, each.observed, each.count)
        for each in reliability(evaluation.part.label, evaluation.probability)
        if each.mean_probability is not None and each.observed is not None
    ]
    error = evaluation.measured.metrics["calibration_error"].value or 0.0
    words = (
        f"Points below the diagonal: probabilities too high; above: too low. Numbers are slices in each of "
        f"the {len(points)} filled of {BINS} equal-width bins. Expected calibration error {error:.3f}."
    )
    return _panel("reliability", "Reliability", figures.reliability_figure(points, error), words, "half")


def _training(run: TrainedRun) -> Iterator[FigurePanel]:
    history, selected = run.history(), run.info.get("selected_epoch")
    for name, curves, label in (
        ("loss", {"train_loss": "training", "val_loss": "validation"}, "Loss (cross-entropy, nats)"),
        ("validation", {"val_auc": "AUC", "val_accuracy": "accuracy"}, "Measure on the validation part"),
    ):
        figure = figures.history_figure(history, curves, label, selected)
        words = f"After each epoch: {label}; {' and '.join(curves.values())}."
        missing = "Not drawn: the run holds no such history of its training."
        yield _panel(name, f"Training: {name}", figure, words if figure else missing, "half")


def _gallery(run: TrainedRun, evaluation: Evaluation) -> Iterator[GalleryGroup]:
    label, called = evaluation.part.label == 1, evaluation.called
    for title, wrong in (
        ("Missed: labelled COVID, called NonCOVID", label & ~called),
        ("False alarms: labelled NonCOVID, called COVID", ~label & called),
    ):
        errors = np.flatnonzero(wrong)
        worst = errors[np.argsort(-np.abs(evaluation.logit[errors]), kind="stable")][:GALLERY]
        few = len(worst) == len(errors)
        shown = f"all {len(errors)}" if few else f"the {len(worst)} most confident of {len(errors)}"
        words = f"Shown: {shown}." if len(errors) else "None."
        yield GalleryGroup(title, words, _items(run, evaluation, worst) if len(errors) else ())


def _items(run: TrainedRun, evaluation: Evaluation, indices: NDArray[np.intp]) -> list[GalleryItem]:
    part, items = evaluation.part, []
    slices = [read_record(part.records[index]) for index in indices]
    outputs = run.predict(slices)
    for number, index in enumerate(indices):
        record = part.records[index]
        patient = record.patient_id if record.patient_known else "not known"
        facts = [
            f"Probability of COVID {evaluation.probability[index]:.3f} (logit {evaluation.logit[index]:+.2f}); "
            f"called {_label(evaluation.called[index])}, labelled {_label(part.label[index] == 1)}",
            f"Patient {patient}, source {record.source}",
        ]
        cut, pixels = outputs.cuts[number], slices[number].pixels
        lesions = np.zeros_like(cut.lungs)
        if outputs.lesion_map is not None:
            lesions = lesion_mask(outputs.lesion_map[number], cut)
        items.append(GalleryItem(part.file(record), facts, layers=Layers.of(pixels, cut.lungs, lesions)))
    return items


def _facts(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, str]]:
    document, times = metrics_document(run, evaluation), evaluation.times_evaluated
    facts = [
        (f"{section}: {name.replace('_', ' ')}", _words(value))
        for section in ("run", "data")
        for name, value in document[section].items()
        if value not in (None, {}, "")
    ]
    count = f"{'once' if times == 1 else f'{times} times'}, this time included"
    return [
        *facts,
        ("these slices evaluated with this run", count),
        ("evaluated", f"{evaluation.time} in {evaluation.seconds:.1f} s"),
        ("versions", _words(document["versions"])),
    ]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
