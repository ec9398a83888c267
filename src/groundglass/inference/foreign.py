"""How foreign a picture is to lung slices, by a linear model of its description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LUNG = "lung"
"""Name of the kind that is to be accepted."""

Features = NDArray[np.floating]
"""Descriptions of N pictures, shape (N, d)."""

_Weights = NDArray[np.float64]

_COMPONENTS = 64
# A number that lies farther than this many standard deviations from lung slices' mean speaks no louder.
_CLIP = 6.0
# Numbers that hardly vary among lung slices would otherwise shout at the least deviation.
_LEAST_SPREAD = 0.25
# The two distances stand beside a few thousand numbers that are small each; so they are heard.
_DISTANCE_WEIGHT = 3.0
_PENALTY = 1e-4
_STEPS = 300


@dataclass(frozen=True)
class Examples:
    """Described pictures of known kind, N of them.

    Attributes:
        features: shape (N, d).
        kind: `LUNG`, or what else each picture is.
        group: whose picture it is, shape (N,): pictures of one group are never on both sides of a fit.
        weight: how much each lung slice counts, shape (N,); foreign kinds are weighted by their numbers.
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


@dataclass(frozen=True)
class ForeignModel:
    """A multinomial logistic regression on standardised numbers and two distances from lung slices.

    Attributes:
        centre: mean of lung slices, shape (d,).
        spread: their standard deviation, shape (d,).
        directions: principal directions of the standardised lung slices, shape (k, d).
        scale: their standard deviation along these, shape (k,).
        weights: shape (d + 2, 1 + kinds); the first column is that of lung slices.
        bias: shape (1 + kinds,).
        kinds: what a foreign picture may be.
    """

    centre: NDArray[np.float32]
    spread: NDArray[np.float32]
    directions: NDArray[np.floating]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    kinds: NDArray[np.str_]

    def __post_init__(self) -> None:
        count = len(self.centre)
        expected = {
            "spread": (count,),
            "directions": (len(self.scale), count),
            "weights": (count + 2, 1 + len(self.kinds)),
            "bias": (1 + len(self.kinds),),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is of shape {getattr(self, name).shape}, expected {shape}")

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def odds(self, features: Features) -> NDArray[np.float32]:
        """Log odds of each foreign kind against lung, shape (N, kinds)."""
        scores = self._describe(features) @ self.weights + self.bias
        return np.asarray(scores[:, 1:] - scores[:, :1], np.float32)

    def foreignness(self, features: Features) -> NDArray[np.float32]:
        """Log odds of anything foreign against lung, shape (N,)."""
        return np.asarray(np.logaddexp.reduce(self.odds(features), axis=1), np.float32)

    @cached_property
    def _across(self) -> NDArray[np.float32]:
        """The directions as columns in single precision: to convert them takes longer than to use them."""
        return np.ascontiguousarray(self.directions.T, np.float32)

    def _describe(self, features: Features) -> NDArray[np.float32]:
        """Standardised numbers and both distances, shape (N, d + 2)."""
        standard = np.clip((features - self.centre) / self.spread, -_CLIP, _CLIP).astype(np.float32)
        along = standard @ self._across
        beside = np.maximum(np.square(standard).sum(axis=1) - np.square(along).sum(axis=1), 1e-6)
        within = np.maximum(np.square(along / self.scale).sum(axis=1), 1e-6)
        distances = _DISTANCE_WEIGHT / 2 * np.log(np.stack([beside, within], axis=1))
        return np.concatenate([standard / np.sqrt(len(self.centre)), distances], axis=1, dtype=np.float32)


def fit_foreign_model(examples: Examples) -> ForeignModel:
    """Fit to examples of lung slices and of every foreign kind.

    Raises:
        ValueError: there is no lung slice or nothing foreign.
    """
    lung = examples.lung
    if lung.all() or not lung.any():
        raise ValueError("the gate needs examples of lung slices and of foreign pictures")
    base = _standardise(examples.features[lung], examples.weight[lung], sorted(set(examples.kind) - {LUNG}))
    described = base._describe(examples.features).astype(np.float64)
    kinds = [LUNG, *base.kinds.tolist()]
    target = np.array([kinds.index(kind) for kind in examples.kind])
    weight = _balanced(examples, target)
    middle = weight @ described
    weights, bias = _regress(described - middle, target, weight, len(kinds))
    return ForeignModel(
        base.centre,
        base.spread,
        base.directions,
        base.scale,
        np.asarray(weights, np.float32),
        np.asarray(bias - middle @ weights, np.float32),
        base.kinds,
    )


def held_out_foreignness(examples: Examples, folds: int = 5) -> NDArray[np.float32]:
    """Foreignness of each picture by a model that saw nothing of its group, in the order of the examples.

    Args:
        examples: all of them.
        folds: how many models are fitted, at least 2.

    Raises:
        ValueError: all lung slices, or all foreign pictures, are of one group.
    """
    fold = np.empty(len(examples.kind), np.int64)
    for same in (examples.lung, ~examples.lung):
        groups, member = np.unique(examples.group[same], return_inverse=True)
        fold[same] = np.random.default_rng(0).permutation(len(groups))[member] % folds
    result = np.empty(len(fold), np.float32)
    for number in np.unique(fold):
        held = fold == number
        result[held] = fit_foreign_model(examples.take(~held)).foreignness(examples.features[held])
    return result


def _standardise(lungs: Features, weight: _Weights, kinds: Sequence[str]) -> ForeignModel:
    """A model that knows lung slices but no weights yet."""
    share = weight / weight.sum()
    centre = share @ lungs
    spread = np.sqrt(share @ np.square(lungs - centre))
    spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-9)
    standard = np.clip((lungs - centre) / spread, -_CLIP, _CLIP) * np.sqrt(share)[:, None]
    variances, directions = _principal(standard.T @ standard, min(_COMPONENTS, max(1, len(lungs) // 2)))
    return ForeignModel(
        np.asarray(centre, np.float32),
        np.asarray(spread, np.float32),
        # Half precision: the distances do not need more, and the bundle stays small.
        np.asarray(directions, np.float16),
        np.asarray(np.sqrt(np.maximum(variances, 1e-6)), np.float32),
        np.zeros((lungs.shape[1] + 2, 1 + len(kinds)), np.float32),
        np.zeros(1 + len(kinds), np.float32),
        np.array(kinds),
    )


def _principal(covariance: _Weights, count: int) -> tuple[_Weights, _Weights]:
    """The largest eigenvalues of a covariance and their eigenvectors as rows, largest first."""
    from scipy.sparse.linalg import eigsh  # noqa: PLC0415 - for fitting alone, and slow to import

    count = min(count, len(covariance) - 1)
    # A fixed start: the same examples give the same model.
    values, vectors = eigsh(covariance, count, v0=np.ones(len(covariance)))
    return values[::-1], vectors.T[::-1]


def _balanced(examples: Examples, target: NDArray[np.integer]) -> _Weights:
    """Weights that sum to 1: half for lung slices, half for foreign kinds by the roots of their numbers."""
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
    from scipy.optimize import minimize  # noqa: PLC0415 - for fitting alone, and slow to import

    wanted = np.eye(kinds)[target]

    def loss(flat: _Weights) -> tuple[float, _Weights]:
        table = flat.reshape(-1, kinds)
        scores = described @ table[:-1] + table[-1]
        log_share = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
        error = (np.exp(log_share) - wanted) * weight[:, None]
        gradient = np.vstack([described.T @ error + _PENALTY * table[:-1], error.sum(axis=0)])
        value = (
            -(weight * (log_share * wanted).sum(axis=1)).sum() + _PENALTY / 2 * np.square(table[:-1]).sum()
        )
        return float(value), gradient.ravel()

    start = np.zeros((described.shape[1] + 1) * kinds)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    table = found.x.reshape(-1, kinds)
    return table[:-1], table[-1]
