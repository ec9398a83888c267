"""Fitting of the input check: a linear model of lung slices and pictures of other things, and its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.linalg import eigsh

from groundglass.inference.input_check import APPEARANCE, LUNG, InputCheck
from groundglass.inference.reference import CLIP, Features, OutOfDistributionModel

_Weights = NDArray[np.float64]

_COMPONENTS = 64
# Features that hardly vary among lung slices would dominate otherwise.
_LEAST_SPREAD = 0.25
_PENALTY = 1e-4
_STEPS = 300
_FOLDS = 5

_ACCEPTED = 0.99
"""Share of held-out lung slices that is to be accepted at least."""
_REFUSED = 0.99
"""Share of held-out other pictures that is to be refused where that accepts more slices."""


@dataclass(frozen=True)
class Examples:
    """Described pictures of known kind, N of them.

    Attributes:
        features: shape (N, d).
        kind: `LUNG`, or what else each picture is.
        group: whose picture it is, shape (N,): pictures of one group are never on both sides of a fit.
        weight: how much each lung slice counts, shape (N,); other kinds are weighted by their numbers.
    """

    features: Features
    kind: tuple[str, ...]
    group: NDArray[np.integer]
    weight: _Weights

    @property
    def lung(self) -> NDArray[np.bool_]:
        """Which pictures are lung slices, shape (N,)."""
        return np.array([kind == LUNG for kind in self.kind])

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """Those examples alone."""
        kind = tuple(kind for kind, keep in zip(self.kind, chosen, strict=True) if keep)
        return Examples(self.features[chosen], kind, self.group[chosen], self.weight[chosen])


def fit_input_check(examples: Examples, deciding: NDArray[np.bool_]) -> InputCheck:
    """Learn to distinguish lung slices from other pictures.

    The limit is the larger of the two that accept 99 % of held-out lung slices and refuse 99 % of held-out
    other pictures. Where the kinds lie well apart, that of the lung slices is too strict: all of them were
    trained on, and the network's embeddings of new ones lie farther out.

    Args:
        examples: lung slices and other pictures.
        deciding: which of the lung slices decide on the limit, shape (N,).

    Raises:
        ValueError: there are no two groups of lung slices or of other pictures, or no deciding slice.
    """
    if not deciding.any():
        raise ValueError("the input check's limit needs lung slices to decide on it")
    held_out = _held_out_odds(examples)
    limits = (
        np.quantile(held_out[deciding], _ACCEPTED),
        np.quantile(held_out[~examples.lung], 1 - _REFUSED),
    )
    # Below even odds nothing is refused, however well the kinds can be distinguished.
    return InputCheck(fit_model(examples), round(max(0.0, *map(float, limits)), 4))


def accept_all(channels: int) -> InputCheck:
    """An untrained check: it accepts whatever is neither blank nor of a wrong geometry.

    Args:
        channels: of the network's embedding.
    """
    features = np.random.default_rng(0).normal(0, 1, (4, APPEARANCE + channels))
    examples = Examples(features, (LUNG, LUNG, "other", "other"), np.arange(4), np.ones(4))
    return InputCheck(fit_model(examples), float("inf"))


def fit_model(examples: Examples) -> OutOfDistributionModel:
    """Fit to examples of lung slices and of every other kind.

    Raises:
        ValueError: there is no lung slice or nothing else.
    """
    lung = examples.lung
    if lung.all() or not lung.any():
        raise ValueError("the input check needs examples of lung slices and of other pictures")
    kinds = sorted(set(examples.kind) - {LUNG})
    base = _standardise(examples.features[lung], examples.weight[lung], kinds)
    described = base.describe(examples.features).astype(np.float64)
    target = np.array([[LUNG, *kinds].index(kind) for kind in examples.kind])
    weight = _balanced(examples, target)
    middle = weight @ described
    weights, bias = _regress(described - middle, target, weight, 1 + len(kinds))
    return replace(
        base,
        weights=np.asarray(weights, np.float32),
        bias=np.asarray(bias - middle @ weights, np.float32),
    )


def _standardise(lungs: Features, weight: _Weights, kinds: Sequence[str]) -> OutOfDistributionModel:
    """A model that knows lung slices but no weights yet."""
    share = weight / weight.sum()
    centre = share @ lungs
    spread = np.sqrt(share @ np.square(lungs - centre))
    spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-9)
    standard = np.clip((lungs - centre) / spread, -CLIP, CLIP) * np.sqrt(share)[:, None]
    dimensions = lungs.shape[1]
    count = min(_COMPONENTS, max(1, len(lungs) // 2), dimensions - 1)
    # A fixed start: the same examples give the same model.
    variances, vectors = eigsh(standard.T @ standard, count, v0=np.ones(dimensions))
    return OutOfDistributionModel(
        np.asarray(centre, np.float32),
        np.asarray(spread, np.float32),
        # Half precision: the distances do not need more, and the bundle stays small.
        np.asarray(vectors.T[::-1], np.float16),
        np.asarray(np.sqrt(np.maximum(variances[::-1], 1e-6)), np.float32),
        np.zeros((dimensions + 2, 1 + len(kinds)), np.float32),
        np.zeros(1 + len(kinds), np.float32),
        np.array(kinds),
    )


def _balanced(examples: Examples, target: NDArray[np.integer]) -> _Weights:
    """Weights that sum to 1: half for lung slices, half for other kinds by the roots of their numbers."""
    counts = np.bincount(target).astype(np.float64)
    roots = np.sqrt(counts)
    weight = (roots / roots[1:].sum() / counts)[target] / 2
    lung = target == 0
    weight[lung] = examples.weight[lung] / examples.weight[lung].sum() / 2
    return np.asarray(weight)


def _regress(
    described: NDArray[np.float64], target: NDArray[np.integer], weight: _Weights, kinds: int
) -> tuple[_Weights, _Weights]:
    """Multinomial logistic regression with a ridge penalty: weights (d, kinds) and bias (kinds,)."""
    wanted = np.eye(kinds)[target]

    def loss(flat: _Weights) -> tuple[float, _Weights]:
        table = flat.reshape(-1, kinds)
        scores = described @ table[:-1] + table[-1]
        log_share = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
        error = (np.exp(log_share) - wanted) * weight[:, None]
        gradient = np.vstack([described.T @ error + _PENALTY * table[:-1], error.sum(axis=0)])
        likelihood = (weight * (log_share * wanted).sum(axis=1)).sum()
        return float(_PENALTY / 2 * np.square(table[:-1]).sum() - likelihood), gradient.ravel()

    start = np.zeros((described.shape[1] + 1) * kinds)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    table = found.x.reshape(-1, kinds)
    return table[:-1], table[-1]


def _held_out_odds(examples: Examples) -> NDArray[np.float32]:
    """Log odds of anything else against lung by models that saw nothing of a picture's group, shape (N,)."""
    fold = np.empty(len(examples.kind), np.int64)
    for same in (examples.lung, ~examples.lung):
        groups, member = np.unique(examples.group[same], return_inverse=True)
        fold[same] = np.random.default_rng(0).permutation(len(groups))[member] % _FOLDS
    result = np.empty(len(fold), np.float32)
    for number in np.unique(fold):
        held = fold == number
        odds = fit_model(examples.take(~held)).odds(examples.features[held])
        result[held] = np.logaddexp.reduce(odds, axis=1)
    return result
