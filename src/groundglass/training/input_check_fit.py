"""What the input check learns from, and its fit: a linear model of lung slices and other pictures, and its limit."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from sklearn.linear_model import LogisticRegression

from groundglass.data.manifest import Record, read_pixels
from groundglass.data.out_of_distribution import out_of_distribution_examples, paint_disease, phantom_slices, vary
from groundglass.files import printable, usable_cores
from groundglass.imaging.crop import MUCH_LUNG, Preprocessing
from groundglass.imaging.lungs import LungSegmenter
from groundglass.imaging.slice import Grey
from groundglass.inference.input_check import LUNG, OTHER_PART, InputCheck, appearance
from groundglass.inference.reference import CLIP, Features

_Weights = NDArray[np.float64]

# Pictures are synthesised in full number for _ENOUGH slices or more; of fewer, by the square of their share: an
# export of few slices would take minutes otherwise, after a training of seconds.
_PHANTOMS, _FEWEST_PHANTOMS = 450, 12
_ENOUGH, _MOST_OWN, _MOST_LESION_FREE = 400, 600, 600
# How much one slice of each source counts: the data set's own decide, variations and others support.
_OWN, _VARIED, _LESION_FREE, _PHANTOM = 2.0, 1.0, 0.6, 2.0

_COMPONENTS = 64
# Features that hardly vary among lung slices would dominate otherwise.
_LEAST_SPREAD = 0.25
_PENALTY = 1e-4
_STEPS = 300
_FOLDS = 5
# Of held-out lung slices, so many are to be accepted at least; of other pictures, so many to be refused where that
# accepts more slices.
_ACCEPTED, _REFUSED = 0.99, 0.99


@dataclass(frozen=True)
class Examples:
    """Described pictures of known kind, N of them; all but ``features`` are of shape (N,)."""

    features: Features  # shape (N, d)
    kind: NDArray[np.str_]  # `LUNG`, or what else each picture is
    group: NDArray[np.integer]  # whose it is: pictures of one group are never on both sides of a fit
    weight: _Weights  # how much each lung slice counts; other kinds are weighted by their numbers
    deciding: NDArray[np.bool_]  # the lung slices that decide on the limit: a data set's own as they are

    @property
    def lung(self) -> NDArray[np.bool_]:
        """Which pictures are lung slices."""
        return np.asarray(self.kind == LUNG)

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """Those examples alone."""
        return Examples(*(getattr(self, each.name)[chosen] for each in fields(self)))


@dataclass(frozen=True)
class _Picture:
    pixels: Grey
    kind: str
    group: str
    weight: float = 1.0


def gather_examples(
    preprocessing: Preprocessing, lungs: LungSegmenter, slices: Sequence[Record], lesion_free: Sequence[Record] = ()
) -> tuple[NDArray[np.uint8], Examples]:
    """Read, synthesise, crop and describe everything the input check learns from; a minute for COVID-CT.

    Gives pictures, cropped, uint8 (N, size, size), and their description, which their embedding is to follow.
    ``preprocessing`` and ``lungs`` are the model's; ``slices`` those of the training part, lung slices all of them (of
    fewer than 400, less is synthesised); ``lesion_free`` further ones, cut from anywhere in a series.

    Raises:
        ValueError: there is no slice.
        ImageError: one cannot be read.
    """
    if not slices:
        raise ValueError("the input check learns from the training part's slices, and there are none")
    effort = min(1.0, len(slices) / _ENOUGH) ** 2
    own = [_Picture(read_pixels(each), LUNG, each.patient_id, _OWN) for each in _spread(slices)]
    step = -(-len(lesion_free) // _MOST_LESION_FREE) or 1  # of a folder sorted by series
    cut = [picture for record in lesion_free[::step] if (picture := _lesion_free(record, lungs)) is not None]
    described, known = [], []
    for picture in chain(_lung_pictures(own, cut, effort), _other_pictures(own, cut, effort)):
        cropped = preprocessing.apply(picture.pixels, lungs(picture.pixels))
        described.append(appearance(picture.pixels, cropped))
        # Thousands of pictures are gathered, and only the small copies are kept.
        known.append(replace(picture, pixels=cropped.pixels))
    return np.stack([picture.pixels for picture in known]), Examples(
        np.stack(described),
        np.array([picture.kind for picture in known]),
        np.array([zlib.crc32(printable(picture.group).encode()) for picture in known], np.int64),
        np.array([picture.weight for picture in known]),
        np.arange(len(known)) < len(own),  # which come first
    )


def _spread(slices: Sequence[Record]) -> list[Record]:
    """At most 600 slices, of each source as many as of any other, as far as it has them."""
    turn: Counter[str] = Counter()
    ordered = []
    for index in np.random.default_rng([0, 0]).permutation(len(slices)):
        turn[slices[index].hospital] += 1
        ordered.append((turn[slices[index].hospital], index))
    return [slices[index] for _, index in sorted(ordered)[:_MOST_OWN]]


def _lesion_free(record: Record, find_lungs: LungSegmenter) -> _Picture | None:
    """A lesion-free slice as what it is; None where that is in doubt."""
    pixels = read_pixels(record)
    share = float(find_lungs(pixels).mean())
    # `groundglass data slices` names its files <series>_<index>.
    group = record.patient_id if record.patient_known else record.path.stem.rpartition("_")[0]
    if not share:
        return _Picture(pixels, OTHER_PART, group)
    return _Picture(pixels, LUNG, group, _LESION_FREE) if share >= MUCH_LUNG else None


def _lung_pictures(own: Sequence[_Picture], cut: Sequence[_Picture], effort: float) -> Iterator[_Picture]:
    """Slices as they are and as other publications might show them, lesion-free slices, phantoms."""
    rng = np.random.default_rng([0, 1])
    lungs = [picture for picture in cut if picture.kind == LUNG]
    yield from own
    yield from lungs
    for picture in own:
        yield replace(picture, pixels=vary(picture.pixels, rng), weight=_VARIED)
        yield replace(picture, pixels=vary(paint_disease(picture.pixels, rng), rng), weight=_VARIED)
    for index, picture in enumerate(lungs):
        yield replace(picture, pixels=(vary if index % 2 else paint_disease)(picture.pixels, rng))
    for index, pixels in enumerate(phantom_slices(max(_FEWEST_PHANTOMS, round(effort * _PHANTOMS)), 0)):
        yield _Picture(pixels, LUNG, f"phantom {index}", _PHANTOM)


def _other_pictures(own: Sequence[_Picture], cut: Sequence[_Picture], effort: float) -> Iterator[_Picture]:
    yield from (picture for picture in cut if picture.kind != LUNG)
    lungs = [picture.pixels for picture in [*own, *cut[::2]] if picture.kind == LUNG]
    for index, (kind, pixels) in enumerate(out_of_distribution_examples(lungs, 0, effort)):
        yield _Picture(pixels, kind, f"other {index}")


def fit_input_check(examples: Examples) -> InputCheck:
    """Learn to distinguish lung slices from other pictures.

    The limit lies halfway between the two that accept 99 % of held-out lung slices and refuse 99 % of held-out
    other pictures: that of the lung slices alone is too strict where the kinds lie well apart, as the network was
    trained on all of them, and lets too much pass where they do not. At least one lung slice decides.
    """
    held_out = _held_out_odds(examples)
    accepting = np.quantile(held_out[examples.deciding], _ACCEPTED)
    refusing = np.quantile(held_out[~examples.lung], 1 - _REFUSED)
    # Below even odds nothing is refused, however well the kinds can be distinguished.
    return replace(fit_model(examples), limit=round(max(0.0, float(accepting + refusing) / 2), 4))


def fit_model(examples: Examples) -> InputCheck:
    """Fit to examples, at least one of a lung slice and one of another kind."""
    lung = examples.lung
    kinds = sorted({*examples.kind.tolist()} - {LUNG})
    base = _standardise(examples.features[lung], examples.weight[lung], kinds)
    described = base.describe(examples.features).astype(np.float64)
    target = np.array([[LUNG, *kinds].index(kind) for kind in examples.kind])
    weight = _balanced(examples, target)
    middle = weight @ described
    weights, bias = _regress(described - middle, target, weight)
    shift = np.asarray(bias - middle @ weights, np.float32)
    return replace(base, weights=np.asarray(weights, np.float32), bias=shift)


def _standardise(lungs: Features, weight: _Weights, kinds: Sequence[str]) -> InputCheck:
    """A model that knows lung slices but no weights yet."""
    share = weight / weight.sum()
    centre = share @ lungs
    spread = np.sqrt(share @ np.square(lungs - centre))
    spread = np.maximum(spread, _LEAST_SPREAD * np.median(spread) + 1e-9)
    standard = np.clip((lungs - centre) / spread, -CLIP, CLIP) * np.sqrt(share)[:, None]
    dimensions = lungs.shape[1]
    count = min(_COMPONENTS, max(1, len(lungs) // 2), dimensions - 1)
    # A fixed start: the same examples give the same model.
    _, deviations, vectors = svds(standard, count, v0=np.ones(min(standard.shape)))
    return InputCheck(
        np.asarray(centre, np.float32),
        np.asarray(spread, np.float32),
        # Half precision: the distances do not need more, and the bundle stays small.
        np.asarray(vectors[::-1], np.float16),
        np.asarray(np.maximum(deviations[::-1], 1e-3), np.float32),
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
    described: NDArray[np.float64], target: NDArray[np.integer], weight: _Weights
) -> tuple[_Weights, _Weights]:
    """Multinomial logistic regression with a ridge penalty: weights (d, kinds) and bias (kinds,)."""
    if len(described) < described.shape[1]:
        # With the penalty, weights are combinations of the examples: the same solution, found in fewer numbers.
        basis = np.linalg.qr(described.T)[0]
        weights, bias = _regress(described @ basis, target, weight)
        return basis @ weights, bias
    model = LogisticRegression(C=1 / _PENALTY, max_iter=_STEPS, tol=1e-5).fit(described, target, sample_weight=weight)
    weights, bias = model.coef_.T, model.intercept_
    # Of two kinds scikit-learn has the second one's odds alone.
    return (weights, bias) if len(bias) > 1 else (weights * [0, 1], bias * [0, 1])


def _held_out_odds(examples: Examples) -> NDArray[np.float32]:
    """Log odds of anything else against lung by models that saw nothing of a picture's group, shape (N,)."""
    fold = np.empty(len(examples.kind), np.int64)
    for same in (examples.lung, ~examples.lung):
        groups, member = np.unique(examples.group[same], return_inverse=True)
        fold[same] = np.random.default_rng(0).permutation(len(groups))[member] % _FOLDS
    result = np.empty(len(fold), np.float32)
    parted = [fold == number for number in np.unique(fold)]
    odds = Parallel(usable_cores())(delayed(_odds)(examples, held) for held in parted)
    for held, each in zip(parted, odds, strict=True):
        result[held] = np.logaddexp.reduce(each, axis=1)
    return result


def _odds(examples: Examples, held: NDArray[np.bool_]) -> NDArray[np.float32]:
    return fit_model(examples.take(~held)).odds(examples.features[held])
