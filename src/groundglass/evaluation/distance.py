"""How far evaluated data lie from what a bundle learned from, and whether its figures can carry over to them.

A model's figures hold for data like those they were measured on: a published EfficientNet fell from 0.88 to
0.56 on the slices of another hospital. What can be seen of that without trusting a single label is said
here: what the bundle would refuse, how far slices lie from the training part in the network's embedding and
in their grey values, and whether a classifier tells them from held-out slices of the training data's own
sources. The former two notice slices that are strange each by itself, the last one notices that all of them
have moved a little. The verdict's limits were set on the validation part, patients kept apart, and on its
altered slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from groundglass.evaluation.intervals import Bootstrap
from groundglass.evaluation.metrics import Metrics
from groundglass.evaluation.told_apart import ToldApart
from groundglass.imaging.exposure import Statistic
from groundglass.inference.reference import Places

Verdict = Literal["alike", "doubtful", "far", "unknown"]

FAR_OUT = (95.0, 99.0)
"""Percentiles of the held-out slices beyond which slices are counted."""

ALIKE, FAR = 0.20, 0.30
"""Up to this share of slices outside data may be alike; from this share on they are far."""

TOLD = 0.75
"""AUC from which on data that are told apart are not alike, few slices outside or not."""

FEWEST = 20
"""Slices below which there is no verdict."""

LIMITS = (
    "What leaves no trace in the picture is not seen: labels given by other rules, other diseases among "
    "NonCOVID, another share of COVID."
)


def verdict_of(outside: float, told: float | None) -> Verdict:
    """What enough slices are called.

    Args:
        outside: share of them that is refused or strange, 0 to 1.
        told: AUC with which they are told apart; None where nobody can say.
    """
    if outside >= FAR:
        return "far"
    return "doubtful" if outside > ALIKE or (told is not None and told >= TOLD) else "alike"


@dataclass(frozen=True)
class Share:
    """A share of the slices.

    Attributes:
        value: 0 to 1.
        low: lower bound of the 95 % interval over patients, None with a single patient.
        high: upper bound, likewise.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Spread:
    """Where slices lie among held-out slices, by one of the two distances.

    Attributes:
        beyond_95: share that lies farther than 95 % of the held-out slices; 5 % are expected.
        beyond_99: share that lies farther than 99 % of them.
        median: percentile of the middle slice, 0 to 100; 50 is expected.
        farther: chance that a slice lies farther than a held-out one, the area under the ROC curve of the
            distance; 0.5 is expected.
    """

    beyond_95: Share
    beyond_99: Share
    median: float
    farther: float


@dataclass(frozen=True)
class Shift:
    """One grey statistic of the data against the training part's.

    Attributes:
        statistic: which.
        training: its 5 %, 50 % and 95 % quantiles in the training part.
        data: the same of the data.
        shift: of the middle, in standard deviations of the training part, on the statistic's scale.
        outside: share of slices below the training part's 5 % or above its 95 % quantile; 10 % are expected.
    """

    statistic: Statistic
    training: tuple[float, ...]
    data: tuple[float, ...]
    shift: float
    outside: Share


@dataclass(frozen=True)
class Accepted:
    """The measures over the slices alone that the bundle accepts.

    Attributes:
        slices: how many.
        metrics: their measures.
        bootstrap: intervals of these.
    """

    slices: int
    metrics: Metrics
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Placed:
    """Where the slices lie from the training part.

    Attributes:
        training: slices of the training part.
        held_out: held-out slices.
        outside: share that is refused, or stranger than 95 % of the held-out slices in embedding or grey
            values, whichever is stranger; 5 % and what is refused of slices alike are expected.
        embedding: by the network's embedding.
        grey: by grey statistics.
        shifts: of each grey statistic.
        told_apart: from the held-out slices.
        calibrating: how many of the slices are held-out slices themselves, which makes the data look nearer.
        places: of every slice.
    """

    training: int
    held_out: int
    outside: Share
    embedding: Spread
    grey: Spread
    shifts: tuple[Shift, ...]
    told_apart: ToldApart
    calibrating: int
    places: Places


@dataclass(frozen=True)
class Distance:
    """How far the data lie from the training data.

    Attributes:
        slices: how many were placed.
        patients: they belong to.
        refused: share that the bundle's users would be refused an answer for.
        reasons: how often each reason was given, without the numbers in it.
        accepted: measures of the others; None where there are none.
        placed: None where the bundle carries no reference.
    """

    slices: int
    patients: int
    refused: Share
    reasons: Mapping[str, int]
    accepted: Accepted | None
    placed: Placed | None

    @property
    def verdict(self) -> Verdict:
        """Whether the data are like the training data."""
        if self.slices < FEWEST:
            return "unknown"
        if self.placed is None:
            return "far" if self.refused.value >= FAR else "unknown"
        return verdict_of(self.placed.outside.value, self.placed.told_apart.auc)

    @property
    def words(self) -> str:
        """The verdict in words."""
        if self.slices < FEWEST:
            return f"{self.slices} slices are too few to say whether they are like the training data."
        if self.placed is None:
            return f"{_percent(self.refused)} of the slices are refused: {_MEANING[self.verdict]} {_UNKNOWN}"
        told = self.placed.told_apart.auc
        apart = (
            ""
            if told is None
            else f", and a classifier tells them from such slices with an AUC of {told:.2f}"
        )
        copies = self.placed.calibrating
        note = f" {copies} of them are held-out slices themselves." if copies else ""
        return (
            f"{_percent(self.placed.outside)} of the slices are refused or stranger than 95 % of held-out "
            f"slices of the training data's sources{apart}: {_MEANING[self.verdict]}{note}"
        )


_MEANING: Mapping[Verdict, str] = {
    "alike": "the data look like the training data.",
    "doubtful": "the data differ from the training data; the figures of the model card may not carry over.",
    "far": "the figures of the model card do not carry over to these data.",
    "unknown": "how far these data lie from the training data is not known.",
}
_UNKNOWN = "The bundle carries no statistics of its training data; `groundglass reference` adds them."


def _percent(share: Share) -> str:
    low, high = share.low, share.high
    bounds = "" if low is None or high is None else f" (95 % interval {100 * low:.0f}–{100 * high:.0f} %)"
    return f"{100 * share.value:.0f} %{bounds}"
