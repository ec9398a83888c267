"""Table I and the ablation, seeds and convergence, rendered from the results of their runs; needs no torch."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from groundglass.errors import DataError, GroundglassError
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.paired import ALPHA, holm
from groundglass.experiments.comparison import TESTED, Comparison, MeanSD, PairedRows, Row
from groundglass.experiments.results import (
    DEFAULT,
    LEFT_OUT,
    PROTOCOLS,
    RunResult,
    flat,
    read_not_run,
    read_run_results,
)
from groundglass.files import counted, write_json, write_text
from groundglass.models.catalogue import find
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
_WEIGHTS = ("none", "c2l", "imagenet")
_HEADS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC"}
_LEAST_SEEDS = 3
_CELL_NOTE = (
    "Mean ± standard deviation over the seeds, and the mean's 95 % interval (bootstrap over patients); a dash "
    "where a seed has no such value."
)
_AREA_NOTE = (
    "The mean over epochs is the area under the curve: the sooner a network learns, the higher it is. Weights are "
    f"compared by it with a paired t-test over the seeds both have, at least {_LEAST_SEEDS}, corrected after Holm "
    "over all pairs; the test is of these validation slices only. Faster is said only where the corrected p is below "
    f"{ALPHA:g} and the higher AUC is above chance: what has learned nothing is not fast."
)


@dataclass(frozen=True)
class _Section:
    """One protocol's rows on one part, and the tests of all of them against the reference row."""

    protocol: str
    paired: PairedRows
    rows: tuple[Row, ...]
    measures: Mapping[str, Mapping[str, MeanSD]]
    reference: Row | None
    against: tuple[Comparison, ...]
    results: tuple[RunResult, ...]

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.paired.part}"

    @property
    def table1(self) -> bool:
        return self.results[0].identity.experiment == "table1"

    def other(self, comparison: Comparison) -> str:
        """Title of the row that the reference is compared with."""
        return self.paired.rows[comparison.second if self.table1 else comparison.first].title


def render_rows(folder: Path, reference: str | None = None) -> str:
    """Render Table I or the ablation from the results below ``folder``, beside them.

    Writes ``EXPERIMENT.md``, ``EXPERIMENT.csv``, ``comparisons.json``, and a figure per protocol and part.

    Args:
        folder: of the results.
        reference: the one row that all others are tested against: by default the ablation's default, and in
            Table I Mask-EfficientNet from ImageNet's weights, or C2L's or none where these are missing.

    Raises:
        DataError: there is no result, results do not fit each other, or no row is called ``reference``.
    """
    results = read_run_results(folder)
    names = sorted({each.identity.row for each in results})
    if reference is not None and reference not in names:
        raise DataError(f"{folder}: no row is called {reference!r}; there are {', '.join(names)}")
    sections = [_section(results, protocol, part, reference) for protocol, part in _views(results)]
    not_run, experiment = read_not_run(folder), results[0].identity.experiment
    text = "\n\n".join(line for section in sections for line in _paragraphs(section, not_run)) + "\n"
    write_text(folder / f"{experiment}.md", text)
    write_text(
        folder / f"{experiment}.csv", _csv([_columns(each, row) for each in sections for row in each.rows])
    )
    tests = [
        {"protocol": section.protocol, "part": section.paired.part, **each.document()}
        for section in sections
        for each in section.against
    ]
    write_json(folder / "comparisons.json", tests)
    for section in sections:
        if section.rows:
            goal = {"Accuracy": PAPER_ACCURACY[_PAPERS]} if section.protocol == "paper" else None
            panels = {
                title: [section.measures[row.name][measure] for row in section.rows]
                for measure, title in (("accuracy", "Accuracy"), ("auc", "AUC"))
            }
            titles, chosen = [row.title for row in section.rows], section.reference
            figure = forest_figure(titles, panels, chosen.title if chosen else None, goal)
            write_text(folder / f"{section.name}.svg", svg(figure))
    return text


def _views(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Protocols and parts in their order; Table I is of test slices alone."""
    order = [*PROTOCOLS, *sorted({each.identity.protocol for each in results} - set(PROTOCOLS))]
    found = {(each.identity.protocol, part) for each in results for part in each.predictions}
    # The validation slices of a split that leaves sources out are of the sources trained on: nothing new.
    found -= {(LEFT_OUT, "val")}
    if results[0].identity.experiment == "table1":
        found = {view for view in found if view[1] == "test"}
    return sorted(found, key=lambda view: (order.index(view[0]), view[1] == "test"))


def _section(results: Sequence[RunResult], protocol: str, part: str, reference: str | None) -> _Section:
    own = tuple(each for each in results if each.identity.protocol == protocol)
    paired = PairedRows(own, part)
    rows = tuple(sorted(paired.rows.values(), key=_place))
    chosen = paired.rows.get(reference or DEFAULT) or _papers_row(rows)
    others = [row.name for row in rows if chosen and row is not chosen]
    # Table I asks what its network gains over the others, the ablation what a change does to the default.
    first = own[0].identity.experiment == "table1"
    pairs = [(chosen.name, name) if first else (name, chosen.name) for name in others] if chosen else []
    measures = {row.name: paired.summary(row.name) for row in rows}
    return _Section(protocol, paired, rows, measures, chosen, tuple(paired.compare(pairs)), own)


def _place(row: Row) -> tuple[bool, int, int, str]:
    """The default first; families in the paper's order, one network from no weights to ImageNet's."""
    families, family, weights = list(PAPER_ACCURACY), _family(row), row.results[0].weights
    place = families.index(family) if family in families else len(families)
    kind = _WEIGHTS.index(weights) if weights in _WEIGHTS and row.name.endswith(f"0-{weights}") else -1
    return row.name != DEFAULT, place, kind, row.name


def _family(row: Row) -> str:
    try:
        return find(row.results[0].network).family
    except GroundglassError:
        return row.results[0].network


def _papers_row(rows: Sequence[Row]) -> Row | None:
    own = [row for row in rows if _family(row) == _PAPERS and row.results[0].identity.experiment == "table1"]
    return max(own, key=lambda row: _WEIGHTS.index(row.results[0].weights), default=None)


def _paragraphs(section: _Section, not_run: Mapping[str, str]) -> list[str]:
    head = f"**{section.name}**: {PROTOCOLS.get(section.protocol, 'as its name says')}."
    missing = _missing(not_run, section.protocol, section.paired.incomplete)
    if not section.rows:
        return [head, *missing]
    slices, results = section.paired.slices, section.results
    counts = f"{len(slices.label)} slices ({slices.label.sum()} COVID) of {section.paired.patients} patients"
    warnings = Counter(
        words for each in results for words in each.parts.get(section.paired.part, {}).get("warnings", ())
    )
    return [
        f"{head} {counts}, split `{results[0].split['specification']}`. {_settings(section.rows)}",
        _rows_table(section),
        _CELL_NOTE,
        f"![Accuracy and AUC of every row with intervals, {section.name}](./{section.name}.svg)",
        *_tests(section),
        *(words for words, count in warnings.items() if count == len(results)),
        *_pretraining(results),
        _trained_on(results),
        *missing,
    ]


def _rows_table(section: _Section) -> str:
    heads = ["", "seeds", "parameters, M", "MACs, G", *_HEADS.values(), "training, min"]
    paper = section.table1 and section.protocol == "paper"
    lines = []
    for row in section.rows:
        columns, measures = _columns(section, row), section.measures[row.name]
        cells = [row.title, _seeds(row.seeds)]
        cells += [f"{columns['parameters'] / 1e6:.2f}", f"{columns['macs'] / 1e9:.2f}"]
        cells += [_cell(measures[measure]) for measure in _HEADS]
        cells.append(f"{columns['training_seconds'] / 60:.1f}")
        lines.append(cells + ([f"{PAPER_ACCURACY.get(_family(row), float('nan')):.3f}"] if paper else []))
    return _markdown(heads + (["accuracy in the paper"] if paper else []), lines)


def _columns(section: _Section, row: Row) -> dict[str, Any]:
    """A row of the CSV file."""
    first = row.results[0]
    columns: dict[str, Any] = {
        "protocol": section.protocol,
        "part": section.paired.part,
        "row": row.name,
        "network": first.network,
        "weights": first.weights,
        "seeds": " ".join(map(str, row.seeds)),
        "runs": len(row.results),
        "slices": len(section.paired.slices.label),
        "patients": section.paired.patients,
        **first.cost,
        "training_seconds": float(np.mean([each.run["training_seconds"] for each in row.results])),
    }
    for measure, value in section.measures[row.name].items():
        columns |= {f"{measure}_{key}": getattr(value, key) for key in ("mean", "sd", "low", "high")}
    return columns


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
        cells = [section.other(each), _seeds(each.seeds)]
        for test in (each.measures[measure] for measure in TESTED):
            interval = "" if test.low is None else f" ({_signed(test.low)} to {_signed(test.high)})"
            cells += [_signed(test.difference) + interval]
            cells += [_p(test.p_slices), _p(test.p_patients), _p(test.p_corrected), test.verdict]
        lines.append(cells)
    resamples = section.against[0].resamples
    note = (
        "Tested are the probabilities averaged over the seeds that both rows have. p over slices is DeLong's for the "
        f"AUC and McNemar's mid-p for the accuracy; p over patients, and the interval, are of {resamples:,} paired "
        "resamples of patients. The larger of both is corrected after Holm over the "
        f"{counted(family, 'comparison')} of this table, for each measure; with so many resamples it can fall to "
        f"{2 * family / (resamples + 1):.3f}. Better or worse is said only where the corrected p is below {ALPHA:g}."
    )
    tested = {section.other(each) for each in section.against} | {title}
    untested = [row.title for row in section.rows if row.title not in tested]
    alone = f"Not tested, without a seed in common: {', '.join(untested)}."
    return [_markdown(heads, lines), note, *([alone] if untested else [])]


def _settings(rows: Sequence[Row]) -> str:
    """What all rows were trained with, and in what single rows differ from the most usual.

    Of a field that only some rows know, because the others are older, these alone say what is usual.
    """
    recipes = {row.title: dict(flat(row.results[0].recipe)) for row in rows}
    decided = {"name", "network.name", "network.weights"}
    usual = {
        key: Counter(repr(recipe[key]) for recipe in recipes.values() if key in recipe).most_common(1)[0][0]
        for key in dict.fromkeys(key for recipe in recipes.values() for key in recipe if key not in decided)
    }
    unusual = {
        title: [
            f"`{key}={recipe[key]}`" for key in usual if key in recipe and repr(recipe[key]) != usual[key]
        ]
        for title, recipe in recipes.items()
    }
    plain = recipes[min(unusual, key=lambda title: len(unusual[title]))]
    size, epochs = plain["preprocessing.size"], counted(plain["training.epochs"], "epoch")
    text = (
        f"{size} × {size} pixels, normalisation {plain['preprocessing.normalisation']}, {epochs} in batches of "
        f"{plain['training.batch_size']}, {plain['synthesis.slices_per_epoch'] or 'no'} slices of lesion synthesis "
        "per epoch."
    )
    return " ".join(
        [text, *(f"{each} differs in {', '.join(keys)}." for each, keys in unusual.items() if keys)]
    )


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


def _pretraining(results: Sequence[RunResult]) -> list[str]:
    """Rows whose C2L weights may have met the test slices, though without their labels."""
    titles: dict[str, None] = {}
    for each in results:
        known = each.pretraining or {"data": "unknown"}
        apart = known.get("data") is None or known.get("split") == each.split["specification"]
        if each.weights == "c2l" and not apart:
            titles[each.identity.title] = None
    words = (
        f"{', '.join(titles)}: the pretraining kept another split apart or does not say which, so that these slices "
        "may have been among those it saw, without their labels."
    )
    return [words] if titles else []


def _missing(not_run: Mapping[str, str], protocol: str, incomplete: Mapping[str, str]) -> list[str]:
    """Runs of a protocol that could not be made, or whose folds are not all there."""
    reasons: dict[str, dict[str, None]] = {}
    for name, reason in not_run.items():
        if name.startswith(f"{protocol}/"):
            row = re.sub(r"-seed-\d+(-fold-\d+)?$", "", name.removeprefix(f"{protocol}/"))
            reasons.setdefault(reason, {})[f"`{row}`"] = None
    lines = [f"Not run: {', '.join(rows)}: {reason}." for reason, rows in reasons.items()]
    return lines + [f"Not in the table yet: {row}, {state}." for row, state in incomplete.items()]


def render_seeds(folder: Path) -> str:
    """Write ``summary.json`` and ``summary.md``: mean and standard deviation over seeds of every measure and part.

    Raises:
        DataError: there is no result, or results differ in recipe or split.
    """
    results = sorted(read_run_results(folder), key=lambda each: each.identity.seed)
    first = results[0]
    for other in results:
        if other.recipe != first.recipe or other.split["specification"] != first.split["specification"]:
            raise DataError(f"{other.path}: differs in its recipe or split from {first.path.name}")

    def summary(values: Sequence[float | None]) -> dict[str, Any]:
        of = MeanSD.of(values)
        return {"mean": of.mean, "sd": of.sd, "values": list(values)}

    parts, lines = {}, {title: [title] for title in TITLES.values()}
    for part, own in first.parts.items():
        values = {name: [each.parts[part]["metrics"][name]["value"] for each in results] for name in TITLES}
        metrics = {name: summary(each) for name, each in values.items()}
        parts[part] = {"slices": own["slices"], "patients": own["patients"], "metrics": metrics}
        for name, title in TITLES.items():
            lines[title].append(_cell(MeanSD.of(values[name])))
    facts = {
        "recipe": first.recipe["name"],
        "network": first.network,
        "size": first.recipe["preprocessing"]["size"],
        "epochs": first.recipe["training"]["epochs"],
        "split": first.split["specification"],
        "seeds": [each.identity.seed for each in results],
    }
    seconds = summary([each.run["training_seconds"] for each in results])
    write_json(folder / "summary.json", {**facts, "training_seconds": seconds, "parts": parts})
    heads = [f"{part} ({own['slices']} slices, {own['patients']} patients)" for part, own in parts.items()]
    text = (
        f"{facts['network']}, recipe `{facts['recipe']}`, {facts['size']} × {facts['size']} pixels, "
        f"{counted(facts['epochs'], 'epoch')}, split `{facts['split']}`, seeds {_seeds(facts['seeds'])}: mean ± "
        f"standard deviation over the seeds.\n\n{_markdown(['', *heads], lines.values())}\n"
    )
    write_text(folder / "summary.md", text)
    return text


def render_convergence(folder: Path) -> str:
    """Render the validation curves of every network from every kind of weights, and which learns faster.

    Writes ``convergence.md``, ``convergence.json`` and ``convergence.svg`` beside the results.

    Raises:
        DataError: there is no result.
    """
    results, not_run = read_run_results(folder), read_not_run(folder)
    runs: dict[tuple[str, str], dict[int, RunResult]] = {}
    for run in sorted(
        results,
        key=lambda run: (run.network, ("none", "imagenet", "c2l").index(run.weights), run.identity.seed),
    ):
        runs.setdefault((run.network, run.weights), {})[run.identity.seed] = run
    compared = [
        _faster(second, first, runs)
        for first, second in combinations(runs, 2)
        if first[0] == second[0] and runs[first].keys() & runs[second].keys()
    ]
    for each, p in zip(compared, holm([each["p"] for each in compared]), strict=True):
        each["p_corrected"] = p
    lines = []
    panels = defaultdict[tuple[str, str], dict[str, list[list[float]]]](dict)
    for (network, weights), seeds in runs.items():
        aucs, losses = ([_curve(run, name) for run in seeds.values()] for name in ("val_auc", "val_loss"))
        best, means = [max(curve) for curve in aucs], [[fmean(curve) for curve in x] for x in (aucs, losses)]
        lines.append([network, weights, _seeds(list(seeds)), *(_cell(MeanSD.of(x)) for x in (best, *means))])
        panels[network, "Validation loss"][weights] = losses
        panels[network, "Validation AUC"][weights] = aucs
    heads = ["network", "weights", "seeds", "best AUC", "mean AUC over epochs", "mean loss over epochs"]
    tests = [_faster_cells(each) for each in compared]
    first, rows = results[0], {run.identity.row: run for run in results}
    paragraphs = [
        f"Validation part of split `{first.split['specification']}` ({first.run['counts']['val']} slices). "
        + _settings([Row(name, run.identity.title, (run,), {}) for name, run in rows.items()]),
        "![Validation loss and AUC over the epochs, mean and every seed](./convergence.svg)",
        _markdown(heads, lines),
        _markdown(["network", "weights", "against", "seeds", "Δ mean AUC", "p corrected", ""], tests),
        _AREA_NOTE,
        _trained_on(results),
        *_missing(not_run, first.identity.protocol, {}),
    ]
    text = "\n\n".join(filter(None, paragraphs)) + "\n"
    write_text(folder / "convergence.md", text)
    write_json(folder / "convergence.json", {"format": 2, "comparisons": compared, "not_run": not_run})
    write_text(folder / "convergence.svg", svg(curves_figure(panels)))
    return text


def _curve(run: RunResult, measure: str) -> list[float]:
    return [row[measure] for row in run.history]


def _faster(
    one: tuple[str, str], other: tuple[str, str], runs: Mapping[tuple[str, str], Mapping[int, RunResult]]
) -> dict[str, Any]:
    """Two kinds of weights by the mean AUC over epochs, with a paired t-test over the seeds both have."""
    seeds = sorted(runs[one].keys() & runs[other].keys())
    first, second = ([fmean(_curve(runs[key][seed], "val_auc")) for seed in seeds] for key in (one, other))
    low = high = p = None
    if len(seeds) >= _LEAST_SEEDS and first != second:
        test = stats.ttest_rel(first, second)
        low, high = (float(bound) for bound in test.confidence_interval(0.95))
        p = float(test.pvalue)
    found = {
        "network": one[0],
        "first": one[1],
        "second": other[1],
        "seeds": seeds,
        "low": low,
        "high": high,
        "p": p,
    }
    return found | {"auc": fmean(first) - fmean(second), "best_auc": max(fmean(first), fmean(second))}


def _faster_cells(each: Mapping[str, Any]) -> list[str]:
    interval = "" if each["low"] is None else f" ({_signed(each['low'])} to {_signed(each['high'])})"
    verdict = "not tested" if each["p"] is None else "no difference shown"
    if each["p"] is not None and each["p_corrected"] < ALPHA:
        winner = each["first"] if each["auc"] > 0 else each["second"]
        verdict = (
            f"{winner} is faster"
            if each["best_auc"] > 0.5
            else f"{winner} is higher, but no better than chance"
        )
    pair = [each["network"], each["first"], each["second"], _seeds(each["seeds"])]
    return [*pair, f"{_signed(each['auc'])}{interval}", _p(each["p_corrected"]), verdict]


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: MeanSD) -> str:
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
