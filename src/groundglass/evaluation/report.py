"""Where slices lie among the held-out slices of the training data's sources.

How far data lie from the training data: the report's section and the terminal's tables.

Build the report of an evaluation: its rows, figures, gallery of worst errors and identity.

The table of measures on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sklearn import metrics as sklearn

from groundglass.data.manifest import Record, read_pixels
from groundglass.evaluation.bootstrap import Interval
from groundglass.evaluation.metrics import BINS, LOWER_IS_BETTER, THRESHOLD, TITLES, Metric, reliability
from groundglass.evaluation.part import TrainedRun
from groundglass.evaluation.result import (
    FAR_OUT,
    LIMITS,
    Distance,
    Evaluation,
    Placed,
    distance_rows,
    shift_rows,
    versions,
)
from groundglass.reporting import figures, overlay
from groundglass.reporting.figures import INK, LINE, MUTED, STYLE
from groundglass.reporting.html import (
    DistanceSection,
    FigurePanel,
    GalleryGroup,
    GalleryItem,
    GalleryPicture,
    MeasureRow,
    Report,
    TextTable,
)

_TITLE = "Distance from the training data"
_HEAD = ("Measure", "Value", "95 % interval", "If alike")
_SHIFT_TITLE = "Grey values before normalisation: median and 5 to 95 % range"
_SHIFT_HEAD = ("Statistic", "Training part", "These data", "Shift (SD)", "Outside the range")


def distance_section(distance: Distance) -> DistanceSection:
    """The section of the report."""
    return DistanceSection(
        distance.words,
        LIMITS,
        list(_tables(distance)),
        None if distance.placed is None else _panel(distance.placed),
    )


def distance_tables(distance: Distance) -> list[Table | Text]:
    """The same for a terminal: the tables, and below them the verdict."""
    tables: list[Table] = []
    for each in _tables(distance):
        table = Table(title=escape(each.caption), title_justify="left")
        for index, name in enumerate(each.head):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in each.rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    return [*tables, Text(f"{distance.words} {LIMITS}")]


def _tables(distance: Distance) -> Iterator[TextTable]:
    yield TextTable(_caption(distance), _HEAD, [astuple(row) for row in distance_rows(distance)])
    if shifts := shift_rows(distance):
        yield TextTable(_SHIFT_TITLE, _SHIFT_HEAD, [astuple(row) for row in shifts])


def _caption(distance: Distance) -> str:
    sentences = [_TITLE]
    if (placed := distance.placed) is not None:
        sentences.append(
            f"Beyond 95 %: farther from the {placed.training} training slices than 95 % of {placed.held_out} "
            "held-out slices of the same sources"
        )
    if distance.reasons:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in distance.reasons.items())
        sentences.append(f"Refused: {reasons}")
    return ". ".join(sentences) + "."


def _panel(placed: Placed) -> FigurePanel:
    places = placed.places
    words = (
        f"Each slice's distance from the {placed.training} training slices as a percentile among "
        f"{placed.held_out} held-out slices of the same sources. Slices like these fill every bin alike; "
        "strange ones gather at the right."
    )
    drawn = percentile_figure(places.embedding, places.grey, FAR_OUT[0])
    return FigurePanel("percentiles", "Where the slices lie", drawn, words, width="half")


GALLERY = 6
"""Slices shown of each kind of error."""

_HEADLINES = frozenset({"accuracy", "auc", "recall", "specificity"})
_SIDE = 320
_UNDEFINED_WORTH_A_NOTE = 0.001


def build_report(run: TrainedRun, evaluation: Evaluation) -> Report:
    """Everything that the report of an evaluation says.

    Args:
        run: the trained network; it predicts the slices of the gallery once more for their activation maps.
        evaluation: what came out.
    """
    part, bootstrap = evaluation.part, evaluation.bootstrap
    covid = int(part.label.sum())
    return Report(
        title=f"{run.recipe.name} on {part.title}",
        subtitle=(
            f"{len(part.records)} slices of {bootstrap.patients} patients: {covid} COVID, "
            f"{len(part.records) - covid} NonCOVID. COVID is the positive class."
        ),
        warnings=evaluation.warnings,
        measures=measure_rows(evaluation),
        measures_note=(
            f"A slice is called COVID where its probability is at least {THRESHOLD:g}. 95 % intervals: "
            f"percentiles of {bootstrap.resamples:,} bootstrap resamples over patients, each drawn with all "
            f"their slices (seed {bootstrap.seed}; {bootstrap.one_class} resamples held one class only)."
        ),
        figures=_panels(run, evaluation),
        gallery=_gallery(run, evaluation),
        gallery_note=(
            "The most confident wrong calls. Colours show how each place of the cropped slice moves the "
            "logit, scaled to the strongest place of that slice; they do not compare between slices."
        ),
        facts=_facts(run, evaluation),
        command=evaluation.command,
        distance=None if evaluation.distance is None else distance_section(evaluation.distance),
    )


def measure_rows(evaluation: Evaluation) -> list[MeasureRow]:
    """The measures in their order, with intervals and notes."""
    rows = []
    for name, metric in evaluation.metrics:
        interval = evaluation.bootstrap.intervals[name]
        note = _note(name, metric, interval, evaluation.bootstrap.resamples)
        rows.append(
            MeasureRow(TITLES[name], metric.value, interval.low, interval.high, note, name in _HEADLINES)
        )
    return rows


def _note(name: str, metric: Metric, interval: Interval, resamples: int) -> str:
    notes = ["lower is better"] if name in LOWER_IS_BETTER else []
    if name == "calibration_error" and interval.low is not None:
        notes.append("resampling raises it, so its interval lies high")
    if metric.reason:
        notes.append(metric.reason)
    elif interval.reason:
        notes.append(interval.reason)
    elif interval.undefined > _UNDEFINED_WORTH_A_NOTE * resamples:
        notes.append(f"undefined in {interval.undefined} of {resamples} resamples, left out")
    return "; ".join(notes)


def _panels(run: TrainedRun, evaluation: Evaluation) -> list[FigurePanel]:
    label, probability = evaluation.part.label, evaluation.probability
    confusion = evaluation.metrics.confusion
    counts = (
        f"{confusion.true_positive} COVID slices called COVID, {confusion.false_negative} missed; "
        f"{confusion.true_negative} NonCOVID slices called NonCOVID, {confusion.false_positive} called COVID."
    )
    return [
        _roc(evaluation),
        _precision_recall(evaluation),
        FigurePanel(
            "confusion",
            "Confusion matrix",
            figures.confusion_figure(
                true_positive=confusion.true_positive,
                false_positive=confusion.false_positive,
                true_negative=confusion.true_negative,
                false_negative=confusion.false_negative,
            ),
            counts,
        ),
        FigurePanel(
            "histogram",
            "Probabilities by label",
            figures.histogram_figure(probability[label == 1], probability[label == 0], THRESHOLD),
            "Slices labelled COVID count upwards, NonCOVID downwards; those on the wrong side of the "
            "threshold are the errors.",
            width="half",
        ),
        _reliability(evaluation),
        *_training(run),
    ]


def _training(run: TrainedRun) -> list[FigurePanel]:
    history, selected = run.history(), run.info.get("selected_epoch")
    loss = figures.loss_figure(history, selected)
    scores = figures.validation_figure(history, selected)
    loss_words = "Loss on the training and the validation part after each epoch."
    score_words = "How the network did on the validation part after each epoch."
    missing = "Not drawn: the run holds no such history of its training."
    return [
        FigurePanel("loss", "Training: loss", loss, loss_words if loss else missing, width="half"),
        FigurePanel(
            "validation", "Training: validation", scores, score_words if scores else missing, width="half"
        ),
    ]


def _roc(evaluation: Evaluation) -> FigurePanel:
    auc, recall = evaluation.metrics.auc, evaluation.metrics.recall
    specificity = evaluation.metrics.specificity
    if auc.value is None or recall.value is None or specificity.value is None:
        return FigurePanel("roc", "ROC curve", None, f"Not drawn: {auc.reason}.")
    steps = sklearn.roc_curve(evaluation.part.label, evaluation.probability, drop_intermediate=False)
    point = (1 - specificity.value, recall.value)
    words = (
        f"At the threshold {THRESHOLD:g} the network finds {recall.value:.1%} of the COVID slices and takes "
        f"{point[0]:.1%} of the NonCOVID slices for COVID. Area under the curve {auc.value:.3f}."
    )
    return FigurePanel("roc", "ROC curve", figures.roc_figure(steps[0], steps[1], auc.value, point), words)


def _precision_recall(evaluation: Evaluation) -> FigurePanel:
    title, name = "Precision and recall", "precision-recall"
    average, recall = evaluation.metrics.average_precision, evaluation.metrics.recall
    if average.value is None or recall.value is None:
        return FigurePanel(name, title, None, f"Not drawn: {average.reason}.")
    label = evaluation.part.label
    precision_steps, recall_steps, _ = sklearn.precision_recall_curve(label, evaluation.probability)
    precision = evaluation.metrics.precision.value
    point = None if precision is None else (recall.value, precision)
    drawn = figures.precision_recall_figure(
        recall_steps, precision_steps, average.value, float(label.mean()), point
    )
    words = f"Average precision {average.value:.3f}; {label.mean():.1%} of the slices are COVID."
    return FigurePanel(name, title, drawn, words)


def _reliability(evaluation: Evaluation) -> FigurePanel:
    bins = reliability(evaluation.part.label, evaluation.probability)
    filled = [(b.mean_probability, b.observed, b.count) for b in bins if b.mean_probability is not None]
    mean, observed, count = zip(*((m, o or 0.0, c) for m, o, c in filled), strict=True)
    error = evaluation.metrics.calibration_error.value or 0.0
    words = (
        f"Points below the diagonal: probabilities too high; above: too low. Numbers are slices in each of "
        f"the {len(filled)} filled of {BINS} equal-width bins. Expected calibration error {error:.3f}."
    )
    drawn = figures.reliability_figure(mean, observed, count, error)
    return FigurePanel("reliability", "Reliability", drawn, words, width="half")


def _gallery(run: TrainedRun, evaluation: Evaluation) -> list[GalleryGroup]:
    label, called = evaluation.part.label == 1, evaluation.called
    return [
        _group(run, evaluation, "Missed: labelled COVID, called NonCOVID", np.flatnonzero(label & ~called)),
        _group(
            run, evaluation, "False alarms: labelled NonCOVID, called COVID", np.flatnonzero(~label & called)
        ),
    ]


def _group(run: TrainedRun, evaluation: Evaluation, title: str, errors: NDArray[np.intp]) -> GalleryGroup:
    if not len(errors):
        return GalleryGroup(title, "None.", ())
    distance = np.abs(evaluation.logit[errors])
    worst = errors[np.argsort(-distance, kind="stable")][:GALLERY]
    items = _items(run, evaluation, worst)
    shown = (
        f"all {len(errors)}"
        if len(items) == len(errors)
        else f"the {len(items)} most confident of {len(errors)}"
    )
    return GalleryGroup(title, f"Shown: {shown}.", items)


def _items(run: TrainedRun, evaluation: Evaluation, indices: NDArray[np.intp]) -> list[GalleryItem]:
    records = [evaluation.part.records[index] for index in indices]
    slices = [read_pixels(record) for record in records]
    predictions = run.predict(slices)
    items = []
    for number, (index, record) in enumerate(zip(indices, records, strict=True)):
        pictures = _pictures(
            run, slices[number], predictions.cropped[number], predictions.activation_map[number]
        )
        file = evaluation.part.file(record)
        items.append(GalleryItem(file, _item_facts(evaluation, record, int(index)), pictures))
    return items


def _item_facts(evaluation: Evaluation, record: Record, index: int) -> list[str]:
    label = record.label.value if record.label else ""
    called = "COVID" if evaluation.called[index] else "NonCOVID"
    patient = record.patient_id if record.patient_known else "not known"
    return [
        f"Probability of COVID {evaluation.probability[index]:.3f} (logit {evaluation.logit[index]:+.2f}); "
        f"called {called}, labelled {label}",
        f"Patient {patient}, source {record.source}",
    ]


def _pictures(
    run: TrainedRun,
    pixels: NDArray[np.uint8],
    cropped: NDArray[np.uint8],
    activation_map: NDArray[np.floating],
) -> list[GalleryPicture]:
    cut = run.preprocessing.apply(pixels)
    original = overlay.outlined_slice(pixels, cut.lungs, cut.box, _SIDE)
    found = "lungs found" if cut.found else "no lungs found, cropped whole"
    shown = overlay.fit(cropped, _SIDE)
    mapped = overlay.overlay(shown, activation_map)
    return [
        GalleryPicture(
            f"original, {found}", "CT slice as stored, frame outlined", overlay.png_data_uri(original)
        ),
        GalleryPicture(
            "cropped",
            "The cropped slice that the network sees",
            overlay.png_data_uri(overlay.grey_picture(shown)),
        ),
        GalleryPicture(
            "activation map", "Activation map over the cropped slice", overlay.png_data_uri(mapped)
        ),
    ]


def _facts(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, str]]:
    part, info = evaluation.part, run.info
    times = "once" if evaluation.looks == 1 else f"{evaluation.looks} times"
    seconds = info.get("training_seconds")
    facts = [
        ("Recipe", run.recipe.name),
        ("Network", run.recipe.network.name),
        ("Run", run.path.name),
        ("Trained on split", f"{run.split_spec}, seed {run.seed}"),
        ("Training time", f"{seconds:,.0f} s" if seconds is not None else ""),
        (
            "Trained with",
            ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()),
        ),
        ("Data set", part.data),
        ("Part", part.title),
        ("Fingerprint", evaluation.sha256),
        ("These slices evaluated with this run", f"{times}, this time included"),
        ("Evaluated", f"{evaluation.time} in {evaluation.seconds:.1f} s"),
        ("Evaluated with", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    return [(name, value) for name, value in facts if value]


def measures_table(evaluation: Evaluation) -> Table:
    """Each measure, its value and its 95 % interval."""
    patients = evaluation.bootstrap.patients
    title = f"{evaluation.part.title}: {len(evaluation.part.records)} slices of {patients} patients"
    confusion = evaluation.metrics.confusion
    caption = (
        f"COVID right {confusion.true_positive}, missed {confusion.false_negative}; "
        f"NonCOVID right {confusion.true_negative}, false alarms {confusion.false_positive}. "
        f"Intervals: bootstrap over patients, {evaluation.bootstrap.resamples} resamples."
    )
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("Measure")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("Note", style="dim")
    for row in measure_rows(evaluation):
        value = "–" if row.value is None else f"{row.value:.3f}"
        interval = "–" if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"
        table.add_row(row.title, value, interval, row.note)
    return table


_BINS = 20


def percentile_figure(embedding: NDArray[np.float64], grey: NDArray[np.float64], beyond: float) -> Figure:
    """Histogram of percentiles; slices like the held-out ones fill every bin alike.

    Args:
        embedding: percentile of each slice by its embedding, 0 to 100, shape (N,).
        grey: percentile by its grey statistics, shape (N,).
        beyond: percentile from which a slice counts as strange.
    """
    edges = np.linspace(0, 100, _BINS + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(beyond, 100, color=LINE, label="strange")
        axes.axhline(100 / _BINS, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="data alike")
        for values, colour, style, name in (
            (grey, MUTED, (0, (1, 1)), "by grey values"),
            (embedding, INK, "solid", "by embedding"),
        ):
            shares = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=name)
        axes.set(xlim=(0, 100), ylim=(0, None), xlabel="Percentile among held-out slices")
        axes.set(ylabel="Slices per bin (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return figure
