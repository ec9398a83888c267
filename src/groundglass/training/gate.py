"""The gate's lessons: lung slices of the data set, phantoms, what is to be refused; and the fit to them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from groundglass.data.counterexamples import OTHER_PART, foreign_slices, phantom_slices, sicken, vary
from groundglass.data.manifest import Record, read_pixels
from groundglass.imaging.appearance import appearance
from groundglass.imaging.framing import MUCH_LUNG, Framing, find_lungs
from groundglass.imaging.slice import Grey
from groundglass.inference.engine import Engine
from groundglass.inference.foreign import LUNG, Examples
from groundglass.inference.gate import Gate

_PHANTOMS, _FEWEST_PHANTOMS = 450, 12
_ENOUGH, _MOST_LESION_FREE = 200, 2000
_BATCH = 32
# How much one slice of each source counts: the data set's own decide, variations and others support.
_OWN, _VARIED, _LESION_FREE, _PHANTOM = 2.0, 1.0, 0.6, 2.0


@dataclass(frozen=True)
class Lessons:
    """Pictures the gate learns from, described but for their embedding, which depends on the model.

    Attributes:
        framed: uint8, shape (N, size, size).
        looks: float32, shape (N, count), as :func:`appearance` gives them.
        kind: what each picture is.
        group: whose it is, shape (N,).
        weight: of each lung slice, shape (N,).
        deciding: which lung slices decide on the limit: the data set's own as they are, shape (N,).
    """

    framed: NDArray[np.uint8]
    looks: NDArray[np.float32]
    kind: tuple[str, ...]
    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    deciding: NDArray[np.bool_]


@dataclass(frozen=True)
class _Lesson:
    pixels: Grey
    kind: str
    group: str
    weight: float = 1.0
    deciding: bool = False


def gather_lessons(
    framing: Framing, slices: Sequence[Record], lesion_free: Sequence[Record] = (), seed: int = 0
) -> Lessons:
    """Read, invent, frame and describe everything the gate learns from; a minute for COVID-CT.

    Pictures are invented in full number for 200 slices or more, and for fewer slices in proportion.

    Args:
        framing: the model's.
        slices: of the training part, lung slices all of them.
        lesion_free: further slices, cut from anywhere in a series; may be empty.
        seed: of everything random.

    Raises:
        ValueError: there is no slice.
        ImageError: one cannot be read.
    """
    if not slices:
        raise ValueError("the gate learns from the training part's slices, and there are none")
    effort = min(1.0, len(slices) / _ENOUGH)
    own = [_Lesson(read_pixels(record), LUNG, record.patient_id, _OWN, True) for record in slices]
    step = -(-len(lesion_free) // _MOST_LESION_FREE) or 1
    cut = [lesson for record in lesion_free[::step] if (lesson := _cut_lesson(record)) is not None]
    framed, looks, known = [], [], []
    for lesson in chain(_lung_lessons(own, cut, seed, effort), _foreign_lessons(own, cut, seed, effort)):
        frame = framing.frame(lesson.pixels)
        framed.append(frame.pixels)
        looks.append(appearance(lesson.pixels, frame))
        # Without its pixels: thousands of pictures are gathered, and only the small copies are kept.
        known.append(replace(lesson, pixels=frame.pixels))
    return Lessons(
        np.stack(framed),
        np.stack(looks),
        tuple(lesson.kind for lesson in known),
        np.array([zlib.crc32(lesson.group.encode()) for lesson in known], np.int64),
        np.array([lesson.weight for lesson in known]),
        np.array([lesson.deciding for lesson in known]),
    )


def fit_gate(lessons: Lessons, engine: Engine, framing: Framing) -> Gate:
    """Ask a model for the embeddings and fit the gate to them.

    Args:
        lessons: as :func:`gather_lessons` gathers them with the same framing.
        engine: the model.
        framing: whose normalisation is applied.
    """
    embeddings = [
        engine.run(framing.normalise(lessons.framed[start : start + _BATCH])).embedding
        for start in range(0, len(lessons.framed), _BATCH)
    ]
    features = np.concatenate([lessons.looks, np.concatenate(embeddings)], axis=1)
    return Gate.fit(Examples(features, lessons.kind, lessons.group, lessons.weight), lessons.deciding)


def _cut_lesson(record: Record) -> _Lesson | None:
    """A lesion-free slice as what it is; None where that is in doubt."""
    pixels = read_pixels(record)
    lungs, found = find_lungs(pixels)
    # `groundglass data slices` names its files <series>_<index>.
    group = record.patient_id if record.patient_known else record.path.stem.rpartition("_")[0]
    if not found:
        return _Lesson(pixels, OTHER_PART, group)
    return _Lesson(pixels, LUNG, group, _LESION_FREE) if lungs.mean() >= MUCH_LUNG else None


def _lung_lessons(
    own: Sequence[_Lesson], cut: Sequence[_Lesson], seed: int, effort: float
) -> Iterator[_Lesson]:
    """Slices as they are and as other publications might show them, lesion-free slices, phantoms."""
    rng = np.random.default_rng([seed, 1])
    lungs = [lesson for lesson in cut if lesson.kind == LUNG]
    yield from own
    yield from lungs
    for lesson in own:
        yield replace(lesson, pixels=vary(lesson.pixels, rng), weight=_VARIED, deciding=False)
        sick = vary(sicken(lesson.pixels, rng), rng)
        yield replace(lesson, pixels=sick, weight=_VARIED, deciding=False)
    for index, lesson in enumerate(lungs):
        changed = vary(lesson.pixels, rng) if index % 2 else sicken(lesson.pixels, rng)
        yield replace(lesson, pixels=changed)
    for index, pixels in enumerate(phantom_slices(max(_FEWEST_PHANTOMS, round(effort * _PHANTOMS)), seed)):
        yield _Lesson(pixels, LUNG, f"phantom {index}", _PHANTOM)


def _foreign_lessons(
    own: Sequence[_Lesson], cut: Sequence[_Lesson], seed: int, effort: float
) -> Iterator[_Lesson]:
    yield from (lesson for lesson in cut if lesson.kind != LUNG)
    lungs = [lesson.pixels for lesson in [*own, *cut[::2]] if lesson.kind == LUNG]
    for index, (kind, pixels) in enumerate(foreign_slices(lungs, seed, effort)):
        yield _Lesson(pixels, kind, f"foreign {index}")
