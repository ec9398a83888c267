"""How fast a network learns from different weights: validation curves over epochs, with seeds.

What the tables of all experiments have in common: cells, settings, circumstances, and what is missing.

The paper's Table I, rendered from the results of its runs.

The ablation, rendered from the results of its runs: what each part of the default recipe is worth.
"""

from __future__ import annotations

import csv
import io
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from groundglass.errors import DataError, GroundglassError
from groundglass.evaluation.paired import holm
from groundglass.experiments.comparison import ALPHA, TESTED, Comparison, MeanSD, MeasureTest, PairedRows, Row
from groundglass.experiments.figures import Curve, CurvePanel, Mark, Panel, curves_figure, forest_figure
from groundglass.experiments.results import (
    RunResult,
    read_not_run,
    read_run_results,
    read_speed,
    update_readme,
)
from groundglass.files import counted, write_json, write_text
from groundglass.models.catalogue import find
from groundglass.reporting.figures import svg

MEASURES = ("accuracy", "precision", "recall", "f1", "auc")
"""Columns of the paper's Table I and section IV, and the AUC."""

HEADS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
}

CELL_NOTE = (
    "Mean ± standard deviation over the seeds, and the mean's 95 % interval (bootstrap over patients); a "
    "dash where a seed has no such value."
)

TEST_NOTE = (
    "Tested are the probabilities averaged over the seeds that both rows have; the difference of each seed "
    "alone stands beside that. p over slices is DeLong's for the AUC and McNemar's mid-p for the accuracy; p "
    "over patients is that of a paired bootstrap over patients, as is the interval. The larger of both is "
    "corrected after Holm over the {family}, for each measure. Better or worse is said only where the "
    f"corrected p is below {ALPHA:g}."
)

_DECIDED_BY_ROWS = frozenset({"name", "network.name", "network.weights"})


def spread_cell(spread: MeanSD) -> str:
    """``0.832 ± 0.009 (0.787–0.874)``: mean, standard deviation over seeds, interval over patients."""
    if spread.mean is None:
        return "–"
    sd = f" ± {spread.sd:.3f}" if spread.sd is not None else ""
    interval = f" ({spread.low:.3f}–{spread.high:.3f})" if spread.low is not None else ""
    return f"{spread.mean:.3f}{sd}{interval}"


def mark_of(spread: MeanSD, *, strong: bool = False) -> Mark | None:
    """A row's value as a figure draws it; None where it has none."""
    if spread.mean is None:
        return None
    points = tuple(value for value in spread.values if value is not None)
    return Mark(spread.mean, spread.low, spread.high, points, strong)


def difference_cell(test: MeasureTest) -> str:
    """``+0.021 (−0.004 to +0.047)``: difference and its interval over patients."""
    if test.difference is None:
        return "–"
    text = signed(test.difference)
    if test.low is not None and test.high is not None:
        text += f" ({signed(test.low)} to {signed(test.high)})"
    return text


def signed(value: float) -> str:
    """A difference with its sign, and a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def p_cell(p: float | None) -> str:
    """A p-value to three digits."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def tests_table(head: str, against: Iterable[tuple[str, Comparison]]) -> list[str]:
    """Comparisons as lines of a Markdown table, each under its title."""
    heads = [head, "seeds"]
    for measure in TESTED:
        heads += [f"Δ {HEADS[measure]}", "of each seed", "p slices", "p patients", "p corrected"]
    rows = []
    for title, each in against:
        cells = [title, seeds_words(each.seeds)]
        for measure in TESTED:
            test = each.measures[measure]
            alone = [tests[measure][0] for tests in each.by_seed.values()]
            cells.append(difference_cell(test))
            cells.append(", ".join("–" if value is None else signed(value) for value in alone))
            cells += map(p_cell, (test.p_slices, test.p_patients, test.p_corrected))
        rows.append(cells)
    return markdown_table(heads, rows)


def seeds_words(seeds: Sequence[int]) -> str:
    """``0, 1, 2`` as ``0–2``, other lists as they are."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def settings_lines(rows: Sequence[Row]) -> list[str]:
    """What all rows were trained with, and in what single rows differ from it.

    Of a field that only some rows know, because the others are older, these alone say what is usual.
    """
    recipes = {row.title: dict(flat(row.outcomes[0].recipe)) for row in rows}
    usual = {
        key: Counter(repr(recipe[key]) for recipe in recipes.values() if key in recipe).most_common(1)[0][0]
        for key in dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    }
    unusual = {
        row.title: [
            f"`{key}={value}`"
            for key, value in recipes[row.title].items()
            if key not in _DECIDED_BY_ROWS and repr(value) != usual[key]
        ]
        for row in rows
    }
    plainest = min(rows, key=lambda row: len(unusual[row.title]))
    differing = [
        f"{title} differs from the others in {', '.join(fields)}."
        for title, fields in unusual.items()
        if fields
    ]
    return [recipe_words(plainest.outcomes[0].recipe), *differing]


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """The settings that figures depend on most."""
    size, training = recipe["preprocessing"]["size"], recipe["training"]
    epochs = counted(training["epochs"], "epoch")
    painted = recipe["synthesis"]["slices_per_epoch"]
    return f"{size} × {size} pixels, {epochs} in batches of {training['batch_size']}, " + (
        f"{painted} slices of lesion synthesis per epoch." if painted else "no lesion synthesis."
    )


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a recipe as ``--set`` spells them."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def trained_on(outcomes: Iterable[RunResult]) -> str:
    """On what the runs were trained, each combination once."""
    trained = set()
    for outcome in outcomes:
        machine = outcome.run.get("machine") or {}
        accelerator = machine.get("accelerator", "none")
        trained.add(
            f"{machine.get('system')} {machine.get('architecture')}, {machine.get('cores')} cores, "
            + (f"{accelerator}, " if accelerator != "none" else "no accelerator, ")
            + f"{counted(outcome.run.get('threads', 0), 'thread')}, "
            + f"torch {outcome.run.get('versions', {}).get('torch')}"
        )
    return f"Trained on {' and on '.join(sorted(trained))}."


def timed_on(speeds: Iterable[Mapping[str, Any]], how: str) -> list[str]:
    """How images per second were measured, each combination once; nothing where they were not."""
    timed = {
        f"batches of {each['batch_size']} cropped slices, {each['device']}, "
        f"{counted(each['threads'], 'thread')}, median of {each['rounds']} rounds"
        for each in speeds
    }
    if not timed:
        return []
    return [f"Images per second at inference, {how}: {' and '.join(sorted(timed))}."]


def warnings_lines(outcomes: Sequence[RunResult], part: str) -> list[str]:
    """What a reader must know of the slices, as evaluation said it of every run alike."""
    said = Counter(
        warning for outcome in outcomes for warning in outcome.parts.get(part, {}).get("warnings", ())
    )
    return [warning for warning, count in said.items() if count == len(outcomes)]


def pretraining_lines(outcomes: Sequence[RunResult]) -> list[str]:
    """Rows whose C2L weights may have met the test slices, though without their labels."""
    titles = dict.fromkeys(
        outcome.identity.title
        for outcome in outcomes
        if outcome.weights == "c2l" and not _kept_apart(outcome)
    )
    if not titles:
        return []
    return [
        f"{', '.join(titles)}: the pretraining kept another split apart or does not say which, so that "
        "slices judged here may have been among those it saw, without their labels."
    ]


def _kept_apart(outcome: RunResult) -> bool:
    known = outcome.pretraining
    if known is None:
        return False
    return known.get("data") is None or known.get("split") == outcome.split["specification"]


def missing_lines(not_run: Mapping[str, str], protocol: str, incomplete: Mapping[str, str]) -> list[str]:
    """Runs of a protocol that could not be made, or whose folds are not all there."""
    reasons: dict[str, list[str]] = {}
    for name, reason in not_run.items():
        folder, _, run = name.partition("/")
        if folder == protocol:
            reasons.setdefault(reason, []).append(re.sub(r"-seed-\d+(-fold-\d+)?$", "", run))
    lines = [
        f"Not run: {', '.join(f'`{row}`' for row in dict.fromkeys(rows))}: {reason}."
        for reason, rows in reasons.items()
    ]
    return lines + [f"Not in the table yet: {row}, {state}." for row, state in incomplete.items()]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of the first, atomically; an empty list leaves a file without columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def spread_columns(name: str, spread: MeanSD) -> dict[str, float | None]:
    """A measure's columns of a CSV file."""
    return {
        f"{name}_mean": spread.mean,
        f"{name}_sd": spread.sd,
        f"{name}_low": spread.low,
        f"{name}_high": spread.high,
    }


def comparison_rows(comparison: Comparison, **where: str) -> Iterator[dict[str, Any]]:
    """A comparison's lines of a CSV file, one per measure."""
    for measure in TESTED:
        test = comparison.measures[measure]
        yield {
            **where,
            "first": comparison.first,
            "second": comparison.second,
            "seeds": " ".join(map(str, comparison.seeds)),
            "measure": measure,
            "difference": test.difference,
            "low": test.low,
            "high": test.high,
            "p_slices": test.p_slices,
            "p_patients": test.p_patients,
            "p_corrected": test.p_corrected,
            "verdict": test.verdict,
            "right_only_first": comparison.first_only,
            "right_only_second": comparison.second_only,
        }


def comparison_document(comparison: Comparison, **where: str) -> dict[str, Any]:
    """A comparison as plain JSON values, every seed alone included."""
    measures = {row["measure"]: row for row in comparison_rows(comparison)}
    left_out = ("first", "second", "seeds", "measure", "right_only_first", "right_only_second")
    return {
        **where,
        "first": comparison.first,
        "second": comparison.second,
        "seeds": list(comparison.seeds),
        "right_only_first": comparison.first_only,
        "right_only_second": comparison.second_only,
        "measures": {
            name: {key: value for key, value in row.items() if key not in left_out}
            for name, row in measures.items()
        },
        "by_seed": {
            str(seed): {
                measure: {"difference": difference, "p_slices": p}
                for measure, (difference, p) in tests.items()
            }
            for seed, tests in comparison.by_seed.items()
        },
    }


def write_comparisons(folder: Path, compared: Sequence[tuple[Mapping[str, str], Comparison]]) -> None:
    """Write ``comparisons.csv`` and ``comparisons.json``."""
    rows = [row for where, each in compared for row in comparison_rows(each, **where)]
    write_csv(folder / "comparisons.csv", rows)
    write_json(folder / "comparisons.json", [comparison_document(each, **where) for where, each in compared])


def put_into(readme: Path, name: str, folder: Path, text: str) -> None:
    """Put a rendered text between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` of a Markdown file.

    Links to figures, relative to ``folder``, are made relative to the file.

    Raises:
        DataError: the markers are not there.
    """
    way = Path(os.path.relpath(folder, readme.parent)).as_posix()
    update_readme(readme, text.replace("](./", f"]({way}/"), f"<!-- {name}:begin -->", f"<!-- {name}:end -->")


PROTOCOLS: Mapping[str, str] = {
    "paper": "slices split at random, stratified by label; patients are not regarded",
    "official": "the data set's own split",
    "patients": "folds over patients; every slice is judged once, by networks that have not seen its patient",
}
"""Protocols in the order of the table, and what they mean."""

PAPER_ACCURACY: Mapping[str, float] = {
    "vgg": 0.763,
    "resnet": 0.846,
    "densenet": 0.894,
    "efficientnet": 0.912,
    "mask-efficientnet": 0.921,
}
"""Table I of Xu, Wang and Xu, by the networks' families, in its order."""

WEIGHTS = ("imagenet", "c2l", "none")
"""Kinds of weights, the default recipe's first; a row's reference is chosen in this order."""

_PAPERS = "mask-efficientnet"
_PART = "test"


@dataclass(frozen=True)
class Section:
    """One protocol's share of the table.

    Attributes:
        protocol: its name.
        paired: its rows.
        names: of the rows, in the order of the table.
        spreads: every measure of every row.
        reference: the row that the others are compared with, or None where it is not there.
        against: the comparisons of the reference with every other row.
        pairs: the comparisons of all pairs.
        outcomes: its runs.
        speed: of networks measured side by side, by network; those of single runs stand in for the others.
    """

    protocol: str
    paired: PairedRows
    names: tuple[str, ...]
    spreads: Mapping[str, Mapping[str, MeanSD]]
    reference: str | None
    against: tuple[Comparison, ...]
    pairs: tuple[Comparison, ...]
    outcomes: tuple[RunResult, ...]
    speed: Mapping[str, Mapping[str, Any]]

    def title(self, name: str) -> str:
        """What the table calls a row."""
        return self.paired.rows[name].title


def render_table1(folder: Path, *, reference: str | None = None, readme: Path | None = None) -> str:
    """Render the table from the results below ``folder``, beside them.

    Writes ``table1.md``, ``table1.csv``, ``comparisons.csv``, ``comparisons.json``, a figure per protocol.

    Args:
        folder: of the results.
        reference: the row that all others are compared with; Mask-EfficientNet's unless given.
        readme: a Markdown file whose table is replaced, between its markers.

    Returns:
        The table as Markdown.

    Raises:
        DataError: there is no result, results do not fit each other, or no row is called ``reference``.
    """
    outcomes = read_run_results(folder)
    if reference is not None and reference not in {each.identity.row for each in outcomes}:
        rows = sorted({each.identity.row for each in outcomes})
        raise DataError(f"{folder}: no row is called {reference!r}; there are {', '.join(rows)}")
    speed = read_speed(folder)
    sections = [
        _section(protocol, chosen, reference, speed)
        for protocol in _in_order({each.identity.protocol for each in outcomes})
        if (chosen := [each for each in outcomes if each.identity.protocol == protocol])
    ]
    not_run = read_not_run(folder)
    text = "\n\n".join("\n\n".join(_section_text(section, not_run)) for section in sections) + "\n"
    write_text(folder / "table1.md", text)
    lines = [_csv_row(section, name) for section in sections for name in section.names]
    write_csv(folder / "table1.csv", lines)
    write_comparisons(
        folder,
        [
            ({"protocol": section.protocol, "family": family}, each)
            for section in sections
            for family, compared in (("reference", section.against), ("all pairs", section.pairs))
            for each in compared
        ],
    )
    for section in sections:
        if section.names:
            write_text(folder / f"{section.protocol}.svg", svg(_figure(section)))
    if readme is not None:
        put_into(readme, "table1", folder, text)
    return text


def _in_order(protocols: set[str]) -> list[str]:
    known = list(PROTOCOLS)
    return sorted(protocols, key=lambda name: (known.index(name) if name in known else len(known), name))


def _section(
    protocol: str,
    outcomes: Sequence[RunResult],
    reference: str | None,
    speed: Mapping[str, Mapping[str, Any]],
) -> Section:
    paired = PairedRows(outcomes, _PART)
    names = tuple(sorted(paired.rows, key=lambda name: _place(paired.rows[name])))
    chosen = reference if reference in names else _default_reference(paired)
    others = [name for name in names if name != chosen]
    return Section(
        protocol,
        paired,
        names,
        {name: paired.spread(name) for name in names},
        chosen,
        tuple(paired.compare([(chosen, name) for name in others])) if chosen else (),
        tuple(paired.compare(list(combinations(names, 2)))),
        tuple(outcomes),
        speed,
    )


def _place(row: Row) -> tuple[int, int, str]:
    """Families in the paper's order; within one network from no weights to ImageNet's."""
    families, kinds = list(PAPER_ACCURACY), list(reversed(WEIGHTS))
    family, weights = _family(row.outcomes[0]), row.outcomes[0].weights
    return (
        families.index(family) if family in families else len(families),
        kinds.index(weights) if weights in kinds else len(kinds),
        row.name,
    )


def _family(outcome: RunResult) -> str:
    try:
        return find(outcome.network).family
    except GroundglassError:
        return outcome.network


def _default_reference(paired: PairedRows) -> str | None:
    for weights in WEIGHTS:
        for name, row in paired.rows.items():
            if row.outcomes[0].weights == weights and _family(row.outcomes[0]) == _PAPERS:
                return name
    return None


def _section_text(section: Section, not_run: Mapping[str, str]) -> list[str]:
    """Paragraphs of one protocol."""
    head = f"**Protocol `{section.protocol}`**: {PROTOCOLS.get(section.protocol, 'as its name says')}."
    missing = missing_lines(not_run, section.protocol, section.paired.incomplete)
    if not section.names:
        return [head, *missing]
    paired = section.paired
    covid = int(paired.slices.label.sum())
    lines = [
        f"{head} Judged on {len(paired.slices.label)} slices ({covid} COVID) of {paired.patients} patients.",
        " ".join(settings_lines([paired.rows[name] for name in section.names])),
        "\n".join(_table(section)),
        CELL_NOTE,
        f"![Accuracy and AUC of every row with intervals, protocol {section.protocol}]"
        f"(./{section.protocol}.svg)",
    ]
    lines += _goal(section)
    lines += _comparisons_text(section)
    lines += [*warnings_lines(section.outcomes, _PART), *pretraining_lines(section.outcomes)]
    return [*lines, " ".join([trained_on(section.outcomes), *_speed_words(section)]), *missing]


def _table(section: Section) -> list[str]:
    paper = section.protocol == "paper"
    heads = ["network", "weights", "seeds", "parameters, M", "MACs, G", *HEADS.values()]
    heads += ["training, min", "images/s"] + (["accuracy in the paper"] if paper else [])
    rows = []
    for name in section.names:
        row, spreads = section.paired.rows[name], section.spreads[name]
        first, facts = row.outcomes[0], _facts(section, row)
        cells = [first.network, first.weights, seeds_words(row.seeds)]
        cells += [f"{facts['parameters'] / 1e6:.2f}", f"{facts['macs'] / 1e9:.2f}"]
        cells += [spread_cell(spreads[measure]) for measure in MEASURES]
        cells += [_number(facts["training_seconds"], 60), _number(facts["images_per_second"], 1)]
        published = PAPER_ACCURACY.get(_family(first))
        cells += [f"{published:.3f}" if published else "–"] if paper else []
        rows.append(cells)
    return markdown_table(heads, rows)


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.1f}"


def _facts(section: Section, row: Row) -> dict[str, Any]:
    """Cost, mean training time of a run, and speed."""
    seconds = [each.run["training_seconds"] for each in row.outcomes if each.run.get("training_seconds")]
    speeds = [each["images_per_second"] for each in _speeds(section, row.outcomes)]
    first = row.outcomes[0].cost
    return {
        "parameters": first["parameters"],
        "macs": first["macs"],
        "input_size": first["input_size"],
        "training_seconds": statistics.fmean(seconds) if seconds else None,
        "images_per_second": statistics.median(speeds) if speeds else None,
    }


def _speed_words(section: Section) -> list[str]:
    rows = [section.paired.rows[name].outcomes for name in section.names]
    together = all(_speeds(section, row) == [section.speed.get(row[0].network)] for row in rows)
    how = "all networks in alternating rounds" if together else "each run after its training"
    return timed_on([each for row in rows for each in _speeds(section, row)], how)


def _speeds(section: Section, outcomes: Sequence[RunResult]) -> list[Mapping[str, Any]]:
    """Side by side where that was measured at the size of the row's slices, else run by run."""
    together = section.speed.get(outcomes[0].network)
    if together and together.get("input_size") == outcomes[0].cost["input_size"]:
        return [together]
    return [each.inference for each in outcomes if each.inference]


def _goal(section: Section) -> list[str]:
    """Whether Mask-EfficientNet reaches the paper's accuracy and stands above every other row."""
    accuracy = {name: section.spreads[name]["accuracy"].mean or 0.0 for name in section.names}
    own = [name for name in section.names if _family(section.paired.rows[name].outcomes[0]) == _PAPERS]
    others = [name for name in section.names if name not in own]
    if section.protocol != "paper" or not own:
        return []
    best, goal = max(own, key=accuracy.__getitem__), PAPER_ACCURACY[_PAPERS]
    reached = "reached" if accuracy[best] >= goal else f"missed by {goal - accuracy[best]:.3f}"
    text = (
        f"Goal: Mask-EfficientNet with an accuracy of at least {goal:.3f}, above every other row. Its best "
        f"row, {section.title(best)}, has {accuracy[best]:.3f}: {reached}."
    )
    if others:
        second = max(others, key=accuracy.__getitem__)
        above = "above" if accuracy[best] > accuracy[second] else "not above"
        text += f" That is {above} the best other row, {section.title(second)}, with {accuracy[second]:.3f}"
        text += ", by the figures alone; the tests below say what the difference is worth."
    return [text]


def _comparisons_text(section: Section) -> list[str]:
    if not section.against or section.reference is None:
        return []
    title = section.title(section.reference)
    against = [(section.title(each.second), each) for each in section.against]
    alone = set(section.names) - {each.second for each in section.against} - {section.reference}
    return [
        "\n".join(tests_table(f"{title} against", against)),
        TEST_NOTE.format(family=f"{counted(len(section.against), 'comparison')} of this table"),
        "\n".join(_verdict(section, each) for each in section.against),
        *(f"{title} has no seed in common with {section.title(name)}: not tested." for name in sorted(alone)),
        *_pairs_text(section),
    ]


def _verdict(section: Section, comparison: Comparison) -> str:
    first, second = section.title(comparison.first), section.title(comparison.second)
    found = {
        verdict: [
            f"{HEADS[measure]} (corrected p {p_cell(test.p_corrected)})"
            for measure, test in comparison.measures.items()
            if test.verdict == verdict
        ]
        for verdict in ("better", "worse")
    }
    said = [f"{verdict} than {second} in {' and '.join(where)}" for verdict, where in found.items() if where]
    if said:
        return f"- {first} is {' but '.join(said)}."
    return f"- Between {first} and {second} no difference is shown."


def _pairs_text(section: Section) -> list[str]:
    """Which of all pairs differ, in a family of their own: a line for each row that is better than others."""
    if len(section.pairs) == len(section.against):
        return []
    text = f"All {len(section.pairs)} pairs of rows, corrected among themselves (`comparisons.csv`):"
    beaten: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in section.names}
    for pair in section.pairs:
        for verdict, winner, loser in (
            ("better", pair.first, pair.second),
            ("worse", pair.second, pair.first),
        ):
            measures = [HEADS[name] for name, test in pair.measures.items() if test.verdict == verdict]
            if measures:
                beaten[winner][" and ".join(measures)].append(section.title(loser))
    told = [
        f"- {section.title(winner)} is better "
        + "; ".join(f"in {measures} than {', '.join(losers)}" for measures, losers in found.items())
        + "."
        for winner, found in beaten.items()
        if found
    ]
    if not told:
        return [f"{text} no difference is shown."]
    return [text, "\n".join(told)]


def _csv_row(section: Section, name: str) -> dict[str, Any]:
    row = section.paired.rows[name]
    first = row.outcomes[0]
    columns: dict[str, Any] = {
        "protocol": section.protocol,
        "row": name,
        "network": first.network,
        "weights": first.weights,
        "seeds": " ".join(map(str, row.seeds)),
        "runs": len(row.outcomes),
        "slices": len(section.paired.slices.label),
        "patients": section.paired.patients,
        **_facts(section, row),
    }
    for measure, spread in section.spreads[name].items():
        columns |= spread_columns(measure, spread)
    return columns


def _figure(section: Section) -> Figure:
    panels = []
    for measure, title in (("accuracy", "Accuracy"), ("auc", "AUC")):
        marks = tuple(
            mark_of(section.spreads[name][measure], strong=name == section.reference)
            for name in section.names
        )
        goal = PAPER_ACCURACY[_PAPERS] if (section.protocol, measure) == ("paper", "accuracy") else None
        panels.append(Panel(title, f"{title} on the test part", marks, goal))
    return forest_figure([section.title(name) for name in section.names], panels)


DEFAULT = "default"
"""The row that all others are compared with."""

LEFT_OUT = "left-out"
"""Protocol that trains without some sources and judges on them."""

VIEWS = (("official", "val"), ("official", "test"), (LEFT_OUT, "test"))
"""Protocols and parts that the ablation is judged on, where there are results of them."""

ORDER = ("mask", "attention", "histogram", "crop", "normalisation", "weights", "augmentation", "synthesis")
"""Factors in the order of the table; a variant's name ends in its factor or begins with it."""


@dataclass(frozen=True)
class View:
    """The variants as judged on one part under one protocol.

    Attributes:
        protocol: its name.
        part: ``val`` or ``test``.
        paired: the rows.
        spreads: every measure of every row.
        against: the comparisons of every variant with the default.
        outcomes: the runs.
    """

    protocol: str
    part: str
    paired: PairedRows
    spreads: Mapping[str, Mapping[str, MeanSD]]
    against: Mapping[str, Comparison]
    outcomes: tuple[RunResult, ...]

    @property
    def title(self) -> str:
        """What tables call it."""
        return "left-out source" if self.protocol == LEFT_OUT else f"{self.protocol} {self.part}"


def render_ablation(folder: Path, *, readme: Path | None = None) -> str:
    """Render the ablation from the results below ``folder``, beside them.

    Writes ``ablation.md``, ``ablation.csv``, ``ablation.svg``, ``comparisons.csv`` and ``comparisons.json``.

    Args:
        folder: of the results.
        readme: a Markdown file whose table is replaced, between its markers.

    Returns:
        The table as Markdown.

    Raises:
        DataError: there is no result, or results do not fit each other.
    """
    outcomes = read_run_results(folder)
    views = [view for protocol, part in _views(outcomes) if (view := _view(outcomes, protocol, part))]
    if not views:
        raise DataError(f"{folder}: no variant's folds are complete yet; run `groundglass compare ablation`")
    names = sorted({name for view in views for name in view.paired.rows}, key=_place_ablation)
    titles = {name: view.paired.rows[name].title for view in views for name in view.paired.rows}
    text = "\n\n".join(_paragraphs(views, names, titles, read_not_run(folder))) + "\n"
    write_text(folder / "ablation.md", text)
    write_csv(
        folder / "ablation.csv",
        [_csv_row_ablation(view, name) for view in views for name in view.paired.rows],
    )
    write_comparisons(
        folder,
        [({"protocol": v.protocol, "part": v.part}, each) for v in views for each in v.against.values()],
    )
    write_text(folder / "ablation.svg", svg(_figure_ablation(views, names, titles)))
    if readme is not None:
        put_into(readme, "ablation", folder, text)
    return text


def _views(outcomes: Sequence[RunResult]) -> list[tuple[str, str]]:
    """The known views first, then what else was judged."""
    there = {(each.identity.protocol, part) for each in outcomes for part in each.judged}
    known = [view for view in VIEWS if view in there]
    # The val part of a split that leaves a source out is of the sources trained on: it answers nothing new.
    return known + sorted(there - set(known) - {(LEFT_OUT, "val")})


def _view(outcomes: Sequence[RunResult], protocol: str, part: str) -> View | None:
    chosen = [each for each in outcomes if each.identity.protocol == protocol]
    paired = PairedRows(chosen, part)
    if not paired.rows:
        return None
    others = [name for name in sorted(paired.rows, key=_place_ablation) if name != DEFAULT]
    compared = paired.compare([(name, DEFAULT) for name in others]) if DEFAULT in paired.rows else []
    spreads = {name: paired.spread(name) for name in paired.rows}
    return View(protocol, part, paired, spreads, {each.first: each for each in compared}, tuple(chosen))


def _place_ablation(name: str) -> tuple[int, str]:
    if name == DEFAULT:
        return -1, name
    return next((i for i, factor in enumerate(ORDER) if factor in name.split("-")), len(ORDER)), name


def _paragraphs(
    views: Sequence[View], names: Sequence[str], titles: Mapping[str, str], not_run: Mapping[str, str]
) -> list[str]:
    default = [each for view in views for each in view.outcomes if each.identity.row == DEFAULT]
    first = default[0] if default else views[0].outcomes[0]
    lines = [
        f"Every row changes one thing in the recipe `{first.recipe['name']}` ({first.network} from "
        f"{first.weights}): {recipe_words(first.recipe)}",
        " ".join(_judged_on(view) for view in views),
        "\n".join(_table_ablation(views, names, titles)),
        CELL_NOTE,
        "![Difference of every variant to the default, with intervals](./ablation.svg)",
    ]
    if any(view.against for view in views):
        lines += ["\n".join(_tests(view, titles)) for view in views if view.against]
        lines.append(TEST_NOTE.format(family="comparisons of each table"))
        lines.append(
            "\n".join(_verdict_ablation(views, name, titles[name]) for name in names if name != DEFAULT)
        )
    for view in views:
        lines += [f"{view.title}: {said}" for said in warnings_lines(view.outcomes, view.part)]
    runs = list({each.path: each for view in views for each in view.outcomes}.values())
    lines += pretraining_lines(runs)
    lines.append(trained_on(runs))
    missing = [
        line
        for protocol in dict.fromkeys(view.protocol for view in views)
        for line in missing_lines(not_run, protocol, {})
    ]
    lines += dict.fromkeys(missing)
    return lines


def _judged_on(view: View) -> str:
    slices = view.paired.slices
    covid = int(slices.label.sum())
    split = view.outcomes[0].split["specification"]
    title = view.title[0].upper() + view.title[1:]
    return (
        f"{title} (split `{split}`): {len(slices.label)} slices ({covid} COVID) of {view.paired.patients} "
        "patients."
    )


def _table_ablation(views: Sequence[View], names: Sequence[str], titles: Mapping[str, str]) -> list[str]:
    heads = ["", "seeds"]
    heads += [f"{view.title}: {HEADS[measure]}" for view in views for measure in TESTED]
    rows = []
    for name in names:
        seeds = {view.paired.rows[name].seeds for view in views if name in view.paired.rows}
        cells = [titles[name], "; ".join(seeds_words(each) for each in sorted(seeds))]
        for view in views:
            spreads = view.spreads.get(name)
            cells += [spread_cell(spreads[measure]) if spreads else "–" for measure in TESTED]
        rows.append(cells)
    return markdown_table(heads, rows)


def _tests(view: View, titles: Mapping[str, str]) -> list[str]:
    against = [(titles[name], each) for name, each in view.against.items()]
    return tests_table(f"{view.title}, against the default", against)


def _verdict_ablation(views: Sequence[View], name: str, title: str) -> str:
    """What the tests say of a variant, over all views."""
    tests = [
        (view.title, measure, test)
        for view in views
        if name in view.against
        for measure, test in view.against[name].measures.items()
    ]
    if not tests:
        return f"- {title}: no seed in common with the default, not tested."
    said = [
        f"{test.verdict} than the default in {HEADS[measure]} on {where} "
        f"(corrected p {p_cell(test.p_corrected)})"
        for where, measure, test in tests
        if test.verdict in {"better", "worse"}
    ]
    return f"- {title}: {'; '.join(said) if said else 'no difference to the default is shown'}."


def _csv_row_ablation(view: View, name: str) -> dict[str, Any]:
    row = view.paired.rows[name]
    columns: dict[str, Any] = {
        "protocol": view.protocol,
        "part": view.part,
        "row": name,
        "seeds": " ".join(map(str, row.seeds)),
        "slices": len(view.paired.slices.label),
        "patients": view.paired.patients,
        "parameters": row.outcomes[0].cost["parameters"],
        "macs": row.outcomes[0].cost["macs"],
    }
    for measure, spread in view.spreads[name].items():
        columns |= spread_columns(measure, spread)
    return columns


def _figure_ablation(views: Sequence[View], names: Sequence[str], titles: Mapping[str, str]) -> Figure:
    """Differences of the AUC to the default, of the accuracy where there is no AUC."""
    shown = [name for name in names if name != DEFAULT] or list(names)
    panels = []
    for view in views:
        measure = "auc" if view.spreads[next(iter(view.spreads))]["auc"].mean is not None else "accuracy"
        marks = tuple(_mark(view, name, measure) for name in shown)
        panels.append(Panel(view.title, f"Δ {HEADS[measure]} to the default", marks, 0.0))
    return forest_figure([titles[name] for name in shown], panels)


def _mark(view: View, name: str, measure: str) -> Mark | None:
    compared = view.against.get(name)
    if compared is None or (test := compared.measures[measure]).difference is None:
        return None
    points = tuple(
        difference for tests in compared.by_seed.values() if (difference := tests[measure][0]) is not None
    )
    return Mark(test.difference, test.low, test.high, points, test.verdict in {"better", "worse"})


WEIGHTS_CONVERGENCE = ("none", "imagenet", "c2l")
"""Kinds of weights in the order of the table and of their colours."""

LEAST_SEEDS = 3
"""With fewer seeds in common, a difference between two kinds of weights is not tested."""

_NOTE = (
    "The mean over epochs is the area under the curve: it is higher for the AUC, and lower for the loss, the "
    "sooner a network learns. Target is the validation AUC that every run of the network reaches at some "
    "epoch. Weights are compared by the mean over epochs with a paired t-test over the seeds both have, at "
    f"least {LEAST_SEEDS}, corrected after Holm over all pairs of the table; it speaks of these validation "
    f"slices only. Faster is said only where the AUC's corrected p is below {ALPHA:g} and the higher AUC is "
    "above chance, 0.5: a network that has learned nothing is not fast."
)
_CHANCE = 0.5


@dataclass(frozen=True)
class Learning:
    """How one network learned from one kind of weights.

    Attributes:
        network: its name.
        weights: what it started from.
        protocol: how slices were split.
        seeds: of the runs.
        loss: on the validation part, by seed and epoch.
        auc: the same, of the AUC.
    """

    network: str
    weights: str
    protocol: str
    seeds: tuple[int, ...]
    loss: tuple[tuple[float, ...], ...]
    auc: tuple[tuple[float, ...], ...]

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.network} ({self.weights})"


@dataclass(frozen=True)
class Faster:
    """Two kinds of weights of one network, by their means over epochs.

    Attributes:
        network: its name.
        first: kind of weights.
        second: the other.
        seeds: that both have.
        auc: mean difference of the AUC averaged over epochs, first less second.
        auc_low: lower bound of its 95 % t-interval over seeds, None for one seed.
        auc_high: upper bound.
        auc_of_winner: the AUC averaged over epochs and seeds of whichever has more of it.
        loss: mean difference of the loss averaged over epochs.
        p: of a paired t-test of the AUC over the seeds, None for fewer than three.
        p_corrected: after Holm's correction.
    """

    network: str
    first: str
    second: str
    seeds: tuple[int, ...]
    auc: float
    auc_low: float | None
    auc_high: float | None
    auc_of_winner: float
    loss: float
    p: float | None
    p_corrected: float | None = None


def render_convergence(folder: Path, *, readme: Path | None = None) -> str:
    """Render curves and comparisons from the results below ``folder``, beside them.

    Writes ``convergence.md``, ``convergence.json``, ``convergence.csv`` and ``convergence.svg``.

    Args:
        folder: of the results.
        readme: a Markdown file whose text is replaced, between its markers.

    Returns:
        The text as Markdown.

    Raises:
        DataError: there is no result.
    """
    outcomes = read_run_results(folder)
    learned = _learned(outcomes)
    targets = {
        network: _target(network, learned) for network in dict.fromkeys(each.network for each in learned)
    }
    compared = _compare(learned)
    not_run = read_not_run(folder)
    text = "\n\n".join(_paragraphs_convergence(outcomes, learned, targets, compared, not_run)) + "\n"
    write_text(folder / "convergence.md", text)
    write_json(folder / "convergence.json", _document(learned, targets, compared, not_run))
    write_csv(folder / "convergence.csv", list(_epochs(learned)))
    write_text(folder / "convergence.svg", svg(_figure_convergence(learned)))
    if readme is not None:
        put_into(readme, "convergence", folder, text)
    return text


def _learned(outcomes: Sequence[RunResult]) -> list[Learning]:
    """Runs gathered by network and weights."""
    gathered: dict[tuple[str, str, str], list[RunResult]] = {}
    for outcome in outcomes:
        key = (outcome.network, outcome.weights, outcome.identity.protocol)
        gathered.setdefault(key, []).append(outcome)
    known = list(WEIGHTS_CONVERGENCE)
    ordered = sorted(
        gathered, key=lambda key: (key[0], known.index(key[1]) if key[1] in known else len(known), key[2])
    )
    return [
        Learning(
            *key,
            tuple(run.identity.seed for run in runs),
            tuple(tuple(float(row["val_loss"]) for row in run.history) for run in runs),
            tuple(tuple(float(row["val_auc"]) for row in run.history) for run in runs),
        )
        for key in ordered
        if (runs := sorted(gathered[key], key=lambda run: run.identity.seed))
    ]


def _target(network: str, learned: Sequence[Learning]) -> float:
    """The highest validation AUC that every run of the network reaches."""
    return min(max(curve) for each in learned if each.network == network for curve in each.auc)


def _reached(curve: Sequence[float], target: float) -> int:
    """First epoch, from 1, at which a curve is at least ``target``."""
    return next(number for number, value in enumerate(curve, 1) if value >= target)


def _compare(learned: Sequence[Learning]) -> list[Faster]:
    compared = [
        faster
        for first, second in combinations(learned, 2)
        if (first.network, first.protocol) == (second.network, second.protocol)
        and (faster := _difference(second, first))
    ]
    corrected = holm([each.p for each in compared])
    return [Faster(**{**asdict(each), "p_corrected": p}) for each, p in zip(compared, corrected, strict=True)]


def _difference(first: Learning, second: Learning) -> Faster | None:
    seeds = tuple(seed for seed in first.seeds if seed in second.seeds)
    if not seeds:
        return None
    both = np.array([[_area(each, seed, "auc") for seed in seeds] for each in (first, second)])
    auc = both[0] - both[1]
    loss = np.array([_area(first, seed, "loss") - _area(second, seed, "loss") for seed in seeds])
    low = high = p = None
    error = float(auc.std(ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else 0.0
    if error > 0:
        reach = float(stats.t.ppf(0.975, len(seeds) - 1)) * error
        low, high = float(auc.mean()) - reach, float(auc.mean()) + reach
        if len(seeds) >= LEAST_SEEDS:
            p = float(2 * stats.t.sf(abs(float(auc.mean())) / error, len(seeds) - 1))
    return Faster(
        first.network,
        first.weights,
        second.weights,
        seeds,
        float(auc.mean()),
        low,
        high,
        float(both.mean(axis=1).max()),
        float(loss.mean()),
        p,
    )


def _area(learned: Learning, seed: int, measure: str) -> float:
    """A curve's mean over epochs."""
    curves = learned.auc if measure == "auc" else learned.loss
    return statistics.fmean(curves[learned.seeds.index(seed)])


def _paragraphs_convergence(
    outcomes: Sequence[RunResult],
    learned: Sequence[Learning],
    targets: Mapping[str, float],
    compared: Sequence[Faster],
    not_run: Mapping[str, str],
) -> list[str]:
    rows = [
        Row(each.identity.row, each.identity.title, (each,), {})
        for each in {each.identity.row: each for each in outcomes}.values()
    ]
    protocols = list(dict.fromkeys(each.protocol for each in learned))
    counts = outcomes[0].run.get("counts", {})
    lines = [
        f"Validation part of split `{outcomes[0].split['specification']}` ({counts.get('val')} slices). "
        + " ".join(settings_lines(rows)),
        "![Validation loss and AUC over the epochs, mean and every seed](./convergence.svg)",
        "\n".join(_table_convergence(learned, targets)),
        _NOTE,
    ]
    if compared:
        lines.append("\n".join(_verdict_convergence(each) for each in compared))
    lines.append(trained_on(outcomes))
    for protocol in dict.fromkeys([*protocols, *(name.partition("/")[0] for name in not_run)]):
        lines += missing_lines(not_run, protocol, {})
    return lines


def _table_convergence(learned: Sequence[Learning], targets: Mapping[str, float]) -> list[str]:
    heads = ["network", "weights", "seeds", "best AUC", "mean AUC over epochs", "mean loss over epochs"]
    heads.append("epochs to the target AUC")
    rows = []
    for each in learned:
        target = targets[each.network]
        rows.append(
            [
                each.network,
                each.weights,
                seeds_words(each.seeds),
                _cell([max(curve) for curve in each.auc]),
                _cell([_area(each, seed, "auc") for seed in each.seeds]),
                _cell([_area(each, seed, "loss") for seed in each.seeds]),
                f"{_cell([float(_reached(curve, target)) for curve in each.auc], 1)} ({target:.3f})",
            ]
        )
    return markdown_table(heads, rows)


def _cell(values: Sequence[float], digits: int = 3) -> str:
    sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{sd}"


def _verdict_convergence(each: Faster) -> str:
    interval = ""
    if each.auc_low is not None and each.auc_high is not None:
        interval = f", 95 % interval over seeds {signed(each.auc_low)} to {signed(each.auc_high)}"
    figures = (
        f"mean AUC over epochs {signed(each.auc)}{interval}, mean loss over epochs {signed(each.loss)}, "
        f"seeds {seeds_words(each.seeds)}, corrected p {p_cell(each.p_corrected)}"
    )
    pair = f"{each.network}, {each.first} against {each.second}"
    if each.p_corrected is not None and each.p_corrected < ALPHA:
        winner = each.first if each.auc > 0 else each.second
        if each.auc_of_winner <= _CHANCE:
            return (
                f"- {pair}: {winner} has the higher AUC ({figures}), but neither learned: averaged over "
                f"epochs it is {each.auc_of_winner:.3f}, no better than chance."
            )
        return f"- {pair}: {winner} is faster ({figures})."
    why = "" if each.p is not None else f"; fewer than {LEAST_SEEDS} seeds in common, not tested"
    return f"- {pair}: no difference shown ({figures}{why})."


def _document(
    learned: Sequence[Learning],
    targets: Mapping[str, float],
    compared: Sequence[Faster],
    not_run: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "format": 1,
        "curves": [
            {
                **asdict(each),
                "target_auc": targets[each.network],
                "epochs_to_target": [_reached(curve, targets[each.network]) for curve in each.auc],
            }
            for each in learned
        ],
        "comparisons": [asdict(each) for each in compared],
        "not_run": dict(not_run),
    }


def _epochs(learned: Sequence[Learning]) -> list[dict[str, Any]]:
    """One line per network, weights, seed and epoch."""
    return [
        {
            "protocol": each.protocol,
            "network": each.network,
            "weights": each.weights,
            "seed": seed,
            "epoch": epoch,
            "val_loss": loss,
            "val_auc": auc,
        }
        for each in learned
        for seed, losses, aucs in zip(each.seeds, each.loss, each.auc, strict=True)
        for epoch, (loss, auc) in enumerate(zip(losses, aucs, strict=True), 1)
    ]


def _figure_convergence(learned: Sequence[Learning]) -> Figure:
    panels = []
    for network, protocol in dict.fromkeys((each.network, each.protocol) for each in learned):
        chosen = [each for each in learned if (each.network, each.protocol) == (network, protocol)]
        loss = tuple(Curve(each.weights, each.loss) for each in chosen)
        auc = tuple(Curve(each.weights, each.auc) for each in chosen)
        panels.append(
            [CurvePanel(network, "Validation loss", loss), CurvePanel(network, "Validation AUC", auc)]
        )
    return curves_figure(panels)
