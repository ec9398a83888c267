"""Pairs of slices that may be copies, found among many without comparing each with each.

Patches are looked up by their codes, as words are in a library's index: what two slices share counts the more
the rarer it is (inverse document frequency), and for each slice the few others that share most are proposed.
Hashes of the whole and of the lungs are compared with all others, by matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from groundglass.data.perceptual import (
    CODE_BITS,
    HASH_BITS,
    TABLES,
    Fingerprint,
    Hash,
    mirrored_codes,
    mirrored_hash,
)

Window = Literal["whole", "lungs"]

_NEAREST = 4
# A hundred pictures that are all alike are found by a few neighbours of each as well.
_MOST_ALIKE = 16
_LEAST_RESEMBLANCE = 0.012
# Codes that more slices have than this share (at least and at most so many) tell nothing and cost most.
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST = 0.02, 20, 1000
# Bits by which hashes of copies may differ. Of 500,000 pairs of LUNA16 slices 1 differs in 40 or fewer bits
# of the whole, none in 48 or fewer of the lungs.
_DISTANCE: dict[Window, int] = {"whole": 40, "lungs": 48}
# Entries of one block of a product, which bounds memory to about 100 MB.
_CELLS = 12_000_000


@dataclass(frozen=True)
class Candidate:
    """Two slices that may be copies.

    Attributes:
        first: index of the one.
        second: index of the other.
        mirrored: whether the first resembles the second when mirrored.
        window: whose hashes are alike; None where patches are.
    """

    first: int
    second: int
    mirrored: bool
    window: Window | None


def patch_candidates(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None, groups: Sequence[str] | None = None
) -> Iterator[Candidate]:
    """For each of the first slices the few of the second that share most patches with it.

    Args:
        first: fingerprints.
        second: others; None for pairs among the first, of which each comes once.
        groups: of the first, where ``second`` is None: neighbours of the same group (a patient's slices)
            are proposed beside those of others and do not displace them.
    """
    rarity = _rarity([*first, *(second or ())])
    others = _weighted([print_.codes for print_ in (first if second is None else second)], rarity).T.tocsr()
    members = None if groups is None else np.unique(groups, return_inverse=True)[1]
    for mirrored in (False, True):
        codes = [mirrored_codes(print_.codes) if mirrored else print_.codes for print_ in first]
        for row, columns, resemblance in _products(_weighted(codes, rarity), others):
            if second is not None:
                near = _nearest(columns, resemblance)
                yield from (Candidate(row, other, mirrored, None) for other in near)
                continue
            elsewhere = columns != row
            near = _nearest(columns[elsewhere], resemblance[elsewhere])
            if members is not None:
                strangers = members[columns] != members[row]
                near |= _nearest(columns[strangers], resemblance[strangers])
            yield from (Candidate(min(row, other), max(row, other), mirrored, None) for other in near)


def hash_candidates(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None
) -> Iterator[Candidate]:
    """Pairs whose hashes of the whole or of the lungs are alike, mirrored or not.

    Args:
        first: fingerprints.
        second: others; None for pairs among the first, of which each comes once.
    """
    for window, distance in _DISTANCE.items():
        ours = [_hash(print_, window) for print_ in first]
        others = _signs(ours if second is None else [_hash(print_, window) for print_ in second])
        for mirrored in (False, True):
            mine = _signs([None if h is None else mirrored_hash(h) for h in ours] if mirrored else ours)
            for row, column in _alike(mine, others, distance):
                if second is not None or row < column:
                    yield Candidate(row, column, mirrored, window)


def _rarity(prints: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Weight of each code: 0 where it tells nothing, for it is everywhere or here alone."""
    counts = np.zeros(TABLES << CODE_BITS, np.int64)
    for print_ in prints:
        counts[_words(print_.codes)] += 1
    common = min(max(_COMMON_LEAST, _COMMON_SHARE * len(prints)), _COMMON_MOST)
    telling = (counts >= 1) & (counts <= common)
    weights = np.log((1 + len(prints)) / (1 + counts)) * telling
    return np.asarray(np.maximum(weights, 0), np.float32)


def _words(codes: NDArray[np.uint16]) -> NDArray[np.int64]:
    return np.unique(codes.astype(np.int64) + (np.arange(TABLES) << CODE_BITS))


def _weighted(codes: Sequence[NDArray[np.uint16]], rarity: NDArray[np.float32]) -> sparse.csr_matrix:
    """One row of unit length per slice, one column per code."""
    kept, values = [], []
    for slice_codes in codes:
        words = _words(slice_codes)
        weights = rarity[words]
        length = float(np.linalg.norm(weights))
        present = weights > 0
        kept.append(words[present].astype(np.int32))
        values.append(weights[present] / np.float32(max(length, 1e-9)))
    starts = np.cumsum([0, *(len(words) for words in kept)])
    columns = np.concatenate([*kept, np.zeros(0, np.int32)])
    entries = np.concatenate([*values, np.zeros(0, np.float32)])
    return sparse.csr_matrix((entries, columns, starts), shape=(len(codes), len(rarity)))


def _products(
    mine: sparse.csr_matrix, others: sparse.csr_matrix
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float32]]]:
    """For each of my rows the columns of ``others`` that resemble it, and how much."""
    rows = max(1, _CELLS // max(others.shape[1], 1))
    for start in range(0, mine.shape[0], rows):
        products = (mine[start : start + rows] @ others).tocsr()
        for row in range(products.shape[0]):
            span = slice(products.indptr[row], products.indptr[row + 1])
            alike = products.data[span] >= _LEAST_RESEMBLANCE
            yield start + row, products.indices[span][alike], products.data[span][alike]


def _nearest(columns: NDArray[np.int32], resemblance: NDArray[np.float32]) -> set[int]:
    if len(columns) > _NEAREST:
        columns = columns[np.argpartition(-resemblance, _NEAREST)[:_NEAREST]]
    return {int(column) for column in columns}


def _hash(print_: Fingerprint, window: Window) -> Hash | None:
    return print_.hash if window == "whole" else print_.lungs_hash


def _signs(hashes: Sequence[Hash | None]) -> NDArray[np.float32]:
    """Bits as -1 and 1, shape (N, 255); a row of zeros, which resembles nothing, where there is no hash."""
    signs = np.zeros((len(hashes), HASH_BITS), np.float32)
    for row, bits in zip(signs, hashes, strict=True):
        if bits is not None:
            row[:] = np.where(bits, 1, -1)
    return signs


def _alike(
    mine: NDArray[np.float32], others: NDArray[np.float32], distance: int
) -> Iterator[tuple[int, int]]:
    rows = max(1, _CELLS // max(len(others), 1))
    for start in range(0, len(mine), rows):
        products = mine[start : start + rows] @ others.T
        close = products >= HASH_BITS - 2 * distance
        for row in np.flatnonzero(close.any(axis=1)):
            columns = np.flatnonzero(close[row])
            if len(columns) > _MOST_ALIKE:
                columns = columns[np.argpartition(-products[row, columns], _MOST_ALIKE)[:_MOST_ALIKE]]
            yield from ((start + int(row), int(column)) for column in columns)
