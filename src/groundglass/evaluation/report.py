"""The report of an evaluation: measures, figures, worst errors and identity, as files and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table
from sklearn import metrics as sklearn

from groundglass.data.manifest import read_record
from groundglass.evaluation.evaluate import Evaluation, TrainedRun
from groundglass.evaluation.metrics import BINS, LOWER_IS_BETTER, THRESHOLD, TITLES, Estimate
from groundglass.evaluation.segmentation import SEGMENTATION_TITLES
from groundglass.files import counted, printable, write_json, write_text
from groundglass.imaging.crop import lesion_mask
from groundglass.inference.calibration import COVID, NON_COVID
from groundglass.reporting import figures
from groundglass.reporting.figures import svg
from groundglass.reporting.html import CITATION, DATA_NOTICE, NOTICE, data_uri, environment
from groundglass.reporting.overlay import Layers

GALLERY = 6
"""Slices shown of each kind of error."""

_HEADLINES = frozenset({"accuracy", "auc", "recall", "specificity", "lung_dice", "lesion_dice"})
_BASELINE = " File format alone: a baseline of format, pixel mode and suffix, cross-validated over the same patients."


class _Row(NamedTuple):
    """A measure as the document has it, with ``value``, ``low`` and ``high``.

    A ``headline`` stands in large print at the top, ``beside`` is what the baseline has.
    """

    title: str
    estimate: Mapping[str, Any]
    note: str = ""
    headline: bool = False
    beside: str = ""


def write_report(run: TrainedRun, evaluation: Evaluation, output: Path) -> None:
    """Write ``predictions.csv``, ``report.html`` and ``metrics.json`` into a folder, made where it is missing.

    The network predicts the slices of the gallery once more, for their lesion maps.
    """
    write_text(output / "predictions.csv", _csv(_predictions(evaluation)))
    write_text(output / "report.html", _page(run, evaluation))
    write_json(output / "metrics.json", evaluation.document)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _predictions(evaluation: Evaluation) -> Iterator[Sequence[str]]:
    """One row per slice."""
    part = evaluation.part
    yield ["file", "label", "patient_id", "source", "split", "probability", "logit", "prediction"]
    labels = [np.where(each, COVID, NON_COVID) for each in (part.label == 1, evaluation.probability >= THRESHOLD)]
    rows = zip(part.records, *labels, evaluation.probability, evaluation.logit, strict=True)
    for record, label, called, probability, logit in rows:
        whence = printable(record.patient_id), printable(record.source), record.split or ""
        yield [part.file(record), label, *whence, f"{probability:.9g}", f"{logit:.9g}", called]


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """The measures, and for a bundle whether it can be relied on for these slices, for a terminal."""
    data, (right, alarms, spared, missed) = evaluation.document["data"], evaluation.document["confusion"].values()
    yield _table(
        f"{evaluation.part.title}: {data['slices']} slices of {data['patients']} patients",
        _measure_rows(evaluation),
        f"COVID right {right}, missed {missed}; NonCOVID right {spared}, false alarms {alarms}. Intervals: bootstrap "
        f"over patients, {evaluation.measured.patients.resamples} resamples. {_follows(evaluation)}",
    )
    if fit := evaluation.document["applicability"]:
        yield _table("Whether the bundle fits these slices", _fit_rows(fit))
    if "segmentation" in evaluation.document:
        yield _table("Lungs and lesions against their masks", _segmentation_rows(evaluation.document))


def _table(title: str, rows: list[_Row], caption: str | None = None) -> Table:
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("Measure")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("Note", style="dim")
    for row in rows:
        known = (row.estimate[name] for name in ("value", "low", "high"))
        value, low, high = ("" if each is None else f"{each:.3f}" for each in known)
        table.add_row(row.title, value or "–", f"{low}–{high}", row.note)
    return table


def _measure_rows(evaluation: Evaluation) -> list[_Row]:
    """The measures in their order, with intervals and notes, and the AUC by patients after that by slices."""
    rows, document = [], evaluation.document
    baseline, patients = document["file_format_baseline"], document["by_patient"]
    for name, each in document["metrics"].items():
        better = "lower is better" if name in LOWER_IS_BETTER else ""
        note = "; ".join(filter(None, (better, each["reason"] or each["interval_reason"])))
        beside = str(Estimate(**baseline["metrics"][name])) if baseline and baseline["formats"] > 1 else ""
        rows.append(_Row(TITLES[name], each, note, name in _HEADLINES, beside))
        if name == "auc" and patients:
            note = f"series score of each of {counted(patients['patients'], 'patient')}"
            rows.append(_Row("AUC by patients", patients["auc"], note, headline=True))
    return rows


def _follows(evaluation: Evaluation) -> str:
    """What the figures come to, in one sentence."""
    auc, baseline = evaluation.measured.metrics["auc"], evaluation.document["file_format_baseline"]
    if auc.value is None:
        return f"There is no AUC: {auc.reason}."
    difference = Estimate(**baseline["auc_difference"]) if baseline else Estimate(None)
    if difference.low is None:
        return f"The AUC is {auc}; too few patients to say what the file format alone gives away."
    if baseline["formats"] == 1:
        return f"The AUC is {auc}; all slices have one file format, which gives nothing away."
    better, alone = difference.low > 0, baseline["metrics"]["auc"]["value"]
    return (
        f"The network tells the labels apart {'better' if better else 'no better'} than the file format alone does "
        f"(AUC {auc.value:.3f} against {alone:.3f}, difference {difference})"
        f"{'.' if better else ': these slices do not show that it recognises the disease.'}"
    )


def _fit_rows(fit: Mapping[str, Any]) -> list[_Row]:
    sets, unknown = fit["prediction_sets"], "the bundle holds no reference of its training data"
    beyond = fit["beyond_95"] or {**Estimate(None).bounds(), "meaning": unknown}
    reasons = "; ".join(f"{reason}: {count}" for reason, count in fit["reasons"].items())
    return [
        _Row("Refused by the input check", fit["refused"], reasons),
        _Row("Far from the training data", beyond, beyond["meaning"]),
        *(
            _Row(f"Prediction sets that hold the label, {name} slices", share, f"nominal {sets['nominal_coverage']:g}")
            for name, share in sets["coverage"].items()
        ),
        _Row("Uncertain", sets["uncertain"], "prediction set of both labels or none"),
        _Row("Accuracy where certain", sets["accuracy_where_certain"]),
    ]


def _fit_words(fit: Mapping[str, Any]) -> str:
    far = "how far they lie from the training data is not known"
    if beyond := fit["beyond_95"]:
        far = f"{100 * (beyond['value'] or 0):.0f} % lie far from the training data, 5 % of data like it would"
    return f"Of these slices the input check refuses {100 * (fit['refused']['value'] or 0):.0f} %; {far}."


def _segmentation_rows(document: Mapping[str, Any]) -> list[_Row]:
    return [
        _Row(SEGMENTATION_TITLES[name], each, counted(each["slices"], "slice"), name in _HEADLINES)
        for name, each in document.get("segmentation", {}).items()
        if each["slices"]
    ]


def _page(run: TrainedRun, evaluation: Evaluation) -> str:
    document, rows = evaluation.document, _measure_rows(evaluation)
    data, interval, fit = document["data"], document["interval"], document["applicability"]
    subtitle = (
        f"{data['slices']} slices of {data['patients']} patients: {data['covid']} COVID, {data['non_covid']} NonCOVID. "
        "COVID is the positive class."
    )
    title = f"{run.info['recipe']} on {evaluation.part.title}"
    return environment().get_template("report.html.j2").render(
        report={"title": title, "subtitle": subtitle, "warnings": document["warnings"]},
        follows=_follows(evaluation),
        measures=rows,
        measures_note=(
            f"A slice is called COVID where its probability is at least {THRESHOLD:g}. 95 % intervals: "
            f"percentiles of {interval['resamples']:,} bootstrap resamples over patients, each drawn with all their "
            f"slices (seed {interval['seed']}; {interval['one_class_resamples']} resamples held one class only)."
            f"{_BASELINE if any(row.beside for row in rows) else ''}"
        ),
        fit=fit and _fit_rows(fit),
        fit_words=fit and _fit_words(fit),
        segmentation=_segmentation_rows(document),
        figures=[*_curves(evaluation), *_calls(evaluation)],
        gallery=_gallery(run, evaluation),
        facts=_facts(document),
        notice=NOTICE,
        data_notice=DATA_NOTICE,
    )  # fmt: skip


def _panel(
    name: str, title: str, figure: Figure, words: str, columns: Mapping[str, Iterable[Any]]
) -> Mapping[str, Any]:
    """A figure, what it shows in words, and to be downloaded as data URIs: it as SVG and its numbers as CSV."""
    table = _csv([list(columns), *zip_longest(*columns.values())])
    files = {"svg": data_uri(svg(figure), "image/svg+xml"), "csv": data_uri(table, "text/csv")}
    return {"name": name, "title": title, "words": words, "files": files}


def _curves(evaluation: Evaluation) -> Iterator[Mapping[str, Any]]:
    """ROC and precision-recall, with bootstrap bands where patients can be resampled; nothing for one label."""
    measured, label, probability = evaluation.measured, evaluation.part.label, evaluation.probability
    auc, value = measured.metrics["auc"], {name: each.value or 0.0 for name, each in measured.metrics.items()}
    if auc.value is None:
        return
    bands = (None, None) if auc.low is None else measured.patients.bands(label, probability)
    false, true, _ = sklearn.roc_curve(label, probability, drop_intermediate=False)
    precise, recalled, _ = sklearn.precision_recall_curve(label, probability)
    chance, recall, alarms = float(label.mean()), value["recall"], 1 - value["specificity"]
    called = measured.metrics["precision"].value is not None
    for name, title, words, axes, curve, legend, guess, point, band in (
        (
            "roc", "ROC curve",
            f"At the threshold {THRESHOLD:g} the network finds {recall:.1%} of the COVID slices and takes "
            f"{alarms:.1%} of the NonCOVID slices for COVID.",
            ("False positive rate (1 − specificity)", "True positive rate (recall)"), (false, true),
            f"AUC {auc.value:.3f}", (0.0, 1.0), (alarms, recall), bands[0],
        ),
        (
            "precision-recall", "Precision and recall", f"{chance:.1%} of the slices are COVID.",
            ("Recall (share of COVID slices found)", "Precision (share of COVID calls right)"), (recalled, precise),
            f"average precision {value['average_precision']:.3f}", (chance, chance),
            (recall, value["precision"]) if called else None, bands[1],
        ),
    ):  # fmt: skip
        along, height = (axis.partition(" (")[0].lower() for axis in axes)
        columns, shaded = {along: curve[0], height: curve[1]}, ""
        if band is not None:
            columns |= dict(zip((f"{along} of the band", "low", "high"), band, strict=True))
            shaded = " Shaded: pointwise 95 % interval over patients."
        figure = figures.curve_figure(curve, legend, guess, point, axes, band)
        yield _panel(name, title, figure, f"{words} {legend[0].upper()}{legend[1:]}.{shaded}", columns)


def _calls(evaluation: Evaluation) -> Iterator[Mapping[str, Any]]:
    """Reliability and confusion."""
    right, alarms, spared, missed = evaluation.document["confusion"].values()
    bins = evaluation.document["calibration"]["reliability"]
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


def _gallery(run: TrainedRun, evaluation: Evaluation) -> Iterator[Mapping[str, Any]]:
    """The most confident errors of both kinds, with what was found on them."""
    part, covid, called = evaluation.part, evaluation.part.label == 1, evaluation.probability >= THRESHOLD
    for title, wrong in (
        ("Missed: labelled COVID, called NonCOVID", covid & ~called),
        ("False alarms: labelled NonCOVID, called COVID", ~covid & called),
    ):
        errors = np.flatnonzero(wrong)
        if not len(errors):
            continue
        worst, cases = errors[np.argsort(-np.abs(evaluation.logit[errors]), kind="stable")][:GALLERY], []
        slices = [read_record(part.records[index]) for index in worst]
        outputs = run.predict(slices)
        maps = [None] * len(worst) if outputs.lesion_map is None else outputs.lesion_map
        for index, ct_slice, cut, seen in zip(worst, slices, outputs.cuts, maps, strict=True):
            record = part.records[index]
            lesions = np.zeros_like(cut.lungs) if seen is None else lesion_mask(seen, cut)
            patient = record.patient_id if record.patient_known else "not known"
            facts = [
                f"Probability of COVID {evaluation.probability[index]:.3f}",
                f"Patient {patient}, source {record.source}",
            ]
            layers = Layers.of(ct_slice.pixels, cut.lungs, lesions, ct_slice.origin.spacing)
            cases.append({"file": part.file(record), "facts": facts, "layers": layers})
        yield {"title": title, "words": f"Shown: {len(cases)} of {len(errors)}.", "cases": cases}


def _facts(document: Mapping[str, Any]) -> Mapping[str, str]:
    """How the report was made."""
    run, data, times = document["run"], document["data"], document["evaluations_of_these_slices"]
    often = f"{'once' if times == 1 else f'{times} times'}, this time included"
    trained = f"{run['path']}: recipe {run['recipe']}, network {run['network']}, seed {run['seed']}"
    return {
        "run": f"{trained}, trained on {run['split'] or 'a split that is not known'}",
        "data": f"{data['root']}, fingerprint {data['fingerprint']}",
        "evaluated with this run": "not counted for bundles" if document["applicability"] else often,
        "evaluated": f"{document['time']} in {document['seconds']:.1f} s",
        "versions": ", ".join(f"{name} {each}" for name, each in document["versions"].items()),
        "command": document["command"],
        "to cite": CITATION,
    }
