"""The paper's Table I, rendered from the results of its runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from groundglass.atomic import write_text
from groundglass.errors import DataError, GroundglassError
from groundglass.evaluation.experiment_tables import (
    CELL_NOTE,
    HEADS,
    MEASURES,
    TEST_NOTE,
    counted,
    mark_of,
    markdown_table,
    missing_lines,
    p_cell,
    pretraining_lines,
    put_into,
    seeds_words,
    settings_lines,
    spread_cell,
    spread_columns,
    tests_table,
    timed_on,
    trained_on,
    warnings_lines,
    write_comparisons,
    write_csv,
)
from groundglass.evaluation.outcome import Outcome, read_not_run, read_outcomes, read_speed
from groundglass.evaluation.paired_rows import Comparison, PairedRows, Row, Spread
from groundglass.models.catalogue import find
from groundglass.reporting.experiment_figures import Panel, forest_figure
from groundglass.reporting.figures import svg

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
    spreads: Mapping[str, Mapping[str, Spread]]
    reference: str | None
    against: tuple[Comparison, ...]
    pairs: tuple[Comparison, ...]
    outcomes: tuple[Outcome, ...]
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
    outcomes = read_outcomes(folder)
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
    outcomes: Sequence[Outcome],
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


def _family(outcome: Outcome) -> str:
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


def _speeds(section: Section, outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]]:
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
