"""Slices that are in a data set twice: the same file, the same pixels, or a copy that was edited.

Of each slice a perceptual hash and codes of its most distinct patches are kept. Slices whose hashes or rare codes
are alike are candidates, and so are slices of different people at times. What distinguishes a copy is that its fine
structure, vessels above all, lies at the same places: candidates are registered, slow changes of grey removed, and
the correlation is measured around every place with strong structure. A copy correlates nearly everywhere; arrows
and letters drawn onto it leave it unchanged elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from groundglass.data.manifest import Record, content_hash, read_pixels, read_record
from groundglass.errors import ImageError
from groundglass.files import usable_cores
from groundglass.imaging.crop import shrunk
from groundglass.imaging.slice import CTSlice, Grey

COPY_CORRELATION = 0.9
"""From this correlation on two slices are called copies."""

LOOKALIKE_CORRELATION = 0.6
"""From this one on they are called lookalikes: most often neighbouring slices of one person."""

Kind = Literal["file", "pixels", "copy", "lookalike"]
"""Same content, same pixels in another file, verified copy, or merely very much alike."""

Progress = Callable[[str, int, int | None], None]
"""Called with a stage (``reading``, ``comparing``, ``fitting``), steps just done, and all steps if known."""

Affine = NDArray[np.float64]  # takes x and y of one picture, in pixels, to those of another; shape (3, 3)
Box = NDArray[np.intp]  # ((left, right), (top, bottom)), shape (2, 2)
Values = NDArray[np.float32]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_KINDS: tuple[Kind, ...] = get_args(Kind)
_CACHED_PICTURES = 256

# Traces. A row or column between whose 4th and 96th percentile lie fewer than _FLAT grey values is a margin: paper,
# or the black around a reconstruction. Letters in it do not make it a picture.
_LONGEST, _PATCH_LONGEST, _FLAT, _LEAST_CONTENT = 512, 256, 24, 0.3
_HASH_SIDE, _HASH_FREQUENCIES = 32, 16
_PATCHES, _TABLES, _BITS = 100, 6, 16
# Candidates: from which likeness on, and how many for each slice. Of 500,000 pairs of LUNA16 slices 1 differs
# in 40 or fewer bits of the hash. Codes that more slices have than a share (at least and at most so many) say
# nothing and cost most. A product's blocks of _CELLS entries bound memory to about 100 MB.
_LEAST_CODES, _MOST_BY_CODES, _HASH_LIKENESS, _MOST_BY_HASH = 0.012, 4, 1 - 2 * 40.5 / 255, 16
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST, _CELLS = 0.02, 20, 1000, 12_000_000
# Registration. Refining may change an entry of the matrix by _LARGEST_CHANGE: more is a picture bent until it
# fits. Below _COARSE_CORRELATION of the coarse pictures a finer look finds nothing either. The correlation is
# taken where structure is strongest, 30 % of the picture; a fifth of that may be covered.
_LEAST_PATCHES, _MOST_MATCHES, _TOLERANCE = 5, 250, 0.015
_SIDES, _LEAST_SIDE, _LEAST_OVERLAP = (96, 256), 24, 0.2
_LARGEST_CHANGE, _COARSE_CORRELATION, _STRONGEST, _COVERED = 0.2, 0.45, 30, 20


@dataclass(frozen=True)
class Trace:
    """What is kept of a slice to find its copies; the picture is the slice, 512 pixels long at most."""

    record: Record
    sha256: str  # of the file's content
    pixels_sha256: str  # of the grey pixels and their shape
    box: Box = field(repr=False)  # the picture without uniform margins
    bits: NDArray[np.int8] = field(repr=False)  # (255,) of the perceptual hash: -1 and 1, 0 if blank
    codes: NDArray[np.uint16] = field(repr=False)  # (N, tables): of the patches
    points: Values = field(repr=False)  # (N, 2): x and y of the patches' centres in the picture


@dataclass(frozen=True)
class Pair:
    """Two slices that show the same."""

    first: Record
    second: Record
    kind: Kind
    correlation: float = 1.0  # which 80 % of the places with strong structure exceed, -1 to 1

    @property
    def across_parts(self) -> bool:
        """Whether they are in different parts of the data set's split."""
        return None not in (self.first.split, self.second.split) and self.first.split != self.second.split

    @property
    def across_labels(self) -> bool:
        """Whether they carry different labels."""
        return None not in (self.first.label, self.second.label) and self.first.label != self.second.label

    @property
    def across_patients(self) -> bool:
        """Whether they are said to be of different patients, or one of them of a patient not known."""
        return self.first.patient_id != self.second.patient_id

    @property
    def counted_twice(self) -> bool:
        """Whether they are of different patients, both known."""
        return self.across_patients and self.first.patient_known and self.second.patient_known


def take_trace(record: Record, image: CTSlice, patches: bool = True) -> Trace:
    """What is kept of a slice to find its copies; without ``patches``, crops are not found, in a fifth of the time."""
    shape = np.array(image.pixels.shape, "<i8").tobytes()
    picture = shrunk(image.pixels, _LONGEST)
    (left, right), (top, bottom) = box = _content(picture)
    content = picture[top:bottom, left:right]
    codes, points = _patches(content) if patches else _NO_PATCHES
    return Trace(
        record,
        sha256=content_hash(record),
        pixels_sha256=hashlib.sha256(shape + image.pixels.tobytes()).hexdigest(),
        box=box,
        bits=_perceptual_hash(content),
        codes=codes,
        points=points + box[:, 0].astype(np.float32),
    )


def read_all(
    records: Sequence[Record], measure: Callable[[Record, CTSlice], _Result], threads: int | None = None
) -> Iterator[_Result | ImageError]:
    """What ``measure`` gives of each slice, or why it cannot be read, in the order of the records."""

    def attempt(record: Record) -> _Result | ImageError:
        try:
            return measure(record, read_record(record))
        except ImageError as error:
            return error

    return _in_threads(attempt, records, threads)


def find_pairs(
    traces: Sequence[Trace], *, threads: int | None = None, progress: Progress = lambda *_: None
) -> list[Pair]:
    """Pairs of slices that show the same, the most certain first.

    Of slices with the same pixels only one is compared with others. Lookalikes of one patient are left out:
    neighbouring slices of a patient are expected to be alike.
    """
    # Each is paired with the first of its copies, which must know its part and label where any of them does.
    known = sorted(traces, key=lambda trace: (trace.record.split is None) + (trace.record.label is None))
    pairs, kept = _identical(known)
    # Neighbours of the same patient are proposed beside those of others and must not displace them.
    patients = np.unique([trace.record.patient_id for trace in kept], return_inverse=True)[1]
    proposed = [_candidates(kept, len(kept), groups) for groups in (np.arange(len(kept)), patients)]
    compared = _compare(kept, np.unique(np.concatenate(proposed), axis=0), threads, progress)
    return _in_order([*pairs, *(pair for pair in compared if pair.kind == "copy" or pair.across_patients)])


def copies_of(held_out: Sequence[Record], candidates: Sequence[Record], *, threads: int | None = None) -> list[Pair]:
    """Which of the candidates show a held-out slice: what must not enter a training on the candidates.

    Pairs are of a held-out slice (first) and a candidate (second), the most certain first. A candidate that cannot be
    read is skipped, as whoever trains on it will say.

    Raises:
        ImageError: a held-out slice cannot be read.
    """
    traces = list(_in_threads(lambda record: take_trace(record, read_record(record)), held_out, threads))
    held, ours = len(traces), {id(record) for record in held_out}
    traces += [trace for trace in read_all(candidates, take_trace, threads) if isinstance(trace, Trace)]
    proposed = _candidates(traces, held, np.arange(len(traces)) >= held)
    copies = [pair for pair in _compare(traces, proposed, threads) if pair.kind == "copy"]
    # The same files and pixels have the last word.
    across = {(id(pair.first), id(pair.second)): pair for pair in [*copies, *_identical(traces)[0]]}
    return _in_order(pair for (one, other), pair in across.items() if one in ours and other not in ours)


def _in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None) -> Iterator[_Result]:
    """``function`` of each item, in order, a few hundred at a time: most of the work holds no Python lock."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        while some := list(itertools.islice(remaining, 256)):
            yield from pool.map(function, some)


def _identical(traces: Sequence[Trace]) -> tuple[list[Pair], list[Trace]]:
    """Pairs with the same file or pixels, each slice with the first of them, and one trace of each."""
    pairs, kept = list[Pair](), list(traces)
    for kind, key in zip(_KINDS[:2], ("sha256", "pixels_sha256"), strict=True):
        same: dict[str, list[Trace]] = {}
        for trace in kept:
            same.setdefault(getattr(trace, key), []).append(trace)
        pairs += [Pair(first.record, each.record, kind) for first, *others in same.values() for each in others]
        kept = [members[0] for members in same.values()]
    return pairs, kept


def _in_order(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (_KINDS.index(pair.kind), -pair.correlation))


def _compare(
    traces: Sequence[Trace], proposed: NDArray[np.intp], threads: int | None, progress: Progress = lambda *_: None
) -> list[Pair]:
    """The candidates that registration confirms."""
    picture = lru_cache(_CACHED_PICTURES)(lambda record: shrunk(read_pixels(record), _LONGEST))

    def compare(candidate: tuple[int, int]) -> Pair | None:
        one, other = (traces[index] for index in candidate)
        try:
            pictures = picture(one.record), picture(other.record)
        except ImageError:  # gone since it was read first
            return None
        correlation = 0.0
        for start in _starts(one, other):
            correlation = max(correlation, _refined(*pictures, (one.box, other.box), start))
            if correlation >= COPY_CORRELATION:
                break
        if correlation < LOOKALIKE_CORRELATION:
            return None
        kind: Kind = "copy" if correlation >= COPY_CORRELATION else "lookalike"
        return Pair(one.record, other.record, kind, correlation)

    pairs = []
    for pair in _in_threads(compare, proposed.tolist(), threads):
        progress("comparing", 1, len(proposed))
        pairs += [pair] if pair is not None else []
    return pairs


def _content(picture: Grey) -> Box:
    """The picture without uniform margins; the whole picture where hardly anything is left."""

    def varied(lines: Grey) -> tuple[int, int]:
        """The first line that is not a margin, and the one behind the last."""
        dark, bright = np.percentile(lines, [4, 96], axis=1, method="nearest").astype(np.int16)
        found = np.flatnonzero(bright - dark > _FLAT)
        return (found[0], found[-1] + 1) if len(found) else (0, 0)

    box = whole = np.array([[0, picture.shape[1]], [0, picture.shape[0]]])
    for _ in range(2):  # once the margins above and below are gone, those at the sides show better
        inside = picture[slice(*box[1]), slice(*box[0])]
        box = box[:, :1] + [varied(inside[::3].T), varied(inside[:, ::3])]
        if (np.ptp(box, axis=1) < _LEAST_CONTENT * whole[:, 1]).any():
            return whole
    return box


def _perceptual_hash(content: Grey) -> NDArray[np.int8]:
    """Signs of the slowest frequencies of the discrete cosine transform, grey values equalised.

    Source: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2;
    here with 255 instead of 64 bits, as chest slices resemble each other.
    """
    small = cv2.resize(content, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(cv2.equalizeHist(small).astype(np.float32))[:_HASH_FREQUENCIES, :_HASH_FREQUENCIES]
    # Blank pictures are not alike.
    return np.where(waves.ravel()[1:] > 0, 1, -1).astype(np.int8) * np.int8(np.ptp(small) >= _FLAT)


def _patches(content: Grey) -> tuple[NDArray[np.uint16], Values]:
    """Codes and centres of the most distinct patches, found and described by SIFT, upright.

    A code says on which sides of random planes a descriptor lies, other planes in each table. Slices are never
    turned much, so that a patch's direction is part of what it looks like. Sources: D. G. Lowe, Distinctive Image
    Features from Scale-Invariant Keypoints, IJCV 60(2), 2004; M. Charikar, Similarity Estimation Techniques from
    Rounding Algorithms, STOC 2002.
    """
    scale = _PATCH_LONGEST / max(content.shape)
    size = max(8, round(content.shape[1] * scale)), max(8, round(content.shape[0] * scale))
    small = cv2.resize(content, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    detector = cv2.SIFT.create(contrastThreshold=0.02, edgeThreshold=12)
    # SIFT gives a patch once for each of its directions.
    found = {(round(k.pt[0]), round(k.pt[1]), round(k.size)): k for k in detector.detect(small, None)}
    keypoints = sorted(found.values(), key=lambda keypoint: -keypoint.response)[:_PATCHES]
    if not keypoints:
        return _NO_PATCHES
    for keypoint in keypoints:
        keypoint.angle = 0.0
    keypoints, descriptors = detector.compute(small, keypoints)
    share = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6))
    share -= share.mean(axis=1, keepdims=True)
    codes = (share @ _PLANES > 0).reshape(-1, _TABLES, _BITS) @ (1 << np.arange(_BITS))
    enlarge = np.array([content.shape[1] / size[0], content.shape[0] / size[1]], np.float32)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    return codes.astype(np.uint16), (points + 0.5) * enlarge - 0.5


_PLANES = np.random.default_rng(0).normal(size=(128, _TABLES * _BITS)).astype(np.float32)
_NO_PATCHES = (np.zeros((0, _TABLES), np.uint16), np.zeros((0, 2), np.float32))


def _candidates(traces: Sequence[Trace], rows: int, groups: NDArray[Any]) -> NDArray[np.intp]:
    """For each of the first ``rows`` slices the few slices of other groups that it resembles most.

    Pairs of first and second, which comes later, shape (N, 2), sorted.
    """
    count, found = len(traces), [np.zeros((0, 2), np.intp)]
    hashes = np.array([one.bits for one in traces], np.float32).reshape(-1, _HASH_FREQUENCIES**2 - 1)
    searches = (
        (_code_features(traces), _LEAST_CODES, _MOST_BY_CODES),
        (hashes / hashes.shape[1] ** 0.5, _HASH_LIKENESS, _MOST_BY_HASH),
    )
    block = max(1, _CELLS // max(count, 1))
    for features, least, most in searches:
        for start in range(0, rows, block):
            part = slice(start, min(rows, start + block))
            likeness = features[part] @ features.T
            likeness = likeness.toarray() if isinstance(likeness, sparse.csr_matrix) else likeness
            likeness[groups[part, None] == groups] = -1
            nearest = np.argpartition(-likeness, min(most, count) - 1, axis=1)[:, :most]
            row, place = np.nonzero(np.take_along_axis(likeness, nearest, axis=1) >= least)
            found.append(np.sort(np.stack([row + start, nearest[row, place]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _code_features(traces: Sequence[Trace]) -> sparse.csr_matrix:
    """Codes as words in a document, each the heavier the rarer it is; rows of unit length."""
    tables = np.arange(_TABLES) << _BITS
    common = min(max(_COMMON_LEAST, int(_COMMON_SHARE * len(traces))), _COMMON_MOST)
    words = TfidfVectorizer(
        analyzer=lambda codes: (codes + tables).ravel().tolist(), binary=True, max_df=common, dtype=np.float32
    )
    try:
        return sparse.csr_matrix(words.fit_transform([one.codes for one in traces]))
    except ValueError:  # no slice has a code, or all have the same
        return sparse.csr_matrix(np.zeros((len(traces), 1), np.float32))


def _starts(one: Trace, other: Trace) -> Iterator[Affine]:
    """Where the second picture has the first one's patches, and what brings one content onto the other."""
    side, other_side = np.ptp(one.box, axis=1), np.ptp(other.box, axis=1)
    shared = (one.codes[:, None] == other.codes[None]).sum(axis=2)
    here, there = np.nonzero(shared)
    best = np.argsort(-shared[here, there], kind="stable")[:_MOST_MATCHES]
    here, there = here[best], there[best]
    if len(here) >= _LEAST_PATCHES:
        tolerance = _TOLERANCE * float(other_side.max())
        affine, agree = cv2.estimateAffine2D(
            one.points[here], other.points[there], method=cv2.RANSAC, ransacReprojThreshold=tolerance
        )
        inside = agree.ravel() > 0
        fewest = min(len(set(here[inside])), len(set(there[inside])))
        if affine is not None and fewest >= _LEAST_PATCHES and _plausible(affine):
            yield np.vstack([affine, [0, 0, 1]])
    if np.mean(one.bits * other.bits) >= _HASH_LIKENESS:
        affine = np.diag([*other_side / side, 1.0])
        affine[:2, 2] = other.box[:, 0] - other_side / side * one.box[:, 0]
        yield affine


def _plausible(affine: Affine) -> bool:
    """Whether a picture is drawn that way: scaled, stretched a little, turned by a few degrees."""
    (across, skew), (lean, down) = affine[:, :2]
    if not (0.12 < across < 8 and 0.12 < down < 8 and 1 / 1.6 < across / down < 1.6):
        return False
    return bool(max(abs(skew), abs(lean)) < 0.15 * min(across, down))


def _refined(first: Grey, second: Grey, boxes: tuple[Box, Box], affine: Affine) -> float:
    """Correlation after a registration from coarse to fine; 0 where the pictures do not agree."""
    correlation = 0.0
    for side, moving in itertools.product(_SIDES, (True, False)):
        view = _view(first, second, boxes, affine, side)
        if view is None:
            return 0.0
        one, other, to_second = view
        if moving:
            affine = to_second @ _aligned(one, other) @ np.linalg.inv(to_second) @ affine
        elif (correlation := _agreement(one, other)) < _COARSE_CORRELATION:
            return 0.0
    return correlation


def _view(
    first: Grey, second: Grey, boxes: tuple[Box, Box], affine: Affine, side: int
) -> tuple[Values, Values, Affine] | None:
    """Fine structure of what both show, at a resolution that neither exceeds and at most ``side`` pixels long.

    Returns both views, and what takes their pixels to those of the second picture; None where the contents hardly
    overlap.
    """
    placed, content = np.sort((affine @ [*boxes[0], (1, 1)])[:2], axis=1), boxes[1]
    start = np.maximum(placed[:, 0], content[:, 0])
    extent = (np.minimum(placed[:, 1], content[:, 1]) - start).clip(0)
    smaller = min(float(np.prod(np.ptp(box, axis=1))) for box in (placed, content))
    if np.prod(extent) < _LEAST_OVERLAP * max(smaller, 1e-6):
        return None
    resolution = min(1.0, 1 / float(np.diag(affine)[:2].max()), side / float(extent.max()))
    size = round(extent[0] * resolution), round(extent[1] * resolution)
    if min(size) < _LEAST_SIDE:
        return None
    step = extent / size
    to_second = np.diag([*step, 1.0])
    to_second[:2, 2] = start + step / 2 - 0.5
    to_first = np.asarray(np.linalg.inv(affine) @ to_second, np.float64)
    return _structure(first, to_first, size), _structure(second, to_second, size), to_second


def _structure(pixels: Grey, to_pixels: Affine, size: tuple[int, int]) -> Values:
    """A picture at a view's ``size``, whose pixels ``to_pixels`` takes to its own: details of 1 to 5 of 256 pixels."""
    shrinking = float(np.abs(np.diag(to_pixels)[:2]).max())
    if shrinking > 1.3:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.42 * shrinking), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(pixels, to_pixels[:2], size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    grey, unit = view.astype(np.float32), max(size) / 256
    return _smooth(grey, max(0.8 * unit, 0.5)) - _smooth(grey, max(5 * unit, 1.5))


def _aligned(one: Values, other: Values) -> Affine:
    """What takes the first view's structure to the second's, by maximising their correlation (ECC).

    Source: G. D. Evangelidis, E. Z. Psarakis, Parametric Image Alignment Using Enhanced Correlation
    Coefficient Maximization, IEEE TPAMI 30(10), 2008.
    """
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        found = cv2.findTransformECC(other, one, start, cv2.MOTION_AFFINE, stop, None, 5)[1]
    except cv2.error:  # it does not converge
        return np.eye(3)
    if not np.isfinite(found).all() or np.abs(found[:, :2] - np.eye(2)).max() > _LARGEST_CHANGE:
        return np.eye(3)
    return np.asarray(np.linalg.inv(np.vstack([found, [0, 0, 1]])), np.float64)


def _agreement(one: Values, other: Values) -> float:
    """Correlation of fine structure that 80 % of the places with strong structure exceed."""
    width = max(4 * max(one.shape) / 256, 1.2)
    edge = min(round(1.5 * width), min(one.shape) // 4)

    def covariance(here: Values, there: Values) -> Values:
        around = _smooth(here * there, width) - _smooth(here, width) * _smooth(there, width)
        return around[edge : len(around) - edge, edge : around.shape[1] - edge]

    variances = [covariance(one, one).clip(0), covariance(other, other).clip(0)]
    # Grey values are whole numbers and recompressed: variances below a few are no structure.
    correlation = covariance(one, other) / np.sqrt((variances[0] + 4) * (variances[1] + 4))
    strength = np.maximum(*(variance / max(float(variance.mean()), 1e-6) for variance in variances))
    return float(np.percentile(correlation[strength >= np.percentile(strength, 100 - _STRONGEST)], _COVERED))


def _smooth(values: Values, width: float) -> Values:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), width), np.float32)
