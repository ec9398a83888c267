"""What the tables of all experiments have in common: cells, settings, circumstances, and what is missing."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.outcome import Outcome
from groundglass.evaluation.paired_rows import ALPHA, TESTED, Comparison, MeasureTest, Row, Spread
from groundglass.evaluation.repeat import update_readme
from groundglass.reporting.experiment_figures import Mark

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


def spread_cell(spread: Spread) -> str:
    """``0.832 ± 0.009 (0.787–0.874)``: mean, standard deviation over seeds, interval over patients."""
    if spread.mean is None:
        return "–"
    sd = f" ± {spread.sd:.3f}" if spread.sd is not None else ""
    interval = f" ({spread.low:.3f}–{spread.high:.3f})" if spread.low is not None else ""
    return f"{spread.mean:.3f}{sd}{interval}"


def mark_of(spread: Spread, *, strong: bool = False) -> Mark | None:
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
    size, training = recipe["framing"]["size"], recipe["training"]
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


def trained_on(outcomes: Iterable[Outcome]) -> str:
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
        f"batches of {each['batch_size']} framed slices, {each['device']}, "
        f"{counted(each['threads'], 'thread')}, median of {each['rounds']} rounds"
        for each in speeds
    }
    if not timed:
        return []
    return [f"Images per second at inference, {how}: {' and '.join(sorted(timed))}."]


def counted(number: int, noun: str) -> str:
    """``1 epoch``, ``3 epochs``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def warnings_lines(outcomes: Sequence[Outcome], part: str) -> list[str]:
    """What a reader must know of the slices, as evaluation said it of every run alike."""
    said = Counter(
        warning for outcome in outcomes for warning in outcome.parts.get(part, {}).get("warnings", ())
    )
    return [warning for warning, count in said.items() if count == len(outcomes)]


def pretraining_lines(outcomes: Sequence[Outcome]) -> list[str]:
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


def _kept_apart(outcome: Outcome) -> bool:
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


def spread_columns(name: str, spread: Spread) -> dict[str, float | None]:
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
