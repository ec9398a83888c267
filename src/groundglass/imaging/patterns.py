"""Pictures without anatomy: blank and noise images, patterns, pages of text, charts, invented scenery.

What people drop into a folder of slices by mistake, drawn so that its refusal can be learnt and measured
without a picture that belongs to anybody.
"""

from __future__ import annotations

import string

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.lesions import smooth_noise
from groundglass.imaging.slice import Grey

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
