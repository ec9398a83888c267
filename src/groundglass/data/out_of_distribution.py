"""Pictures that an input check learns from: lung slices in every state, and what is no axial lung CT slice.

All of them are synthetic or made of the lung slices given, and the same for the same seed. The set on which
refusal is measured holds none of them: it has other seeds, and photographs, X-rays, pages of text, checkerboards
and discs, which no input check has learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.imaging.anatomy import CORTEX, FAT, FLUID, GAS, MUSCLE, Canvas, Patient, ellipse
from groundglass.imaging.lesions import Kind, Mimic, paint_lesion, paint_mimic, smooth_noise
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import Scanner, make_phantom, scan, scan_abdomen
from groundglass.imaging.slice import Grey, Hounsfield
from groundglass.imaging.window import LUNG, Window

TURNED = "a slice turned by 90 degrees"
OTHER_VIEW = "a view from the front or side"
OTHER_PART = "another part of the body"
INVERTED = "a slice with black and white exchanged"
NO_SCAN = "no scan at all"
"""What a picture may be, in words that follow "looks like"."""

FRONT, SIDE = 1, 2
"""Axes of a volume along which it is viewed."""

# Parts the random numbers of the examples from all others, those of the measured set above all.
_STREAM = 0x6A7E
_WINDOWS = (LUNG, Window(-500, 1400), Window(40, 400), Window(40, 100), Window(50, 1500))
_WINDOW_SHARES = (0.35, 0.15, 0.2, 0.15, 0.15)
# Share of varied slices in which, as in a soft-tissue window, lungs are black.
_SOFT_TISSUE = 0.15
# Share of scans shown as T1-weighted magnetic resonance shows such tissue: bright fat, black bone.
_RESONANCE = 0.2
_RESONANCE_HOUNSFIELD = (-950, -300, -110, -60, 0, 15, 30, 60, 200, 500)
_RESONANCE_GREY = (0, 60, 240, 220, 40, 60, 150, 120, 60, 10)


def vary(pixels: Grey, rng: Generator) -> Grey:
    """A lung slice, shape (H, W), as another might publish it: cut, in another window, smaller, padded, marked."""
    picture = _cut(pixels, rng)
    black, white = ((60, 130), (180, 230)) if rng.random() < _SOFT_TISSUE else ((0, 50), (170, 255))
    low, high = rng.uniform(*black), rng.uniform(*white)
    share = np.clip((np.arange(256) - low) / (high - low), 0, 1) ** rng.uniform(0.7, 1.5)
    picture = _grey(255 * share)[picture]
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


def paint_disease(pixels: Grey, rng: Generator) -> Grey:
    """A lung slice, shape (H, W), with heavy disease where lungs are found: grave illness must not be refused."""
    lungs = shipped()(pixels)
    if not lungs.any():
        return pixels.copy()
    if rng.random() < 0.35:
        return paint_mimic(pixels, lungs, tuple(Mimic)[rng.integers(len(Mimic))], rng).pixels
    kind = tuple(Kind)[rng.integers(len(Kind))]
    return paint_lesion(pixels, lungs, kind, rng.uniform(0.5, 1), rng).pixels


def phantom_slices(count: int, seed: int) -> Iterator[Grey]:
    """Phantoms, one patient each: of six one healthy, one of any severity, four severe."""
    for index in range(count):
        rng = np.random.default_rng([_STREAM, seed, 1, index])
        severity = (0.0, rng.uniform(0.05, 0.7))[index % 6] if index % 6 < 2 else rng.uniform(0.7, 1)
        yield make_phantom(rng, severity=severity, size=384).slice.pixels


def out_of_distribution_examples(lungs: Sequence[Grey], seed: int, effort: float = 1.0) -> Iterator[tuple[str, Grey]]:
    """Pictures to be refused, with what they are in words.

    Args:
        lungs: lung slices, of which some are turned, inverted and cut into pieces; there may be none.
        seed: of everything random.
        effort: share of the full number of pictures; at least a twentieth of each kind is made.
    """

    def count(full: int) -> int:
        return max(full // 20, int(effort * full))

    rng = np.random.default_rng([_STREAM, seed, 2])
    spoilt = ((TURNED, 260, _turn), (INVERTED, 80, lambda pixels, _: np.bitwise_not(pixels)), (NO_SCAN, 100, _shuffle))
    for kind, full, spoil in spoilt:
        chosen = rng.permutation(len(lungs))[: count(full)]
        yield from ((kind, spoil(lungs[index], rng)) for index in chosen)
    yield from ((TURNED, _turn(pixels, rng)) for pixels in phantom_slices(count(80), seed + 1))
    for _ in range(count(20)):
        volume = scan_volume(rng, 192, float(rng.uniform(0, 1) * (rng.random() < 0.5)))
        for axis in (FRONT, SIDE) * 3:
            yield OTHER_VIEW, _windowed(volume.view(axis, rng.uniform(0.2, 0.8)), rng)
    yield from ((OTHER_PART, pixels) for pixels in parts_without_lungs(rng, count(240), 384))
    for draw, full in ((gradient, 40), (stripes, 40), (noise, 80), (chart, 60), (scenery, 200)):
        yield from ((NO_SCAN, draw(rng)) for _ in range(count(full)))


def parts_without_lungs(rng: Generator, count: int, size: int) -> Iterator[Grey]:
    """Axial slices of the abdomen and, three in eight, of the head; uint8, (size, size)."""
    for index in range(count):
        if index % 8 < 3:
            part = scan_head(rng, size)
        else:
            patient = Patient.draw(rng)
            part = scan_abdomen(patient, Scanner.draw(patient, rng), rng.uniform(0.02, 0.9), size)
        yield _windowed(part, rng)


def _cut(pixels: Grey, rng: Generator) -> Grey:
    """Cut away a part of what surrounds the lungs, at most up to their edge."""
    lungs = shipped()(pixels)
    if not lungs.any() or rng.random() < 0.4:
        return pixels.copy()
    left, top, across, down = cv2.boundingRect(lungs.astype(np.uint8))
    height, width = pixels.shape
    around = np.array([top, left, height - top - down, width - left - across])
    top, left, below, beside = (rng.uniform(0, 1, 4) * rng.uniform(0.3, 1) * around).astype(int)
    return np.ascontiguousarray(pixels[top : height - below, left : width - beside])


def _mark(picture: Grey, rng: Generator) -> None:
    """Draw a letter in a corner and an arrow, as figures carry them."""
    height, width = picture.shape
    shade = int(rng.choice([0, 255]))
    scale = max(0.3, 0.06 * height / 22)
    place = (int(rng.choice([0.02, 0.9]) * width), int(rng.choice([0.1, 0.95]) * height))
    letter = str(rng.choice(list("ABCDabcd12")))
    cv2.putText(picture, letter, place, cv2.FONT_HERSHEY_SIMPLEX, scale, shade, 2)
    if rng.random() < 0.5:
        start = (rng.uniform(0.1, 0.9, 2) * (width, height)).astype(int)
        end = start + (rng.uniform(-0.1, 0.1, 2) * (width, height)).astype(int)
        cv2.arrowedLine(picture, start.tolist(), end.tolist(), shade, 2, tipLength=0.4)


def _turn(pixels: Grey, rng: Generator) -> Grey:
    return np.ascontiguousarray(np.rot90(pixels, rng.choice([1, 3])))


def _shuffle(pixels: Grey, rng: Generator) -> Grey:
    """The slice cut into tiles, which change places."""
    count = int(rng.integers(2, 6))
    height, width = (side // count for side in pixels.shape)
    tiles = pixels[: height * count, : width * count].reshape(count, height, count, width).swapaxes(1, 2)
    order = rng.permutation(count**2)
    shuffled = tiles.reshape(-1, height, width)[order].reshape(count, count, height, width)
    return np.ascontiguousarray(shuffled.swapaxes(1, 2).reshape(height * count, width * count))


def _windowed(hounsfield: Hounsfield, rng: Generator) -> Grey:
    """Grey values in some window of CT, or at times as magnetic resonance would show the same tissue."""
    if rng.random() < _RESONANCE:
        return _grey(np.interp(hounsfield, _RESONANCE_HOUNSFIELD, _RESONANCE_GREY) * rng.uniform(0.7, 1))
    return _WINDOWS[rng.choice(len(_WINDOWS), p=_WINDOW_SHARES)].apply(hounsfield)


@dataclass(frozen=True)
class Volume:
    """A scanned stack of planes; its views are isotropic, shape (H, W), head up."""

    hounsfield: NDArray[np.float32] = field(repr=False)  # (planes, rows, columns), from the lungs' apex down
    between: float  # mm from plane to plane
    spacing: float  # mm from pixel to pixel within a plane

    def view(self, axis: int, share: float) -> Hounsfield:
        """The view from ``FRONT``, or facing left from the ``SIDE``, at a share of the depth or width, 0 to 1."""
        return self.isotropic(np.take(self.hounsfield, int(share * (self.hounsfield.shape[axis] - 1)), axis))

    def isotropic(self, view: NDArray[np.float32]) -> NDArray[np.float32]:
        """A view, one row for each plane, stretched until its pixels are square."""
        height = max(1, round(view.shape[0] * self.between / self.spacing))
        return np.asarray(cv2.resize(view, (view.shape[1], height), interpolation=cv2.INTER_LINEAR))


def scan_volume(rng: Generator, size: int, severity: float) -> Volume:
    """Scan chest, in 64 planes of size x size pixels, and upper abdomen of a synthetic patient.

    The lesions' severity is 0 healthy to 1; the abdomen is 0.4 of the lungs' height.
    """
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    levels = np.linspace(0.0, 1.0, 64)
    chest = [scan(patient, scanner, float(level), severity, size).hounsfield for level in levels]
    step = levels[1]
    belly = [scan_abdomen(patient, scanner, float(depth), size) for depth in np.arange(step, 0.4, step)]
    return Volume(np.stack(chest + belly), step * patient.height, scanner.spacing * 512 / size)


def scan_head(rng: Generator, size: int = 512) -> Hounsfield:
    """Scan one slice (size, size) of a synthetic head: scalp, skull, brain with ventricles, sinuses lower down."""
    level = rng.uniform(0, 1)  # from the vertex to the base of the skull
    a, b = np.array([rng.uniform(66, 80), rng.uniform(82, 100)]) * (0.55 + 0.45 * min(1.0, level / 0.35))
    middle = (rng.normal(0, 4), rng.normal(0, 6))
    canvas = Canvas(size, rng.uniform(1.05, 1.6) * 200 / size, middle, rng.normal(0, 0.06))
    if rng.random() < 0.5:  # a headrest
        canvas.paint(ellipse(0, 14, a + 22, b + 8), -300)
        canvas.paint(ellipse(0, 10, a + 19, b + 8), -1000)
    # Skin, fat, the skull with its spongy middle, and fluid around the brain.
    depths = (0.0, 2.0, 5.0, 6.5, rng.uniform(8, 12), 13.0)
    tissues: tuple[float, ...] = (MUSCLE, FAT + 40, CORTEX + 350, CORTEX - 250, CORTEX + 300, FLUID)
    for depth, tissue in zip(depths, tissues, strict=True):
        canvas.paint(ellipse(0, 0, a - depth, b - depth), tissue)
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    for reach, folding, folds, matter in ((0.98, 0.04, 18, 38), (0.84, 0.07, 11, 29)):
        scale = reach - folding * np.abs(np.sin(turn * rng.integers(folds - 3, folds + 4) / 2 + rng.uniform(0, 6)))
        outline = np.stack([(a - 13) * np.cos(turn), (b - 13) * np.sin(turn)], 1)
        canvas.paint(outline * scale[:, None], matter, softness=1.0)
    for shape, value in _inside_head(level, rng):
        for side in (-1, 1):
            x, y, wide, high, angle = shape
            canvas.paint(ellipse(side * x * a, y * b, wide * a, high * b, side * angle), value, softness=0.7)
    grain = smooth_noise((size, size), size * 0.6, rng) * np.float32(rng.uniform(2, 6))
    image = canvas.hounsfield + grain * (0.2 + canvas.mask(ellipse(0, 0, a, b)))
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.float32)


def _inside_head(level: float, rng: Generator) -> Iterator[tuple[tuple[float, ...], float]]:
    """What lies on both sides of the midline: ellipses (x, y, half axes, angle) in half axes of the head."""
    yield (0.0, 0.0, 0.015, 0.8, 0.0), FLUID + 18
    if 0.3 < level < 0.7:  # ventricles
        wide = rng.uniform(0.05, 0.11)
        yield (0.14, -0.13, wide, 0.22, -0.25), FLUID
        yield (0.25, 0.27, 0.8 * wide, 0.14, 0.5), FLUID
    if level > 0.65:  # petrous bones with air cells, sinuses, orbits, nasal cavity
        yield (0.55, 0.12, 0.32, 0.10, -0.5), CORTEX
        for _ in range(8):
            yield (rng.normal(0.72, 0.07), rng.normal(0.2, 0.05), 0.03, 0.02, 0.0), -700
        yield (0.3, -0.68, rng.uniform(0.1, 0.22), rng.uniform(0.08, 0.17), 0.0), GAS
        yield (0.45, -0.5, 0.16, 0.13, 0.0), FAT
        yield (0.45, -0.55, 0.12, 0.10, 0.0), FLUID + 10
        yield (0.0, -0.72, 0.07, 0.14, 0.0), GAS


def gradient(rng: Generator) -> Grey:
    """Grey that rises in one direction, or from a middle outwards."""
    x, y = _grid(rng)
    turn = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.6:
        values = np.cos(turn) * x + np.sin(turn) * y
    else:
        distance = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
        values = distance if turn > np.pi else -distance
    share = (values - values.min()) / (values.max() - values.min())
    return _grey(255 * share ** rng.uniform(0.5, 2))


def stripes(rng: Generator) -> Grey:
    """Parallel stripes, hard or soft, in any direction."""
    x, y = _grid(rng)
    turn = rng.uniform(0, np.pi)
    across = np.cos(turn) * x + np.sin(turn) * y
    wave = np.sin(np.pi * rng.uniform(1, 20) * across + rng.uniform(0, 2 * np.pi))
    dark, bright = rng.uniform(0, 110), rng.uniform(140, 255)
    share = wave > 0 if rng.random() < 0.5 else (wave + 1) / 2
    return _grey(dark + (bright - dark) * share)


def noise(rng: Generator) -> Grey:
    """Noise whose amplitude falls with a power of frequency: 0 white, 1 as photographs have it, 2 clouds."""
    height, width = _grid(rng)[0].shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency ** rng.uniform(0, 2)
    values = np.fft.irfft2(spectrum, (height, width))
    return _grey(rng.uniform(60, 200) + rng.uniform(20, 80) * values / values.std())


def chart(rng: Generator) -> Grey:
    """A line or bar chart with axes and labels."""
    height, width = int(rng.integers(280, 600)), int(rng.integers(320, 800))
    picture = np.full((height, width), rng.integers(235, 256), np.uint8)
    left, top, right, bottom = int(0.12 * width), int(0.1 * height), int(0.95 * width), int(0.86 * height)
    cv2.rectangle(picture, (left, top), (right, bottom), 40, 1)
    grid = rng.random() < 0.5
    for share in np.linspace(0, 1, int(rng.integers(4, 9))):
        x, y = int(left + share * (right - left)), int(bottom - share * (bottom - top))
        if grid:
            cv2.line(picture, (left, y), (right, y), 200, 1)
        for place in ((x - 6, bottom + 18), (left - 32, y + 4)):
            cv2.putText(picture, f"{share:.1f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 40, 1, cv2.LINE_AA)
    bars, count = rng.random() < 0.5, int(rng.integers(3, 16))
    for _ in range(1 if bars else rng.integers(1, 5)):
        heights = bottom - (bottom - top) * np.clip(rng.normal(0.5, 0.2, count), 0.05, 0.95)
        points = np.stack([np.linspace(left, right, count), heights], 1).astype(np.int32)
        shade, wide = int(rng.integers(0, 170)), int(0.35 * (right - left) / count)
        if not bars:
            cv2.polylines(picture, [points], False, shade, int(rng.integers(1, 4)), cv2.LINE_AA)
        for x, y in points.tolist() if bars else ():
            cv2.rectangle(picture, (x - wide, y), (x + wide, bottom), shade, -1)
    return picture


def scenery(rng: Generator) -> Grey:
    """Overlapping shapes of all sizes, shaded and textured, out of focus here and there.

    Scenes of things that hide each other share the statistics of photographs (Lee, Mumford and Huang,
    Occlusion models for natural images, IJCV 41, 2001): the "dead leaves" model.
    """
    height, width = _grid(rng)[0].shape
    picture = np.full((height, width), rng.uniform(30, 220), np.float32)
    for _ in range(rng.integers(15, 160)):
        # Radii as the inverse cube: small things are many.
        radius = 0.5 * min(height, width) * (1 - rng.random() * 0.997) ** 2
        corners = int(rng.choice([3, 4, 5, 6, 40]))
        turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
        reach = radius * (rng.uniform(0.6, 1.2, corners) if corners < 40 else 1.0)
        points = np.stack([reach * np.cos(turn), rng.uniform(0.3, 1) * reach * np.sin(turn)], axis=1)
        mask = np.zeros((height, width), np.float32)
        shape = np.rint(points + np.array([rng.uniform(0, width), rng.uniform(0, height)])).astype(np.int32)
        cv2.fillPoly(mask, [shape], 1.0)
        texture = smooth_noise((height, width), rng.uniform(3, 60), rng)
        picture += mask * (rng.uniform(0, 255) + rng.uniform(0, 30) * texture - picture)
    if rng.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3)), np.float32)
    return _grey(picture + rng.normal(0, rng.uniform(0, 6), picture.shape))


def _grid(rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates -1..1, across and down, of a picture of 200 to 640 pixels a side."""
    width = int(rng.integers(200, 640))
    height = int(np.clip(width * rng.uniform(0.6, 1.3), 200, 640))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return x, y


def _grey(picture: NDArray[np.floating]) -> Grey:
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)
