"""The report of an evaluation: measures, figures, worst errors and identity, as files and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from sklearn import metrics as sklearn

from groundglass.data.manifest import read_record
from groundglass.evaluation.bootstrap import Band, Resampling
from groundglass.evaluation.evaluate import BEYOND, Applicability, Evaluation, TrainedRun
from groundglass.evaluation.metrics import BINS, LOWER_IS_BETTER, THRESHOLD, TITLES, Estimate, reliability
from groundglass.evaluation.segmentation import SEGMENTATION_TITLES, CountedEstimate
from groundglass.files import counted, printable, write_json, write_text
from groundglass.inference.prediction import COVID, NON_COVID, lesion_mask
from groundglass.reporting import figures
from groundglass.reporting.figures import inline_svg, svg
from groundglass.reporting.overlay import Layers
from groundglass.reporting.report import (
    FigurePanel,
    GalleryGroup,
    GalleryItem,
    MeasureRow,
    Report,
    data_uri,
    render,
)

GALLERY = 6
"""Slices shown of each kind of error."""

_HEADLINES = frozenset({"accuracy", "auc", "recall", "specificity"})
_DICE = frozenset({"lung_dice", "lesion_dice"})
_BASELINE = (
    " File format alone: a baseline of format, pixel mode and suffix, cross-validated over the same patients."
)
_UNDEFINED_WORTH_A_NOTE = 0.001


def write_report(run: TrainedRun, evaluation: Evaluation, output: Path) -> None:
    """Write ``predictions.csv``, ``report.html`` and ``metrics.json``.

    Args:
        run: the trained network; it predicts the slices of the gallery once more for their lesion maps.
        evaluation: what came out.
        output: folder for the files, made where it is missing.
    """
    write_text(output / "predictions.csv", _csv(_predictions(evaluation)))
    write_text(output / "report.html", render(_build_report(run, evaluation)))
    write_json(output / "metrics.json", evaluation.document)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _predictions(evaluation: Evaluation) -> Iterator[Sequence[str]]:
    """One row per slice."""
    part = evaluation.part
    yield ["file", "label", "patient_id", "source", "split", "probability", "logit", "prediction"]
    rows = zip(part.records, *_labels(evaluation), evaluation.probability, evaluation.logit, strict=True)
    for record, label, called, probability, logit in rows:
        whence = printable(record.patient_id), printable(record.source), record.split or ""
        yield [part.file(record), label, *whence, f"{probability:.9g}", f"{logit:.9g}", called]


def _labels(evaluation: Evaluation) -> Iterator[NDArray[np.str_]]:
    """What the slices are labelled and what they are called, shape (N,) each."""
    for covid in (evaluation.part.label == 1, evaluation.called):
        yield np.where(covid, COVID, NON_COVID)


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """The measures, and for a bundle whether it can be relied on for these slices, for a terminal."""
    measured, confusion = evaluation.measured, evaluation.confusion
    yield _table(
        f"{evaluation.part.title}: {len(evaluation.part.records)} slices of {measured.patients} patients",
        _measure_rows(evaluation),
        f"COVID right {confusion.true_positive}, missed {confusion.false_negative}; "
        f"NonCOVID right {confusion.true_negative}, false alarms {confusion.false_positive}. "
        f"Intervals: bootstrap over patients, {measured.resamples} resamples. {_follows(evaluation)}",
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


def _row(title: str, estimate: Estimate, note: str = "", **more: Any) -> MeasureRow:
    return MeasureRow(title, estimate.value, estimate.low, estimate.high, note, **more)


def _in_words(estimate: Estimate) -> str:
    """``0.812 (0.700–0.901)``, without what is not known."""
    if estimate.value is None:
        return ""
    to = " to " if (estimate.low or 0) < 0 else "–"
    bounds = "" if estimate.low is None else f" ({estimate.low:.3f}{to}{estimate.high:.3f})"
    return f"{estimate.value:.3f}{bounds}".replace("-", "−")


def _measure_rows(evaluation: Evaluation) -> list[MeasureRow]:
    """The measures in their order, with intervals and notes, and the AUC by patients after that by slices."""
    rows, resamples, baseline = [], evaluation.measured.resamples, evaluation.file_format
    for name, each in evaluation.measured.metrics.items():
        notes = ["lower is better"] if name in LOWER_IS_BETTER else []
        if name == "calibration_error" and each.low is not None:
            notes.append("resampling raises it, so its interval lies high")
        if reason := each.reason or each.interval_reason:
            notes.append(reason)
        elif each.undefined_resamples > _UNDEFINED_WORTH_A_NOTE * resamples:
            notes.append(f"undefined in {each.undefined_resamples} of {resamples} resamples, left out")
        beside = _in_words(baseline.metrics[name]) if baseline and baseline.formats > 1 else ""
        rows.append(_row(TITLES[name], each, "; ".join(notes), headline=name in _HEADLINES, beside=beside))
        if name == "auc" and (patients := evaluation.by_patient) is not None:
            note = f"series score of each of {counted(patients.slices, 'patient')}"
            rows.append(_row("AUC by patients", patients.estimate, note, headline=True))
    return rows


def _follows(evaluation: Evaluation) -> str:
    """What the figures come to, in one sentence."""
    auc, baseline = evaluation.measured.metrics["auc"], evaluation.file_format
    if auc.value is None:
        return f"How well the labels are told apart cannot be said: {auc.reason}."
    if baseline is None or baseline.auc_difference.low is None or baseline.auc_difference.high is None:
        return f"The AUC is {_in_words(auc)}; too few patients to say what the file format alone gives away."
    if baseline.formats == 1:
        return f"The AUC is {_in_words(auc)}; all slices have one file format, which gives nothing away."
    seen = f"AUC {auc.value:.3f} against {baseline.metrics['auc'].value:.3f}"
    gap = f"difference {_in_words(baseline.auc_difference)}"
    if baseline.auc_difference.low > 0:
        return f"The network tells the labels apart better than the file format alone does ({seen}, {gap})."
    worse = "worse" if baseline.auc_difference.high < 0 else "no better, as far as these slices can show,"
    return (
        f"The network tells the labels apart {worse} than the file format alone does ({seen}, {gap}): these slices "
        "do not show that it recognises the disease."
    )


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


def _fit_words(fit: Applicability) -> str:
    far = "how far they lie from the training data is not known"
    if fit.beyond_95 is not None and fit.beyond_95.value is not None:
        beyond = f"{100 * fit.beyond_95.value:.0f} % lie far from the training data"
        far = f"{beyond}, where 5 % are expected of data like it"
    return f"Of these slices the input check refuses {100 * (fit.refused.value or 0.0):.0f} %, and {far}."


def _segmentation_rows(segmentation: Mapping[str, CountedEstimate]) -> list[MeasureRow]:
    return [
        _row(SEGMENTATION_TITLES[name], each.estimate, counted(each.slices, "slice"), headline=name in _DICE)
        for name, each in segmentation.items()
        if each.slices
    ]


def _build_report(run: TrainedRun, evaluation: Evaluation) -> Report:
    part, measured, fit = evaluation.part, evaluation.measured, evaluation.applicability
    rows, covid = _measure_rows(evaluation), int(part.label.sum())
    return Report(
        title=f"{run.info['recipe']} on {part.title}",
        subtitle=(
            f"{len(part.records)} slices of {measured.patients} patients: {covid} COVID, "
            f"{len(part.records) - covid} NonCOVID. COVID is the positive class."
        ),
        warnings=evaluation.warnings,
        follows=_follows(evaluation),
        measures=rows,
        measures_note=(
            f"A slice is called COVID where its probability is at least {THRESHOLD:g}. 95 % intervals: "
            f"percentiles of {measured.resamples:,} bootstrap resamples over patients, each drawn with all "
            f"their slices (seed {measured.seed}; {measured.one_class} resamples held one class only)."
            f"{_BASELINE if any(row.beside for row in rows) else ''}"
        ),
        fit=[] if fit is None else _fit_rows(fit),
        fit_words="" if fit is None else _fit_words(fit),
        segmentation=_segmentation_rows(evaluation.segmentation),
        figures=[*_curves(evaluation), *_calls(evaluation), *_training(run)],
        gallery=list(_gallery(run, evaluation)),
        facts=list(_facts(evaluation.document)),
        command=evaluation.document["command"],
    )


def _panel(
    name: str, title: str, figure: Figure, words: str, columns: Mapping[str, Iterable[Any]]
) -> FigurePanel:
    """A figure, to be downloaded as SVG and its numbers as CSV."""
    drawn, table = svg(figure), _csv([list(columns), *zip_longest(*columns.values())])
    files = {"svg": data_uri(drawn, "image/svg+xml"), "csv": data_uri(table, "text/csv")}
    return FigurePanel(name, title, inline_svg(drawn, name), words, files)


def _curves(evaluation: Evaluation) -> Iterator[FigurePanel]:
    """ROC and precision-recall, with bootstrap bands where patients can be resampled; nothing for one label."""
    measured, label, probability = evaluation.measured, evaluation.part.label, evaluation.probability
    value = {name: each.value for name, each in measured.metrics.items()}
    auc, average, recall, specificity = (
        value[name] for name in ("auc", "average_precision", "recall", "specificity")
    )
    if auc is None or average is None or recall is None or specificity is None:
        return
    bands: tuple[Band | None, Band | None] = (None, None)
    shaded = ""
    if measured.metrics["auc"].low is not None:
        resampling = Resampling(evaluation.part.patient, measured.resamples, measured.seed)
        bands, shaded = (
            resampling.bands(label, probability),
            " Shaded: pointwise 95 % interval over patients.",
        )
    false, true, _ = sklearn.roc_curve(label, probability, drop_intermediate=False)
    precise, recalled, _ = sklearn.precision_recall_curve(label, probability)
    chance, precision = float(label.mean()), value["precision"]
    for name, title, words, axes, curve, legend, guess, point, band in (
        (
            "roc", "ROC curve",
            f"At the threshold {THRESHOLD:g} the network finds {recall:.1%} of the COVID slices and takes "
            f"{1 - specificity:.1%} of the NonCOVID slices for COVID. Area under the curve {auc:.3f}.",
            ("False positive rate (1 − specificity)", "True positive rate (recall)"), (false, true),
            f"AUC {auc:.3f}", (0.0, 1.0), (1 - specificity, recall), bands[0],
        ),
        (
            "precision-recall", "Precision and recall",
            f"Average precision {average:.3f}; {chance:.1%} of the slices are COVID.",
            ("Recall (share of COVID slices found)", "Precision (share of COVID calls right)"), (recalled, precise),
            f"average precision {average:.3f}", (chance, chance),
            None if precision is None else (recall, precision), bands[1],
        ),
    ):  # fmt: skip
        along, height = (axis.partition(" (")[0].lower() for axis in axes)
        columns = {along: curve[0], height: curve[1]}
        if band is not None:
            columns |= dict(zip((f"{along} of the band", "low", "high"), band, strict=True))
        figure = figures.curve_figure(curve, legend, guess, point, axes, band)
        yield _panel(name, title, figure, words + shaded, columns)


def _calls(evaluation: Evaluation) -> Iterator[FigurePanel]:
    """Reliability, confusion, probabilities by label."""
    label, probability = evaluation.part.label, evaluation.probability
    right, alarms, spared, missed = asdict(evaluation.confusion).values()
    bins = [asdict(each) for each in reliability(label, probability)]
    points = [tuple(each.values())[3:] for each in bins if each["count"]]
    error = evaluation.measured.metrics["calibration_error"].value or 0.0
    yield _panel(
        "reliability", "Reliability",
        figures.reliability_figure(points, [each["count"] for each in bins]),
        f"Below the diagonal probabilities are too high, above too low. Expected calibration error {error:.3f} over "
        f"{BINS} bins of equal width; below, slices per bin.",
        {name: [each[name] for each in bins] for name in bins[0]},
    )  # fmt: skip
    yield _panel(
        "confusion", "Confusion matrix", figures.confusion_figure([[right, missed], [alarms, spared]]),
        f"{right} COVID slices called COVID, {missed} missed; {spared} NonCOVID slices called NonCOVID, {alarms} "
        "called COVID.",
        {"label": [COVID, NON_COVID], "called COVID": [right, alarms], "called NonCOVID": [missed, spared]},
    )  # fmt: skip
    yield _panel(
        "histogram", "Probabilities by label",
        figures.histogram_figure(probability[label == 1], probability[label == 0], THRESHOLD),
        "Slices labelled COVID count upwards, NonCOVID downwards; those on the wrong side of the threshold are the "
        "errors.", {"label": label, "probability": probability},
    )  # fmt: skip


def _training(run: TrainedRun) -> Iterator[FigurePanel]:
    history, selected = run.history(), run.info.get("selected_epoch")
    for name, curves, label in (
        ("loss", {"train_loss": "training", "val_loss": "validation"}, "Loss (cross-entropy, nats)"),
        ("validation", {"val_auc": "AUC", "val_accuracy": "accuracy"}, "Measure on the validation part"),
    ):
        figure = figures.history_figure(history, curves, label, selected)
        if figure is not None:
            words = f"After each epoch: {label}; {' and '.join(curves.values())}."
            columns = {key: [row.get(key) for row in history] for key in ("epoch", *curves)}
            yield _panel(name, f"Training: {name}", figure, words, columns)


def _gallery(run: TrainedRun, evaluation: Evaluation) -> Iterator[GalleryGroup]:
    """The most confident errors of both kinds, with what was found on them."""
    part, covid = evaluation.part, evaluation.part.label == 1
    label, called = _labels(evaluation)
    for title, wrong in (
        ("Missed: labelled COVID, called NonCOVID", covid & ~evaluation.called),
        ("False alarms: labelled NonCOVID, called COVID", ~covid & evaluation.called),
    ):
        errors = np.flatnonzero(wrong)
        if not len(errors):
            continue
        worst, items = errors[np.argsort(-np.abs(evaluation.logit[errors]), kind="stable")][:GALLERY], []
        few = len(worst) == len(errors)
        shown = f"all {len(errors)}" if few else f"the {len(worst)} most confident of {len(errors)}"
        slices = [read_record(part.records[index]) for index in worst]
        outputs = run.predict(slices)
        for number, index in enumerate(worst):
            record, cut = part.records[index], outputs.cuts[number]
            facts = [
                f"Probability of COVID {evaluation.probability[index]:.3f} (logit {evaluation.logit[index]:+.2f}); "
                f"called {called[index]}, labelled {label[index]}",
                f"Patient {record.patient_id if record.patient_known else 'not known'}, source {record.source}",
            ]
            lesions = np.zeros_like(cut.lungs)
            if outputs.lesion_map is not None:
                lesions = lesion_mask(outputs.lesion_map[number], cut)
            layers = Layers.of(slices[number].pixels, cut.lungs, lesions, slices[number].origin.spacing)
            items.append(GalleryItem(part.file(record), facts, layers=layers))
        yield GalleryGroup(title, f"Shown: {shown}.", items)


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for section in ("run", "data"):
        for name, value in document[section].items():
            if value not in (None, {}, ""):
                yield f"{section}: {name.replace('_', ' ')}", _words(value)
    times = document["evaluations_of_these_slices"]
    count = f"{'once' if times == 1 else f'{times} times'}, this time included"
    yield "these slices evaluated with this run", count
    yield "evaluated", f"{document['time']} in {document['seconds']:.1f} s"
    yield "versions", _words(document["versions"])


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
