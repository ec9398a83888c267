"""The documented set of pictures that are no axial lung CT slices, on which refusal is measured.

Most are generated from a fixed seed, as many of each kind; sample pictures of installed packages and DICOM
files given by the user come on top where they are there. The gate never learns from any of them, see
`groundglass.data.out_of_distribution`: its own lessons have other seeds, and some kinds it never meets at all.

Pictures without anatomy: blank and noise images, patterns, pages of text, charts, invented scenery.

What people drop into a folder of slices by mistake, drawn so that its refusal can be learnt and measured
without a picture that belongs to anybody.

Invented axial slices of the head: scalp, skull, brain with ventricles, sinuses lower down.

Invented axial slices below the lungs: liver, spleen, stomach, kidneys, bowel with gas.

Other views of an invented chest: coronal and sagittal reformats, and projections like an X-ray's.

What the gate learns from: lung slices in the ways publications show them, and what is none.

Nothing here is in the set on which refusal is measured (`groundglass.data.out_of_distribution`): the random streams are
others, and photographs, X-rays, pages of text, checkerboards, discs and everything scanned but the data set's
own slices are left out altogether, so that the measured set holds kinds that the gate has never met.
"""

from __future__ import annotations

import csv
import gzip
import io
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groundglass.data import out_of_distribution as patterns
from groundglass.errors import DataError, ImageError
from groundglass.files import write_bytes, write_text
from groundglass.imaging.anatomy import (
    CORTEX,
    FAT,
    FLUID,
    GAS,
    LIVER,
    MUSCLE,
    SPLEEN,
    Canvas,
    Patient,
    cavity,
    ellipse,
    paint_bones,
    skin,
)
from groundglass.imaging.crop import find_lungs
from groundglass.imaging.lesions import Kind, Mimic, paint_lesion, paint_mimic, smooth_noise
from groundglass.imaging.phantom import Scanner, acquire, make_phantom, paint_table, scan
from groundglass.imaging.slice import Grey, Hounsfield
from groundglass.imaging.source import DEFAULT_LIMITS, FileSource, files_below, guard
from groundglass.imaging.window import LUNG, Window

_SIDES = (200, 640)
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)


def blank(rng: np.random.Generator) -> Grey:
    """One grey value, or nearly: at times with faint noise or a thin frame."""
    value = int(rng.choice(np.array([0, 255, rng.integers(1, 255)])))
    picture = np.full(_shape(rng), value, np.float32)
    if rng.random() < 0.4:
        picture += rng.normal(0, rng.uniform(0.3, 2.0), picture.shape)
    if rng.random() < 0.3:
        edge = int(rng.integers(1, 6))
        picture[:edge] = picture[-edge:] = picture[:, :edge] = picture[:, -edge:] = 255 - value
    return _grey(picture)


def gradient(rng: np.random.Generator) -> Grey:
    """Grey that rises in one direction, or from a middle outwards."""
    x, y = _grid(rng)
    turn = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.6:
        field = np.cos(turn) * x + np.sin(turn) * y
    else:
        field = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)) * (1 if turn > np.pi else -1)
    share = (field - field.min()) / (field.max() - field.min())
    return _grey(255 * share ** rng.uniform(0.5, 2))


def checkerboard(rng: np.random.Generator) -> Grey:
    """Squares in two greys."""
    x, y = _grid(rng)
    cells = rng.uniform(1, 12)
    shift = rng.uniform(0, 1, 2)
    field = np.floor(cells * x + shift[0]) + np.floor(cells * y + shift[1])
    dark, bright = _two_greys(rng)
    return _grey(np.where(field % 2 == 0, dark, bright))


def stripes(rng: np.random.Generator) -> Grey:
    """Parallel stripes, hard or soft, in any direction."""
    x, y = _grid(rng)
    turn = rng.uniform(0, np.pi)
    wave = np.sin(
        np.pi * rng.uniform(1, 20) * (np.cos(turn) * x + np.sin(turn) * y) + rng.uniform(0, 2 * np.pi)
    )
    dark, bright = _two_greys(rng)
    share = wave > 0 if rng.random() < 0.5 else (wave + 1) / 2
    return _grey(dark + (bright - dark) * share)


def circles(rng: np.random.Generator) -> Grey:
    """A few discs and rings of different greys on a plain ground."""
    height, width = _shape(rng)
    picture = np.full((height, width), rng.integers(256), np.uint8)
    for _ in range(rng.integers(1, 12)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = int(rng.uniform(0.03, 0.35) * min(height, width))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 20))
        cv2.circle(picture, centre, radius, int(rng.integers(256)), thickness, cv2.LINE_AA)
    return picture


def noise(rng: np.random.Generator, slope: float | None = None) -> Grey:
    """Noise whose amplitude falls with frequency to the power of ``slope``.

    Args:
        rng: source of randomness.
        slope: 0 white, 1 as photographs have it, 2 clouds; drawn from 0..2 when None.
    """
    height, width = _shape(rng)
    slope = rng.uniform(0, 2) if slope is None else slope
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (height, width))
    return _grey(rng.uniform(60, 200) + rng.uniform(20, 80) * field / field.std())


def text_page(rng: np.random.Generator) -> Grey:
    """Lines of words, dark on bright or the other way round, at times in two columns with a heading."""
    height, width = int(rng.integers(300, 800)), int(rng.integers(250, 700))
    paper, ink = (rng.integers(225, 256), rng.integers(0, 60))
    if rng.random() < 0.25:
        paper, ink = ink, paper
    picture = np.full((height, width), paper, np.uint8)
    scale = rng.uniform(0.25, 0.7)
    line = int(scale * rng.uniform(30, 42))
    font = int(rng.choice(_FONTS))
    columns = 2 if width > 400 and rng.random() < 0.5 else 1
    margin = int(rng.uniform(0.04, 0.1) * width)
    top = margin + int(rng.uniform(0, 0.2) * height)
    cv2.putText(picture, _words(rng, 18), (margin, top - 4), font, scale * 1.6, int(ink), 1, cv2.LINE_AA)
    for column in range(columns):
        left = margin + column * (width - margin) // columns
        letters = max(3, int((width - 2 * margin) / columns / (19 * scale)))
        for y in range(top + line, height - margin, line):
            if rng.random() < 0.9:
                cv2.putText(picture, _words(rng, letters), (left, y), font, scale, int(ink), 1, cv2.LINE_AA)
    return picture


def chart(rng: np.random.Generator) -> Grey:
    """A line, bar, scatter or pie chart with axes and labels."""
    height, width = int(rng.integers(280, 600)), int(rng.integers(320, 800))
    picture = np.full((height, width), rng.integers(235, 256), np.uint8)
    left, right = int(0.12 * width), int(0.95 * width)
    top, bottom = int(0.1 * height), int(0.86 * height)
    kind = rng.integers(4)
    if kind == 3:
        _pie(picture, rng)
    else:
        _axes(picture, (left, top, right, bottom), rng)
        plot = (_lines, _bars, _dots)[kind]
        plot(picture, (left, top, right, bottom), rng)
    cv2.putText(picture, _words(rng, 24), (left, top - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 30, 1, cv2.LINE_AA)
    return picture


def scenery(rng: np.random.Generator) -> Grey:
    """Overlapping shapes of all sizes, shaded and textured, out of focus here and there.

    Scenes of things that hide each other share the statistics of photographs (Lee, Mumford and Huang,
    Occlusion models for natural images, IJCV 41, 2001): the "dead leaves" model.
    """
    height, width = _shape(rng)
    picture = np.full((height, width), rng.uniform(30, 220), np.float32)
    for _ in range(rng.integers(15, 160)):
        # Radii as the inverse cube: small things are many.
        radius = 0.5 * min(height, width) * (1 - rng.random() * 0.997) ** 2
        shape = _blob(rng, radius, (rng.uniform(0, width), rng.uniform(0, height)))
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [shape], 255, lineType=cv2.LINE_AA)
        shade = rng.uniform(0, 255) + rng.uniform(0, 30) * smooth_noise(
            (height, width), rng.uniform(3, 60), rng
        )
        picture += mask.astype(np.float32) / 255 * (shade - picture)
    if rng.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3)), np.float32)
    return _grey(picture + rng.normal(0, rng.uniform(0, 6), picture.shape))


def _shape(rng: np.random.Generator) -> tuple[int, int]:
    width = int(rng.integers(*_SIDES))
    return int(np.clip(width * rng.uniform(0.6, 1.3), *_SIDES)), width


def _grid(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    height, width = _shape(rng)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return x, y


def _grey(picture: NDArray[np.floating]) -> Grey:
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)


def _two_greys(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(0, 110), rng.uniform(140, 255)


def _words(rng: np.random.Generator, letters: int) -> str:
    words = ""
    while len(words) < letters:
        words += "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 10))) + " "
    return words[:letters].capitalize()


def _blob(rng: np.random.Generator, radius: float, middle: tuple[float, float]) -> NDArray[np.int32]:
    corners = int(rng.choice([3, 4, 5, 6, 40]))
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
    reach = radius * rng.uniform(0.6, 1.2, corners) if corners < 40 else np.full(corners, radius)
    stretch = rng.uniform(0.3, 1)
    points = np.stack([reach * np.cos(turn), stretch * reach * np.sin(turn)], axis=1) + middle
    return np.rint(points).astype(np.int32)


_Frame = tuple[int, int, int, int]


def _axes(picture: Grey, frame: _Frame, rng: np.random.Generator) -> None:
    left, top, right, bottom = frame
    if rng.random() < 0.5:
        cv2.rectangle(picture, (left, top), (right, bottom), 40, 1)
    else:
        cv2.line(picture, (left, top), (left, bottom), 40, 1)
        cv2.line(picture, (left, bottom), (right, bottom), 40, 1)
    grid = rng.random() < 0.5
    for share in np.linspace(0, 1, int(rng.integers(4, 9))):
        x, y = int(left + share * (right - left)), int(bottom - share * (bottom - top))
        if grid:
            cv2.line(picture, (left, y), (right, y), 200, 1)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, f"{share * 10:.0f}", (x - 6, bottom + 18), font, 0.4, 40, 1, cv2.LINE_AA)
        cv2.putText(picture, f"{share:.1f}", (left - 32, y + 4), font, 0.4, 40, 1, cv2.LINE_AA)


def _lines(picture: Grey, frame: _Frame, rng: np.random.Generator) -> None:
    left, top, right, bottom = frame
    for _ in range(rng.integers(1, 5)):
        x = np.linspace(left, right, 60)
        curve = smooth_noise((2, 60), rng.uniform(3, 30), rng)[0]
        y = (top + bottom) / 2 + (bottom - top) * 0.2 * np.clip(curve, -2.4, 2.4)
        points = np.rint(np.stack([x, y], 1)).astype(np.int32)
        cv2.polylines(
            picture, [points], False, int(rng.integers(0, 170)), int(rng.integers(1, 4)), cv2.LINE_AA
        )


def _bars(picture: Grey, frame: _Frame, rng: np.random.Generator) -> None:
    left, top, right, bottom = frame
    count = int(rng.integers(3, 16))
    width = (right - left) / count
    for index, height in enumerate(rng.uniform(0.05, 0.95, count)):
        x = left + index * width
        corner = (int(x + 0.15 * width), int(bottom - height * (bottom - top)))
        cv2.rectangle(picture, corner, (int(x + 0.85 * width), bottom), int(rng.integers(20, 180)), -1)


def _dots(picture: Grey, frame: _Frame, rng: np.random.Generator) -> None:
    left, top, right, bottom = frame
    for x, y in rng.beta(2, 2, (int(rng.integers(20, 300)), 2)):
        place = (int(left + x * (right - left)), int(bottom - y * (bottom - top)))
        cv2.circle(picture, place, int(rng.integers(2, 6)), int(rng.integers(0, 170)), -1, cv2.LINE_AA)


def _pie(picture: Grey, rng: np.random.Generator) -> None:
    height, width = picture.shape
    ends = np.cumsum(rng.dirichlet(np.full(int(rng.integers(2, 7)), 2.0))) * 360
    start, radius = 0.0, int(0.36 * min(height, width))
    for end in ends:
        middle = (width // 2, int(0.52 * height))
        shade = int(rng.integers(30, 220))
        cv2.ellipse(picture, middle, (radius, radius), 0, start, float(end), shade, -1, cv2.LINE_AA)
        start = float(end)


_GREY_MATTER, _WHITE_MATTER = 38, 29


def scan_head(rng: np.random.Generator, level: float | None = None, size: int = 512) -> Hounsfield:
    """Invent a head and scan one slice.

    Args:
        rng: draws everything; the same state gives the same slice.
        level: 0 vertex to 1 base of the skull, where sinuses hold air; drawn when None.
        size: pixels along each side.

    Returns:
        float32, shape (size, size), Hounsfield units.
    """
    level = rng.uniform(0, 1) if level is None else level
    a, b = rng.uniform(66, 80), rng.uniform(82, 100)
    shrink = 0.55 + 0.45 * min(1.0, level / 0.35)
    a, b = a * shrink, b * shrink
    spacing = rng.uniform(1.05, 1.6) * 200 / size
    canvas = Canvas(size, spacing, (rng.normal(0, 4), rng.normal(0, 6)), rng.normal(0, 0.06))
    _shell(canvas, a, b, rng)
    _brain(canvas, a - 13, b - 13, level, rng)
    if level > 0.65:
        _base(canvas, a, b, rng)
    image = canvas.hounsfield
    body = canvas.mask(ellipse(0, 0, a, b))
    grain = smooth_noise((size, size), size * 0.6, rng)
    image = image + grain * np.float32(rng.uniform(2, 6)) * (0.2 + body)
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.float32)


def _shell(canvas: Canvas, a: float, b: float, rng: np.random.Generator) -> None:
    """Skin, fat and the skull with its spongy middle; the headrest behind it at times."""
    if rng.random() < 0.5:
        canvas.paint(ellipse(0, 14, a + 22, b + 8), -300, softness=0.6)
        canvas.paint(ellipse(0, 10, a + 19, b + 8), -1000, softness=0.6)
    canvas.paint(ellipse(0, 0, a, b), MUSCLE, softness=0.6)
    canvas.paint(ellipse(0, 0, a - 2, b - 2), FAT + 40, softness=1.0)
    thickness = rng.uniform(5, 9)
    canvas.paint(ellipse(0, 0, a - 5, b - 5), CORTEX + 350, softness=0.5)
    canvas.paint(ellipse(0, 0, a - 6.5, b - 6.5), CORTEX - 250, softness=0.7)
    canvas.paint(ellipse(0, 0, a - 3 - thickness, b - 3 - thickness), CORTEX + 300, softness=0.5)


def _brain(canvas: Canvas, a: float, b: float, level: float, rng: np.random.Generator) -> None:
    """Folded grey matter around white matter, the midline, and ventricles where the level has them."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    canvas.paint(ellipse(0, 0, a, b), FLUID, softness=0.5)
    folds = 1 - 0.02 - 0.04 * np.abs(np.sin(turn * rng.integers(14, 22) / 2 + rng.uniform(0, 6)))
    outline = np.stack([a * np.cos(turn), b * np.sin(turn)], 1)
    canvas.paint(outline * folds[:, None], _GREY_MATTER, softness=0.6)
    inner = 0.84 - 0.07 * np.abs(np.sin(turn * rng.integers(9, 14) / 2 + rng.uniform(0, 6)))
    canvas.paint(outline * inner[:, None], _WHITE_MATTER, softness=1.5)
    canvas.paint(ellipse(0, 0, 1.0, 0.96 * b), FLUID + 18, softness=0.5)
    if 0.3 < level < 0.7:
        wide = rng.uniform(0.06, 0.14)
        for side in (-1, 1):
            horn = ellipse(side * 0.17 * a, -0.16 * b, wide * a, 0.26 * b, side * -0.25)
            canvas.paint(horn, FLUID, softness=0.8)
            canvas.paint(ellipse(side * 0.3 * a, 0.32 * b, 0.8 * wide * a, 0.17 * b, side * 0.5), FLUID)


def _base(canvas: Canvas, a: float, b: float, rng: np.random.Generator) -> None:
    """Petrous bones with air cells, nasal cavity and sinuses."""
    for side in (-1, 1):
        canvas.paint(
            ellipse(side * 0.55 * a, 0.12 * b, 0.32 * a, 0.10 * b, side * -0.5), CORTEX, softness=1.0
        )
        for _ in range(8):
            x, y = rng.normal(side * 0.72 * a, 5), rng.normal(0.2 * b, 5)
            canvas.paint(ellipse(x, y, 2.2, 1.8), -700, softness=0.6)
        sinus = ellipse(side * 0.3 * a, -0.68 * b, rng.uniform(0.1, 0.22) * a, rng.uniform(0.08, 0.17) * b)
        canvas.paint(sinus * 1.0, GAS, softness=0.6)
        canvas.paint(ellipse(side * 0.45 * a, -0.5 * b, 0.16 * a, 0.13 * b), FAT, softness=0.8)
        canvas.paint(ellipse(side * 0.45 * a, -0.55 * b, 0.12 * a, 0.12 * a), FLUID + 10, softness=0.5)
    canvas.paint(ellipse(0, -0.72 * b, 0.07 * a, 0.14 * b), GAS, softness=0.6)


_STREAM = 17
_KIDNEY = 34


def abdomen_below(patient: Patient, scanner: Scanner, depth: float, size: int = 512) -> Hounsfield:
    """Scan one slice of an invented patient below the lungs.

    Args:
        patient: whose; the same patient gives the same organs at all depths.
        scanner: how.
        depth: below the base of the lungs, as a share of the lungs' height, 0 to 1.
        size: pixels along each side.

    Returns:
        float32, shape (size, size).

    Raises:
        ValueError: ``depth`` lies outside 0..1.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth {depth} must lie in 0..1")
    canvas = Canvas(size, scanner.spacing * 512 / size, patient.middle, patient.tilt)
    paint_table(canvas, patient, scanner)
    outline = skin(patient, 1.0)
    body = canvas.mask(outline)
    canvas.blend(body, -5)
    canvas.paint(outline * (1 - 1.8 / patient.half_width), FAT, softness=0.6)
    canvas.paint(skin(patient, 1.0, depth=1.0), MUSCLE, softness=1.0)
    canvas.paint(cavity(patient, 1.0, margin=-2.0), FAT + 8, softness=1.5)
    _organs(canvas, patient, depth)
    _bowel(canvas, patient, depth)
    paint_bones(canvas, patient, 1.0)
    rng = np.random.default_rng([patient.number, _STREAM, round(depth * 1e6)])
    return acquire(canvas, scanner, body, 1.0, rng)


def _organs(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Liver, spleen, kidneys and aorta; the upper organs shrink with depth, the kidneys come and go."""
    w, d = patient.half_width, patient.half_depth
    enhanced = 0.35 * max(0.0, patient.blood - 45)
    upper = max(0.0, 1 - depth / 0.75) ** 0.5
    lower = float(np.exp(-(((depth - 0.45) / 0.3) ** 2)))
    if upper > 0.1:
        liver = ellipse(-0.45 * w, -0.12 * d, 0.50 * w * upper, 0.78 * d * upper, 0.12)
        canvas.paint(liver, LIVER + enhanced, softness=2.0)
        canvas.paint(
            ellipse(-0.05 * w, -0.45 * d, 0.4 * w * upper, 0.3 * d * upper, 0.2),
            LIVER + enhanced,
            softness=2.0,
        )
        spleen = ellipse(0.66 * w, 0.22 * d, 0.22 * w * upper, 0.45 * d * upper, 0.3)
        canvas.paint(spleen, SPLEEN + enhanced, softness=2.0)
    for side in (-1, 1):
        kidney = ellipse(
            side * 0.40 * w, 0.42 * d, 0.19 * w * lower + 0.1, 0.26 * d * lower + 0.1, side * 0.4
        )
        canvas.paint(kidney, _KIDNEY + 1.5 * enhanced, softness=1.0)
        canvas.paint(
            ellipse(side * 0.36 * w, 0.42 * d, 0.06 * w * lower + 0.1, 0.08 * d * lower + 0.1), FAT + 10
        )
        psoas = ellipse(side * 0.20 * w, 0.55 * d, 0.10 * w, 0.16 * d)
        canvas.paint(psoas, MUSCLE, softness=1.0)
    canvas.paint(ellipse(0.05 * w, 0.25 * d, 9.5, 9.5), patient.blood, softness=0.8)
    canvas.paint(ellipse(-0.14 * w, 0.24 * d, 11, 8), 0.8 * patient.blood + 8, softness=0.8)


def _bowel(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Loops of bowel filled with fluid, some with gas in front; they drift with depth."""
    rng = np.random.default_rng([patient.number, _STREAM])
    w, d = patient.half_width, patient.half_depth
    for _ in range(16):
        x, y = rng.uniform(-0.75, 0.8) * w, rng.uniform(-0.75, 0.15) * d
        start, length = rng.uniform(-0.2, 1), rng.uniform(0.2, 0.6)
        a, b = rng.uniform(9, 24, 2)
        gas, content = rng.random() < 0.35, FLUID + rng.uniform(0, 40)
        present = 1 - ((depth - start) / length - 0.5) ** 2 * 4
        hidden_by_liver = x < 0 and depth < 0.5
        if present <= 0.1 or hidden_by_liver:
            continue
        scale = present**0.5
        canvas.paint(ellipse(x, y, a * scale + 2, b * scale + 2), MUSCLE - 10, softness=0.8)
        canvas.paint(ellipse(x, y, a * scale, b * scale), content, softness=0.8)
        if gas:
            canvas.paint(
                ellipse(x, y - 0.35 * b * scale, 0.8 * a * scale, 0.5 * b * scale), GAS, softness=0.8
            )


_WATER = 0.019
"""Attenuation of water in an X-ray beam of some 70 keV, per mm (NIST, X-ray mass attenuation tables)."""


@dataclass(frozen=True)
class Volume:
    """A scanned stack.

    Attributes:
        hounsfield: float32, shape (planes, rows, columns), from the apex of the lungs downwards.
        between: mm from plane to plane.
        spacing: mm from pixel to pixel within a plane.
    """

    hounsfield: NDArray[np.float32] = field(repr=False)
    between: float
    spacing: float

    def coronal(self, share: float) -> Hounsfield:
        """The view from the front at a share of the depth, 0 front to 1 back; head up, isotropic."""
        return self._isotropic(self.hounsfield[:, self._index(share, 1)])

    def sagittal(self, share: float) -> Hounsfield:
        """The view from the side at a share of the width; head up, the patient facing left, isotropic."""
        return self._isotropic(self.hounsfield[:, :, self._index(share, 2)])

    def radiograph(self, lateral: bool = False) -> NDArray[np.float32]:
        """Attenuation along parallel rays through the patient, from the front or the side.

        Returns:
            float32, the line integral of attenuation, dimensionless, 0 where there is only air; head up.
        """
        density = np.clip(1 + self.hounsfield / 1000, 0, None)
        density[density < 0.08] = 0
        path = density.sum(axis=2 if lateral else 1) * np.float32(self.spacing * _WATER)
        return self._isotropic(path)

    def _index(self, share: float, axis: int) -> int:
        return int(np.clip(share, 0, 1) * (self.hounsfield.shape[axis] - 1))

    def _isotropic(self, view: NDArray[np.float32]) -> NDArray[np.float32]:
        height = max(1, round(view.shape[0] * self.between / self.spacing))
        return np.asarray(cv2.resize(view, (view.shape[1], height), interpolation=cv2.INTER_LINEAR))


def scan_volume(
    rng: np.random.Generator, planes: int = 64, size: int = 256, severity: float = 0.0, below: float = 0.4
) -> Volume:
    """Invent a patient and scan chest and upper abdomen.

    Args:
        rng: draws everything; the same state gives the same volume.
        planes: of the chest, at least 2.
        size: pixels along each side of a plane.
        severity: of the lesions, 0 healthy to 1.
        below: length of the abdomen that is scanned, as a share of the lungs' height.
    """
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    levels = np.linspace(0.0, 1.0, planes)
    chest = [scan(patient, scanner, float(level), severity, size).hounsfield for level in levels]
    step = levels[1]
    depths = np.arange(step, below, step)
    belly = [abdomen_below(patient, scanner, float(depth), size) for depth in depths]
    return Volume(np.stack(chest + belly), step * patient.height, scanner.spacing * 512 / size)


def develop(attenuation: NDArray[np.float32], gamma: float = 0.7) -> NDArray[np.uint8]:
    """A radiograph's grey values: bone white, air black.

    Args:
        attenuation: as `Volume.radiograph` gives it.
        gamma: below 1 brightens what absorbs little.
    """
    share = attenuation / max(float(np.quantile(attenuation, 0.995)), 1e-6)
    return np.asarray(np.rint(255 * np.clip(share, 0, 1) ** gamma), np.uint8)


TURNED, OTHER_VIEW, OTHER_PART, INVERTED, NO_SCAN = (
    "a slice turned by 90 degrees",
    "a view from the front or side",
    "another part of the body",
    "a slice with black and white exchanged",
    "no scan at all",
)
"""What a foreign picture may be, in words that follow "looks like"."""

_STREAM_COUNTEREXAMPLES = 0x6A7E
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
    """Show a lung slice as another publication might: cut, in another window, smaller, cropped, marked.

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
        return paint_mimic(pixels, lungs, tuple(Mimic)[rng.integers(len(Mimic))], rng).pixels
    kind = tuple(Kind)[rng.integers(len(Kind))]
    return paint_lesion(pixels, lungs, kind, rng.uniform(0.5, 1), rng).pixels


def phantom_slices(count: int, seed: int) -> Iterator[Grey]:
    """Phantoms, one patient each: of six one healthy, one of any severity, four severe.

    Where disease fills the lungs, preprocessing often misses them: the gate must have seen many such slices.
    """
    for index in range(count):
        rng = np.random.default_rng([_STREAM_COUNTEREXAMPLES, seed, 1, index])
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

    rng = np.random.default_rng([_STREAM_COUNTEREXAMPLES, seed, 2])
    for kind, full in _SPOILT.items():
        chosen = rng.permutation(len(lungs))[: len(count(full))]
        yield from (_spoil(kind, lungs[index], rng) for index in chosen)
    turned = phantom_slices(len(count(_TURNED_PHANTOMS)), seed + 1)
    yield from (_spoil("turned", pixels, rng) for pixels in turned)
    for index in count(_VOLUMES):
        views = _views(np.random.default_rng([_STREAM_COUNTEREXAMPLES, seed, 3, index]))
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


MANIFEST = "foreign.csv"
COLUMNS = ("path", "kind", "taught", "source")

PER_KIND = 20
"""Generated pictures of each kind."""

_STREAM_FOREIGN = 0xF0E1
"""Parts these random numbers from all others, those of the gate's lessons above all."""

_WINDOWS_FOREIGN = (LUNG, Window(40, 400), Window(-500, 1400))
_HEAD_WINDOWS = (LUNG, Window(40, 100), Window(40, 400))
_PICTURES = (".png", ".jpg", ".jpeg")
_CHEST = ("CHEST", "LUNG", "THORAX")
_AXIAL = 0.86
_HEADER = ("ImageOrientationPatient", "BodyPartExamined", "NumberOfFrames")


@dataclass(frozen=True)
class OutOfDistributionPicture:
    """One picture of the set.

    Attributes:
        path: of the file.
        kind: what it shows.
        taught: whether the gate's lessons hold pictures of that kind, drawn from other seeds.
        source: ``generated``, the package it comes with, or ``DICOM``.
    """

    path: Path
    kind: str
    taught: bool
    source: str


def write_out_of_distribution(
    output: Path, seed: int = 0, dicom: Path | None = None, per_kind: int = PER_KIND
) -> list[OutOfDistributionPicture]:
    """Write the set and its manifest; the same arguments write the same files where the same packages are.

    Args:
        output: new or empty folder.
        seed: of the generated pictures.
        dicom: folder of DICOM files; those that are not axial, or of another part of the body than the
            chest by their header, are copied.
        per_kind: generated pictures of each kind, at least 1.

    Raises:
        DataError: the folder is not empty, ``per_kind`` is less than 1, or a folder is missing.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: is not an empty folder; name a new one")
    if per_kind < 1:
        raise DataError(f"{per_kind} pictures of each kind are too few; at least 1")
    if dicom is not None and not dicom.is_dir():
        raise DataError(f"{dicom}: no such folder")
    pictures = []
    for name, kind, taught, source, content in _everything(seed, dicom, per_kind):
        path = output / kind.replace(" ", "-") / name
        write_bytes(path, content)
        pictures.append(OutOfDistributionPicture(path, kind, taught, source))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in pictures:
        place = each.path.relative_to(output).as_posix()
        writer.writerow([place, each.kind, "yes" if each.taught else "no", each.source])
    write_text(output / MANIFEST, table.getvalue())
    return pictures


def read_out_of_distribution(folder: Path) -> list[OutOfDistributionPicture]:
    """The pictures of a set: as its manifest says, or else every file below the folder, its folder the kind.

    Raises:
        DataError: nothing is there, or the manifest is damaged.
    """
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not manifest.is_file():
        files = [Path(source.name) for source in files_below(folder)]
        return [OutOfDistributionPicture(path, path.parent.name, False, folder.name) for path in files]
    try:
        rows = list(csv.DictReader(io.StringIO(manifest.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: damaged manifest ({error})") from None
    for number, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in COLUMNS):
            raise DataError(f"{manifest}: damaged manifest (line {number} lacks one of {', '.join(COLUMNS)})")
    return [
        OutOfDistributionPicture(folder / row["path"], row["kind"], row["taught"] == "yes", row["source"])
        for row in rows
    ]


_Entry = tuple[str, str, bool, str, bytes]


def _everything(seed: int, dicom: Path | None, per_kind: int) -> Iterator[_Entry]:
    for kind, (draw, taught) in _DRAWN_FOREIGN.items():
        for index in range(per_kind):
            yield f"{index:03d}.png", kind, taught, "generated", _png(draw(_rng(seed, kind, index)))
    for index in range(per_kind):
        rng = _rng(seed, "volume", index)
        severity = float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0
        volume = scan_volume(rng, severity=severity)
        for kind, (view, taught) in _VIEWS_FOREIGN.items():
            yield f"{index:03d}.png", kind, taught, "generated", _png(view(volume, rng))
    yield from _samples()
    if dicom is not None:
        for path in sorted(dicom.rglob("*")):
            if path.is_file() and _is_foreign_dicom(path):
                yield path.name, "DICOM of another plane or part", False, "DICOM", path.read_bytes()


def _rng(seed: int, kind: str, index: int) -> np.random.Generator:
    """By the kind's name, not its place in the table: a new kind leaves the others as they are."""
    return np.random.default_rng([_STREAM_FOREIGN, seed, *kind.encode(), index])


def _windowed_foreign(
    hounsfield: Hounsfield, rng: np.random.Generator, windows: tuple[Window, ...] = _WINDOWS_FOREIGN
) -> Grey:
    return windows[int(rng.integers(len(windows)))].apply(hounsfield)


def _coronal(volume: Volume, rng: np.random.Generator) -> Grey:
    return _windowed_foreign(volume.coronal(rng.uniform(0.25, 0.75)), rng)


def _sagittal(volume: Volume, rng: np.random.Generator) -> Grey:
    return _windowed_foreign(volume.sagittal(rng.uniform(0.25, 0.75)), rng)


def _frontal_x_ray(volume: Volume, rng: np.random.Generator) -> Grey:
    return develop(volume.radiograph(), rng.uniform(0.4, 1.0))


def _lateral_x_ray(volume: Volume, rng: np.random.Generator) -> Grey:
    return develop(volume.radiograph(lateral=True), rng.uniform(0.4, 1.0))


def _turned(rng: np.random.Generator) -> Grey:
    severity = float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0
    return np.ascontiguousarray(np.rot90(make_phantom(rng, severity).slice.pixels, rng.choice([1, 3])))


def _abdomen_foreign(rng: np.random.Generator) -> Grey:
    patient = Patient.draw(rng)
    return _windowed_foreign(abdomen_below(patient, Scanner.draw(patient, rng), rng.uniform(0.05, 0.9)), rng)


def _head(rng: np.random.Generator) -> Grey:
    return _windowed_foreign(scan_head(rng), rng, _HEAD_WINDOWS)


_DRAWN_FOREIGN: Mapping[str, tuple[Callable[[np.random.Generator], Grey], bool]] = {
    "blank": (patterns.blank, False),
    "gradient": (patterns.gradient, True),
    "checkerboard": (patterns.checkerboard, False),
    "stripes": (patterns.stripes, True),
    "discs and rings": (patterns.circles, False),
    "noise": (patterns.noise, True),
    "page of text": (patterns.text_page, False),
    "chart": (patterns.chart, True),
    "slice turned by 90 degrees": (_turned, True),
    "abdomen": (_abdomen_foreign, True),
    "head": (_head, True),
}
"""How each kind is drawn, and whether the gate's lessons hold that kind."""

_VIEWS_FOREIGN: Mapping[str, tuple[Callable[[Volume, np.random.Generator], Grey], bool]] = {
    "frontal X-ray": (_frontal_x_ray, False),
    "lateral X-ray": (_lateral_x_ray, False),
    "coronal reformat": (_coronal, True),
    "sagittal reformat": (_sagittal, True),
}
"""How each view of an invented patient is made, and whether the gate's lessons hold that kind."""


def _samples() -> Iterator[_Entry]:
    """Sample pictures of installed packages: colour ones as they are, and all of them in grey."""
    for package, folder in (
        ("skimage", "data"),
        ("sklearn", "datasets/images"),
        ("matplotlib", "mpl-data/sample_data"),
    ):
        for path in _package_files(package, folder):
            if path.suffix.lower() not in _PICTURES:
                continue
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as opened:
                picture = opened.convert("RGB")
            if np.ptp(np.asarray(picture, np.int16), axis=2).max() > 0:
                yield path.name, "colour photograph", False, package, content
            grey = np.array(picture.convert("L"))
            yield f"{path.stem}-grey.png", "sample picture in grey", False, package, _png(grey)
    for path in _package_files("pydicom", "data/test_files"):
        if path.name in _HEADS_BY_CT:
            yield path.name, "real scan of the head or spine", False, "pydicom", path.read_bytes()
    for path in _package_files("matplotlib", "mpl-data/sample_data"):
        if path.name == _HEAD_BY_MR:
            values = np.frombuffer(gzip.decompress(path.read_bytes()), "<u2").reshape(256, 256)
            share = values / max(float(np.quantile(values, 0.995)), 1.0)
            content = _png(np.asarray(np.clip(255 * share, 0, 255), np.uint8))
            yield "s1045.png", "real scan of the head or spine", False, "matplotlib", content


_HEADS_BY_CT = ("693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm")
_HEAD_BY_MR = "s1045.ima.gz"


def _package_files(package: str, folder: str) -> list[Path]:
    """Files that come with a package; none where it is not installed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return []
    place = Path(found.origin).parent / folder
    return sorted(path for path in place.glob("*") if path.is_file())


def _is_foreign_dicom(path: Path) -> bool:
    """Whether a DICOM file's header says that it is not axial, or not of the chest."""
    from groundglass.imaging.dicom import describe_frames, open_dataset  # noqa: PLC0415 - pydicom is slow

    try:
        with guard(str(path), "DICOM"):
            dataset = open_dataset(FileSource(path), DEFAULT_LIMITS, _HEADER)
            orientation = describe_frames(dataset, DEFAULT_LIMITS)[0].orientation
    except ImageError:
        return False
    part = str(dataset.get("BodyPartExamined", "") or "").upper()
    if part and not any(word in part for word in _CHEST):
        return True
    if orientation is None:
        return False
    return bool(abs(np.cross(orientation[:3], orientation[3:])[2]) < _AXIAL)


def _png(picture: Grey) -> bytes:
    encoded, content = cv2.imencode(".png", picture)
    if not encoded:
        raise OSError("the PNG encoder refused a picture")
    return content.tobytes()
