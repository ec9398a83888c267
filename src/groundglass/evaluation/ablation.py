"""The ablation, rendered from the results of its runs: what each part of the default recipe is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from groundglass.atomic import write_text
from groundglass.errors import DataError
from groundglass.evaluation.experiment_tables import (
    CELL_NOTE,
    HEADS,
    TEST_NOTE,
    markdown_table,
    missing_lines,
    p_cell,
    pretraining_lines,
    put_into,
    recipe_words,
    seeds_words,
    spread_cell,
    spread_columns,
    tests_table,
    trained_on,
    warnings_lines,
    write_comparisons,
    write_csv,
)
from groundglass.evaluation.outcome import Outcome, read_not_run, read_outcomes
from groundglass.evaluation.paired_rows import TESTED, Comparison, PairedRows, Spread
from groundglass.reporting.experiment_figures import Mark, Panel, forest_figure
from groundglass.reporting.figures import svg

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
    spreads: Mapping[str, Mapping[str, Spread]]
    against: Mapping[str, Comparison]
    outcomes: tuple[Outcome, ...]

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
    outcomes = read_outcomes(folder)
    views = [view for protocol, part in _views(outcomes) if (view := _view(outcomes, protocol, part))]
    if not views:
        raise DataError(f"{folder}: no variant's folds are complete yet; run `groundglass compare ablation`")
    names = sorted({name for view in views for name in view.paired.rows}, key=_place)
    titles = {name: view.paired.rows[name].title for view in views for name in view.paired.rows}
    text = "\n\n".join(_paragraphs(views, names, titles, read_not_run(folder))) + "\n"
    write_text(folder / "ablation.md", text)
    write_csv(folder / "ablation.csv", [_csv_row(view, name) for view in views for name in view.paired.rows])
    write_comparisons(
        folder,
        [({"protocol": v.protocol, "part": v.part}, each) for v in views for each in v.against.values()],
    )
    write_text(folder / "ablation.svg", svg(_figure(views, names, titles)))
    if readme is not None:
        put_into(readme, "ablation", folder, text)
    return text


def _views(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """The known views first, then what else was judged."""
    there = {(each.identity.protocol, part) for each in outcomes for part in each.judged}
    known = [view for view in VIEWS if view in there]
    # The val part of a split that leaves a source out is of the sources trained on: it answers nothing new.
    return known + sorted(there - set(known) - {(LEFT_OUT, "val")})


def _view(outcomes: Sequence[Outcome], protocol: str, part: str) -> View | None:
    chosen = [each for each in outcomes if each.identity.protocol == protocol]
    paired = PairedRows(chosen, part)
    if not paired.rows:
        return None
    others = [name for name in sorted(paired.rows, key=_place) if name != DEFAULT]
    compared = paired.compare([(name, DEFAULT) for name in others]) if DEFAULT in paired.rows else []
    spreads = {name: paired.spread(name) for name in paired.rows}
    return View(protocol, part, paired, spreads, {each.first: each for each in compared}, tuple(chosen))


def _place(name: str) -> tuple[int, str]:
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
        "\n".join(_table(views, names, titles)),
        CELL_NOTE,
        "![Difference of every variant to the default, with intervals](./ablation.svg)",
    ]
    if any(view.against for view in views):
        lines += ["\n".join(_tests(view, titles)) for view in views if view.against]
        lines.append(TEST_NOTE.format(family="comparisons of each table"))
        lines.append("\n".join(_verdict(views, name, titles[name]) for name in names if name != DEFAULT))
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


def _table(views: Sequence[View], names: Sequence[str], titles: Mapping[str, str]) -> list[str]:
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


def _verdict(views: Sequence[View], name: str, title: str) -> str:
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


def _csv_row(view: View, name: str) -> dict[str, Any]:
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


def _figure(views: Sequence[View], names: Sequence[str], titles: Mapping[str, str]) -> Figure:
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
