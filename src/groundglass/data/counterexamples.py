"""What the gate learns from: lung slices in the ways publications show them, and what is none.

Nothing here is in the set on which refusal is measured (`groundglass.data.foreign`): the random streams are
others, and photographs, X-rays, pages of text, checkerboards, discs and everything scanned but the data set's
own slices are left out altogether, so that the measured set holds kinds that the gate has never met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from groundglass.imaging import patterns
from groundglass.imaging.abdomen import abdomen_below
from groundglass.imaging.decoys import Decoy, paint_decoy
from groundglass.imaging.framing import find_lungs
from groundglass.imaging.head import scan_head
from groundglass.imaging.lesions import Kind, paint_lesion
from groundglass.imaging.phantom import Scanner, make_phantom
from groundglass.imaging.reformat import scan_volume
from groundglass.imaging.slice import Grey, Hounsfield
from groundglass.imaging.thorax import Patient
from groundglass.imaging.window import LUNG, Window

TURNED, OTHER_VIEW, OTHER_PART, INVERTED, NO_SCAN = (
    "a slice turned by 90 degrees",
    "a view from the front or side",
    "another part of the body",
    "a slice with black and white exchanged",
    "no scan at all",
)
"""What a foreign picture may be, in words that follow "looks like"."""

_STREAM = 0x6A7E
"""Parts these random numbers from all others, those of the measured set above all."""

_WINDOWS = (LUNG, Window(-500, 1400), Window(40, 400), Window(40, 100), Window(50, 1500))
_SOFT_TISSUE = 0.15
"""Share of varied slices in which, as in a soft-tissue window, lungs are black."""

_RESONANCE = 0.2
_RESONANCE_GREYS = (
    (-950, -300, -110, -60, 0, 15, 30, 60, 200, 500),
    (0, 60, 240, 220, 40, 60, 150, 120, 60, 10),
)
"""Hounsfield units, and the grey in which T1-weighted images show such tissue: bright fat, black bone."""

_OTHER_DISEASE = 0.35
"""Share of sickened slices that show something else than what COVID-19 looks like."""

_VOLUMES, _VIEWS = 20, 3
_HEADS, _ABDOMENS, _TURNED_PHANTOMS = 90, 150, 80
_SPOILT: Mapping[str, int] = {"turned": 260, "inverted": 80, "shuffled": 100}
_DRAWN: Mapping[str, tuple[Callable[[np.random.Generator], Grey], int]] = {
    "gradient": (patterns.gradient, 40),
    "stripes": (patterns.stripes, 40),
    "noise": (patterns.noise, 80),
    "chart": (patterns.chart, 60),
    "scenery": (patterns.scenery, 200),
}


def vary(pixels: Grey, rng: np.random.Generator) -> Grey:
    """Show a lung slice as another publication might: cut, in another window, smaller, framed, marked.

    Args:
        pixels: uint8, shape (H, W).
        rng: draws how.
    """
    picture = _cut(pixels, rng)
    if rng.random() < _SOFT_TISSUE:
        low, high = rng.uniform(60, 130), rng.uniform(180, 230)
    else:
        low, high = rng.uniform(0, 50), rng.uniform(170, 255)
    share = np.clip((np.arange(256) - low) / (high - low), 0, 1) ** rng.uniform(0.7, 1.5)
    picture = np.rint(255 * share).astype(np.uint8)[picture]
    if rng.random() < 0.3:
        size = (np.array(picture.shape[::-1]) * rng.uniform(0.35, 0.8)).astype(int)
        picture = np.asarray(cv2.resize(picture, size.tolist(), interpolation=cv2.INTER_AREA))
    if rng.random() < 0.2:
        width = int(rng.uniform(0.005, 0.03) * max(picture.shape)) + 1
        sides = [(width * int(rng.random() < 0.6), width * int(rng.random() < 0.6)) for _ in range(2)]
        picture = np.pad(picture, sides, constant_values=int(rng.choice([0, 255])))
    if rng.random() < 0.3:
        _mark(picture, rng)
    return picture


def sicken(pixels: Grey, rng: np.random.Generator) -> Grey:
    """Paint heavy disease into a lung slice: grave illness must not look foreign.

    Args:
        pixels: uint8, shape (H, W).
        rng: draws which disease, and how much of it.
    """
    lungs, found = find_lungs(pixels)
    if not found:
        return pixels.copy()
    if rng.random() < _OTHER_DISEASE:
        return paint_decoy(pixels, lungs, tuple(Decoy)[rng.integers(len(Decoy))], rng).pixels
    kind = tuple(Kind)[rng.integers(len(Kind))]
    return paint_lesion(pixels, lungs, kind, rng.uniform(0.5, 1), rng).pixels


def phantom_slices(count: int, seed: int) -> Iterator[Grey]:
    """Phantoms, one patient each: of six one healthy, one of any severity, four severe.

    Where disease fills the lungs, framing often misses them: the gate must have seen many such slices.
    """
    for index in range(count):
        rng = np.random.default_rng([_STREAM, seed, 1, index])
        severity = (0.0, rng.uniform(0.05, 0.7))[index % 6] if index % 6 < 2 else rng.uniform(0.7, 1)
        yield make_phantom(rng, severity=severity, size=384).slice.pixels


def foreign_slices(lungs: Sequence[Grey], seed: int, effort: float = 1.0) -> Iterator[tuple[str, Grey]]:
    """Pictures to be refused, with what they are in words.

    Args:
        lungs: lung slices, of which some are turned, inverted and cut into pieces; there may be none.
        seed: of everything random.
        effort: share of the full number of pictures; at least one of each kind is made.
    """

    def count(full: int) -> range:
        return range(max(1, round(effort * full)))

    rng = np.random.default_rng([_STREAM, seed, 2])
    for kind, full in _SPOILT.items():
        chosen = rng.permutation(len(lungs))[: len(count(full))]
        yield from (_spoil(kind, lungs[index], rng) for index in chosen)
    turned = phantom_slices(len(count(_TURNED_PHANTOMS)), seed + 1)
    yield from (_spoil("turned", pixels, rng) for pixels in turned)
    for index in count(_VOLUMES):
        views = _views(np.random.default_rng([_STREAM, seed, 3, index]))
        yield from ((OTHER_VIEW, view) for view in views)
    yield from ((OTHER_PART, _windowed(scan_head(rng), rng)) for _ in count(_HEADS))
    yield from ((OTHER_PART, _abdomen(rng)) for _ in count(_ABDOMENS))
    for draw, full in _DRAWN.values():
        yield from ((NO_SCAN, draw(rng)) for _ in count(full))


def _abdomen(rng: np.random.Generator) -> Grey:
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    return _windowed(abdomen_below(patient, scanner, rng.uniform(0.02, 0.9), size=384), rng)


def _spoil(kind: str, pixels: Grey, rng: np.random.Generator) -> tuple[str, Grey]:
    if kind == "turned":
        return TURNED, np.ascontiguousarray(np.rot90(pixels, rng.choice([1, 3])))
    if kind == "inverted":
        return INVERTED, np.subtract(255, pixels, dtype=np.uint8)
    return NO_SCAN, _shuffled(pixels, rng)


def _shuffled(pixels: Grey, rng: np.random.Generator) -> Grey:
    """The slice cut into tiles, which change places."""
    count = int(rng.integers(2, 6))
    height, width = (side // count for side in pixels.shape)
    tiles = [
        pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(count)
        for column in range(count)
    ]
    order = rng.permutation(len(tiles))
    rows = [
        np.hstack([tiles[index] for index in order[start : start + count]])
        for start in range(0, count**2, count)
    ]
    return np.vstack(rows)


def _views(rng: np.random.Generator) -> Iterator[Grey]:
    volume = scan_volume(rng, size=192, severity=float(rng.uniform(0, 1) * (rng.random() < 0.5)))
    for _ in range(_VIEWS):
        yield _windowed(volume.coronal(rng.uniform(0.2, 0.8)), rng)
        yield _windowed(volume.sagittal(rng.uniform(0.2, 0.8)), rng)


def _windowed(hounsfield: Hounsfield, rng: np.random.Generator) -> Grey:
    """Grey values in some window of CT, or at times as magnetic resonance would show the same tissue."""
    if rng.random() < _RESONANCE:
        grey = np.interp(hounsfield, *_RESONANCE_GREYS) * rng.uniform(0.7, 1)
        return np.asarray(np.rint(grey), np.uint8)
    return _WINDOWS[rng.choice(len(_WINDOWS), p=(0.35, 0.15, 0.2, 0.15, 0.15))].apply(hounsfield)


def _cut(pixels: Grey, rng: np.random.Generator) -> Grey:
    """Cut away a part of what surrounds the lungs, at most up to their edge."""
    lungs, found = find_lungs(pixels)
    if not found or rng.random() < 0.4:
        return pixels.copy()
    height, width = pixels.shape
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    share = rng.uniform(0, 1, 4) * rng.uniform(0.3, 1)
    top, left = int(share[0] * rows[0]), int(share[1] * columns[0])
    bottom = height - int(share[2] * (height - 1 - rows[-1]))
    right = width - int(share[3] * (width - 1 - columns[-1]))
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _mark(picture: Grey, rng: np.random.Generator) -> None:
    """Draw a letter in a corner and an arrow, as figures carry them."""
    height, width = picture.shape
    shade = int(rng.choice([0, 255]))
    scale = max(0.3, 0.06 * height / 22)
    place = (int(rng.choice([0.02, 0.9]) * width), int(rng.choice([0.1, 0.95]) * height))
    cv2.putText(
        picture, str(rng.choice(list("ABCDabcd12"))), place, cv2.FONT_HERSHEY_SIMPLEX, scale, shade, 2
    )
    if rng.random() < 0.5:
        start = (rng.uniform(0.1, 0.9, 2) * (width, height)).astype(int)
        end = start + (rng.uniform(-0.1, 0.1, 2) * (width, height)).astype(int)
        cv2.arrowedLine(picture, start.tolist(), end.tolist(), shade, 2, tipLength=0.4)
