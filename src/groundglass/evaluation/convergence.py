"""How fast a network learns from different weights: validation curves over epochs, with seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.experiment_tables import (
    markdown_table,
    missing_lines,
    p_cell,
    put_into,
    seeds_words,
    settings_lines,
    signed,
    trained_on,
    write_csv,
)
from groundglass.evaluation.outcome import Outcome, read_not_run, read_outcomes
from groundglass.evaluation.paired import holm
from groundglass.evaluation.paired_rows import ALPHA, Row
from groundglass.reporting.experiment_figures import Curve, CurvePanel, curves_figure
from groundglass.reporting.figures import svg

WEIGHTS = ("none", "imagenet", "c2l")
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
    outcomes = read_outcomes(folder)
    learned = _learned(outcomes)
    targets = {
        network: _target(network, learned) for network in dict.fromkeys(each.network for each in learned)
    }
    compared = _compare(learned)
    not_run = read_not_run(folder)
    text = "\n\n".join(_paragraphs(outcomes, learned, targets, compared, not_run)) + "\n"
    write_text(folder / "convergence.md", text)
    write_json(folder / "convergence.json", _document(learned, targets, compared, not_run))
    write_csv(folder / "convergence.csv", list(_epochs(learned)))
    write_text(folder / "convergence.svg", svg(_figure(learned)))
    if readme is not None:
        put_into(readme, "convergence", folder, text)
    return text


def _learned(outcomes: Sequence[Outcome]) -> list[Learning]:
    """Runs gathered by network and weights."""
    gathered: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.network, outcome.weights, outcome.identity.protocol)
        gathered.setdefault(key, []).append(outcome)
    known = list(WEIGHTS)
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


def _paragraphs(
    outcomes: Sequence[Outcome],
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
        "\n".join(_table(learned, targets)),
        _NOTE,
    ]
    if compared:
        lines.append("\n".join(_verdict(each) for each in compared))
    lines.append(trained_on(outcomes))
    for protocol in dict.fromkeys([*protocols, *(name.partition("/")[0] for name in not_run)]):
        lines += missing_lines(not_run, protocol, {})
    return lines


def _table(learned: Sequence[Learning], targets: Mapping[str, float]) -> list[str]:
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


def _verdict(each: Faster) -> str:
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


def _figure(learned: Sequence[Learning]) -> Figure:
    panels = []
    for network, protocol in dict.fromkeys((each.network, each.protocol) for each in learned):
        chosen = [each for each in learned if (each.network, each.protocol) == (network, protocol)]
        loss = tuple(Curve(each.weights, each.loss) for each in chosen)
        auc = tuple(Curve(each.weights, each.auc) for each in chosen)
        panels.append(
            [CurvePanel(network, "Validation loss", loss), CurvePanel(network, "Validation AUC", auc)]
        )
    return curves_figure(panels)
