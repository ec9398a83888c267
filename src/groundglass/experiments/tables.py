"""Table I and the ablation, seeds and convergence, rendered from the results of their runs; needs no torch."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from groundglass.errors import DataError
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.paired import ALPHA
from groundglass.experiments.comparison import MeanSD, PairedRows, Row
from groundglass.experiments.plan import KINDS, NETWORKS
from groundglass.experiments.results import DEFAULT, PAPER, PROTOCOLS, RunResult, complete, read_run_results
from groundglass.files import counted, write_json, write_text
from groundglass.reporting.figures import curves_figure, forest_figure, svg

PAPER_ACCURACY: Mapping[str, float] = {
    "vgg": 0.763,
    "resnet": 0.846,
    "densenet": 0.894,
    "efficientnet": 0.912,
    "mask-efficientnet": 0.921,
}
"""Table I of Xu, Wang and Xu, by the networks' families, in its order."""

_PAPERS = "mask-efficientnet"
# The share of its last validation AUC at which a network has converged.
_NEARLY = 0.95
# From the least to the most usual start, as rows are sorted.
_WEIGHTS = ("none", "c2l", "imagenet")
_HEADS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC"}
_CELL_NOTE = (
    "Mean ± standard deviation over the seeds, and the mean's 95 % interval (bootstrap over patients); a dash "
    "where a seed has no such value."
)
_AREA_NOTE = (
    "Mean ± standard deviation over the seeds. The mean over epochs is the area under the curve: the sooner a network "
    "learns, the higher its AUC. What ends near an AUC of 0.5 has learnt nothing, however soon it got there. Nothing "
    "is tested here."
)


class _Section(PairedRows):
    """One protocol's rows on one part in the table's order, all tested against the reference row."""

    def __init__(self, results: Sequence[RunResult], protocol: str, part: str) -> None:
        self.results = [each for each in results if each.identity.protocol == protocol]
        super().__init__(self.results, part)
        self.protocol, self.name = protocol, f"{protocol}-{part}"
        self.table1 = self.results[0].identity.experiment == "table1"
        order = _place if self.table1 else lambda row: (row.name != DEFAULT, row.name)
        self.rows = {row.name: row for row in sorted(self.rows.values(), key=order)}
        self.measures = {name: self.summary(name) for name in self.rows}
        # The last of the paper's network in Table I starts from ImageNet's weights, where there is such a row.
        family = [row for row in self.rows.values() if self.table1 and row.family == _PAPERS]
        own = self.reference = family[-1] if family else self.rows.get(DEFAULT)
        others = [name for name in self.rows if own and name != own.name]
        # Table I asks what its network gains over the others, the ablation what a change does to the default.
        pairs = [(own.name, name) if self.table1 else (name, own.name) for name in others] if own else []
        self.against = self.compare(pairs)

    def other(self, comparison: Mapping[str, Any]) -> str:
        """Title of the row that the reference is compared with."""
        return self.rows[comparison["second" if self.table1 else "first"]].title


def render_rows(folder: Path) -> str:
    """Render Table I or the ablation from the results below ``folder``, beside them.

    Writes ``EXPERIMENT.md``, ``EXPERIMENT.csv``, ``comparisons.json``, and a figure per protocol and part. All rows are
    tested against one: the ablation's default, in Table I Mask-EfficientNet from ImageNet's weights, or C2L's or none
    where these are missing.

    Raises:
        DataError: there is no result, or results do not fit each other.
    """
    results = read_run_results(folder)
    sections = [_Section(results, protocol, part) for protocol, part in _views(results)]
    experiment = results[0].identity.experiment
    text = "\n\n".join(line for section in sections for line in _paragraphs(section)) + "\n"
    write_text(folder / f"{experiment}.md", text)
    columns, tests = io.StringIO(), []
    rows = [_columns(section, row) for section in sections for row in section.rows.values()]
    writer = csv.DictWriter(columns, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{experiment}.csv", columns.getvalue())
    for section in sections:
        view = {"protocol": section.protocol, "part": section.part}
        tests += [view | each for each in section.against]
        if section.rows:
            write_text(folder / f"{section.name}.svg", _figure(section))
    write_json(folder / "comparisons.json", tests)
    return text


def _views(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Protocols and parts in their order; Table I is of test slices alone."""
    order = [*PROTOCOLS, *sorted({each.identity.protocol for each in results} - set(PROTOCOLS))]
    found = {(each.identity.protocol, part) for each in results for part in each.predictions}
    # Validation slices of folds are in several of them, those of a split that leaves sources out are nothing new.
    other = () if results[0].identity.experiment == "table1" else ("official",)
    shown = [(protocol, part) for protocol, part in found if part == "test" or protocol in other]
    return sorted(shown, key=lambda view: (order.index(view[0]), view[1] == "test"))


def _place(row: Row) -> tuple[int, int, str]:
    """Families in the paper's order, each from no weights to ImageNet's."""
    families = [*PAPER_ACCURACY, row.family]
    return families.index(row.family), _WEIGHTS.index(row.first.weights), row.name


def _figure(section: _Section) -> str:
    panels = {}
    for key, title in (("accuracy", "Accuracy"), ("auc", "AUC")):
        values = (measures[key] for measures in section.measures.values())
        panels[title] = [(each.mean, each.low, each.high, each.values) for each in values]
    goal = {"Accuracy": PAPER_ACCURACY[_PAPERS]} if section.protocol == "random" else None
    reference = section.reference.title if section.reference else None
    return svg(forest_figure([row.title for row in section.rows.values()], panels, reference, goal))


def _paragraphs(section: _Section) -> list[str]:
    head = f"**{section.name}**: {PROTOCOLS.get(section.protocol, 'as its name says')}."
    missing = [f"Not in the table yet: {row}, {state}." for row, state in section.incomplete.items()]
    if not section.rows:
        return [head, *missing]
    slices, results, part = section.slices, section.results, section.part
    counts = f"{len(slices.label)} slices ({slices.label.sum()} COVID) of {section.patients} patients"
    folds = sorted(filter(None, section.folds))
    if folds and len(folds) < (every := results[0].identity.folds or 0):
        counts += f", fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))} of {every}"
    runs = Counter(run.identity.fold for run in results)
    warnings = Counter((each.identity.fold, words) for each in results for words in each.parts[part]["warnings"])
    return [
        f"{head} {counts}, split `{'`, `'.join(sorted({each.split['specification'] for each in results}))}`. "
        + _settings({row.title: row.first for row in section.rows.values()}, section.reference),
        _rows_table(section),
        _CELL_NOTE,
        f"![Accuracy and AUC of every row with intervals, {section.name}](./{section.name}.svg)",
        *_tests(section),
        *dict.fromkeys(words for (fold, words), count in warnings.items() if count == runs[fold]),
        *_stand_in(section),
        *_pretraining(results),
        _trained_on(results),
        *missing,
    ]


def _columns(section: _Section, row: Row) -> dict[str, Any]:
    """A row of the CSV file."""
    runs = [each for each in row.results if each.identity.seed in row.seeds]
    columns = {
        "protocol": section.protocol,
        "part": section.part,
        "row": row.name,
        "network": row.first.network,
        "weights": row.first.weights,
        "seeds": " ".join(map(str, row.seeds)),
        "runs": len(runs),
        "slices": len(section.slices.label),
        "patients": section.patients,
        **row.first.cost,
        "training_seconds": float(np.mean([each.run["training_seconds"] for each in runs])),
    }
    for measure, value in section.measures[row.name].items():
        columns |= {f"{measure}_{key}": getattr(value, key) for key in ("mean", "sd", "low", "high")}
    return columns


def _rows_table(section: _Section) -> str:
    paper = section.table1 and section.protocol == "random"
    heads = ["", "seeds", "parameters, M", "MACs, G", *_HEADS.values(), "training, min"]
    heads += ["accuracy in the paper"] if paper else []
    lines = []
    for row in section.rows.values():
        columns, measures = _columns(section, row), section.measures[row.name]
        cost = [f"{columns['parameters'] / 1e6:.2f}", f"{columns['macs'] / 1e9:.2f}"]
        cells = [row.title, _seeds(row.seeds), *cost, *(cell(measures[measure]) for measure in _HEADS)]
        cells.append(f"{columns['training_seconds'] / 60:.1f}")
        known = row.first.network.replace("lite0", "b0") in NETWORKS
        lines.append([*cells, f"{PAPER_ACCURACY[row.family]:.3f}" if known else "–"][: len(heads)])
    return _markdown(heads, lines)


def _tests(section: _Section) -> list[str]:
    """The tests as a table, and how they were made."""
    if not section.against or section.reference is None:
        return []
    title, family = section.reference.title, len(section.against)
    heads = [f"{title} against" if section.table1 else f"against {title}", "seeds"]
    for measure in ("AUC", "accuracy"):
        heads += [f"Δ {measure}", "p slices", "p patients", "p corrected", f"{measure} is"]
    lines = []
    for each in section.against:
        cells = [section.other(each), _seeds(each["seeds"])]
        for test in each["measures"].values():
            interval = "" if test["low"] is None else f" ({_signed(test['low'])} to {_signed(test['high'])})"
            cells += [_signed(test["difference"]) + interval]
            cells += [*(_p(test[name]) for name in ("p_slices", "p_patients", "p_corrected")), test["verdict"]]
        lines.append(cells)
    resamples = section.against[0]["resamples"]
    note = (
        "Tested are the probabilities averaged over the seeds that both rows have. p over slices is DeLong's for the "
        f"AUC and McNemar's mid-p for the accuracy; p over patients, and the interval, are of {resamples:,} paired "
        "resamples of patients. The larger of both is corrected after Holm over the "
        f"{counted(family, 'comparison')} of this table, for each measure; with so many resamples it can fall to "
        f"{2 * family / (resamples + 1):.3f}. Better or worse is said only where the corrected p is below {ALPHA:g}."
    )
    tested = {section.other(each) for each in section.against} | {title}
    untested = [row.title for row in section.rows.values() if row.title not in tested]
    alone = f"Not tested, without a seed in common: {', '.join(untested)}."
    return [_markdown(heads, lines), note, *([alone] if untested else [])]


def _settings(runs: Mapping[str, RunResult], reference: Row | None = None) -> str:
    """What the reference or else the first row was trained with, and in what other rows, by title, differ from it."""
    recipes = {title: complete(run.recipe) for title, run in runs.items()}
    own = recipes[reference.title] if reference else next(iter(recipes.values()))
    size, epochs = own["preprocessing.size"], counted(own["training.epochs"], "epoch")
    seen = "around the lungs" if own["preprocessing.crop"] else "of the whole slice"
    sentences = [
        f"{size} × {size} pixels {seen}, normalisation {own['preprocessing.normalisation']}, {epochs} in batches of "
        f"{own['training.batch_size']}, learning rate {own['optimiser.lr']}, "
        f"{own['synthesis.slices_per_epoch'] or 'no'} slices of lesion synthesis per epoch."
    ]
    for title, recipe in recipes.items():
        decided = {"name", "network.name", "network.weights"}
        keys = [key for key in own if key not in decided and recipe.get(key, own[key]) != own[key]]
        if keys:
            sentences.append(f"{title} differs in {', '.join(f'`{key}={recipe[key]}`' for key in keys)}.")
    return " ".join(sentences)


def _trained_on(results: Iterable[RunResult]) -> str:
    """What the runs were trained on, each combination once."""
    machines = set()
    for result in results:
        machine, torch = result.run["machine"], result.run["versions"]["torch"]
        accelerator = "no accelerator" if machine["accelerator"] == "none" else machine["accelerator"]
        cores, threads = counted(machine["cores"], "core"), counted(result.run["threads"], "thread")
        system = f"{machine['system']} {machine['architecture']}"
        machines.add(f"{system}, {cores}, {accelerator}, {threads}, torch {torch}")
    return f"Trained on {' and on '.join(sorted(machines))}."


def _stand_in(section: _Section) -> list[str]:
    """Says so where Table I has Lite0 in place of the paper's EfficientNet-B0."""
    networks = {run.network for run in section.results if run.network.endswith("-lite0")}
    words = "EfficientNet-Lite0 stands for the paper's EfficientNet-B0: its blocks have no attention of their own."
    return [words] if networks and section.results[0].recipe["name"] == PAPER else []


def _pretraining(results: Sequence[RunResult]) -> list[str]:
    """Rows whose C2L weights may have met the test slices, though without their labels."""
    titles: dict[str, None] = {}
    for each in results:
        known = each.pretraining or {"data": "unknown"}
        seen = known.get("data") or known.get("images")
        if each.weights == "c2l" and seen and known.get("split") != each.split["specification"]:
            titles[each.identity.title] = None
    words = "the pretraining kept another split apart or does not say which, so that these slices may have been among"
    return [f"{', '.join(titles)}: {words} those it saw, without their labels."] if titles else []


def render_seeds(folder: Path) -> str:
    """Write ``summary.json`` and ``summary.md``: mean and standard deviation over seeds of every measure and part.

    Raises:
        DataError: there is no result, or results differ in recipe, split or parts.
    """
    results = sorted(read_run_results(folder), key=lambda each: each.identity.seed)
    first = results[0]
    _check_alike(results)
    facts = {
        "recipe": first.recipe["name"],
        "network": first.network,
        "size": first.recipe["preprocessing"]["size"],
        "epochs": first.recipe["training"]["epochs"],
        "split": first.split["specification"],
        "seeds": [each.identity.seed for each in results],
        "training_seconds": _over_seeds(MeanSD.of([each.run["training_seconds"] for each in results])),
    }
    parts, columns = {}, []
    for part, own in first.parts.items():
        measures = [MeanSD.of([each.parts[part]["metrics"][name]["value"] for each in results]) for name in TITLES]
        metrics = dict(zip(TITLES, map(_over_seeds, measures), strict=True))
        parts[part] = {"slices": own["slices"], "patients": own["patients"], "metrics": metrics}
        columns.append([f"{part} ({own['slices']} slices, {own['patients']} patients)", *map(cell, measures)])
    write_json(folder / "summary.json", {**facts, "parts": parts})
    heads, *lines = zip(["", *TITLES.values()], *columns, strict=True)
    text = (
        f"{facts['network']}, recipe `{facts['recipe']}`, {facts['size']} × {facts['size']} pixels, "
        f"{counted(facts['epochs'], 'epoch')}, split `{facts['split']}`, seeds {_seeds(facts['seeds'])}: mean ± "
        f"standard deviation over the seeds.\n\n{_markdown(heads, lines)}\n"
    )
    write_text(folder / "summary.md", text)
    return text


def _check_alike(results: Sequence[RunResult]) -> None:
    """A DataError where results that are to be averaged are of several kinds."""
    kinds = [
        # Which file the weights are, which may lie elsewhere since, says their kind.
        (
            complete(each.recipe) | {"network.weights": each.weights},
            (each.split["specification"], {*each.parts}, each.run.get("data")),
        )
        for each in results
    ]
    first, *others = kinds
    for result, other in zip(results[1:], others, strict=True):
        if other != first:
            raise DataError(f"{result.path}: differs in its recipe, split, parts or data from {results[0].path.name}")


def render_convergence(folder: Path) -> str:
    """Render the validation curves of every network from every kind of weights.

    Writes ``convergence.md`` and ``convergence.svg`` beside the results.

    Raises:
        DataError: there is no result, those of a network and its weights differ in recipe, or the splits differ.
    """
    results, lines = read_run_results(folder), []
    results.sort(key=lambda run: (run.network, KINDS.index(run.weights), run.identity.seed))
    if len(splits := {run.split["specification"] for run in results}) > 1:
        raise DataError(
            f"{folder}: holds results of the splits {', '.join(sorted(splits))}; give each a folder of its own"
        )
    panels: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for (network, weights), group in groupby(results, lambda run: (run.network, run.weights)):
        runs = list(group)
        _check_alike(runs)
        losses, aucs = ([[row[key] for row in run.history] for run in runs] for key in ("val_loss", "val_auc"))
        panels.setdefault((network, "Validation loss"), {})[weights] = losses
        panels.setdefault((network, "Validation AUC"), {})[weights] = aucs
        near = [float(next(i for i, auc in enumerate(each, 1) if auc >= _NEARLY * each[-1])) for each in aucs]
        values = [near, list(map(max, aucs)), list(map(fmean, aucs)), list(map(fmean, losses))]
        seeds = _seeds([run.identity.seed for run in runs])
        lines.append([network, weights, seeds, *(cell(MeanSD.of(each)) for each in values)])
    heads = ["network", "weights", "seeds", "epochs to 95 % of the last AUC", "best AUC"]
    heads += ["mean AUC over epochs", "mean loss over epochs"]
    first = results[0]
    paragraphs = [
        f"Validation part of split `{first.split['specification']}` ({first.run['counts']['val']} slices). "
        + _settings({run.identity.title: run for run in results}),
        "![Validation loss and AUC over the epochs, mean and every seed](./convergence.svg)",
        _markdown(heads, lines),
        _AREA_NOTE,
        _trained_on(results),
    ]
    text = "\n\n".join(paragraphs) + "\n"
    write_text(folder / "convergence.md", text)
    write_text(folder / "convergence.svg", svg(curves_figure(panels)))
    return text


def _over_seeds(value: MeanSD) -> dict[str, Any]:
    return {key: each for key, each in asdict(value).items() if key not in {"low", "high"}}


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def cell(value: MeanSD) -> str:
    """``0.832 ± 0.009 (0.787–0.874)``: mean, standard deviation over seeds, interval over patients."""
    if value.mean is None:
        return "–"
    sd = f" ± {value.sd:.3f}" if value.sd is not None else ""
    return f"{value.mean:.3f}{sd}" + (f" ({value.low:.3f}–{value.high:.3f})" if value.low is not None else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _seeds(seeds: Sequence[int]) -> str:
    """``0, 1, 2`` as ``0–2``, other lists as they are."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))
