"""Time to find the lungs of a slice, crop and normalise it, to paint a lesion and to draw a phantom, on one core.

Every slice is timed several times and stands with the median of its times; the tables give median, least and
largest over the slices.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record, read_pixels
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lesions import Kind, paint_lesion
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import Grey
from record import RESULTS, Goal, Table, report

SIDE = 512
GOALS = {"lungs, crop and normalise": 5.0, "paint_ground_glass": 20.0}
"""Milliseconds per slice, at most, of the median slice."""
SEVERITIES = (0.08, 0.8)


@dataclass(frozen=True)
class Timing:
    """Milliseconds per slice: median, least and largest over ``slices`` slices."""

    median: float
    least: float
    largest: float
    slices: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Timing:
        """Sum up one figure per slice."""
        return cls(statistics.median(milliseconds), min(milliseconds), max(milliseconds), len(milliseconds))


def main(
    data: Annotated[
        Path | None, typer.Option(help="Time real slices too: COVID-CT, a folder or a manifest CSV.")
    ] = None,
    slices: Annotated[int, typer.Option(min=2, help="Phantoms, and real slices, to time.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Times each slice is timed.")] = 9,
    quick: Annotated[bool, typer.Option(help="A smoke test: few slices, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Time preprocessing, lesion painting and phantom generation at 512 x 512 pixels on one core."""
    if quick:
        slices, repeats = 6, 3
    _stay_on_one_core()
    phantoms, invention = _phantoms(slices)
    measured = {"phantoms": {**_timings(phantoms, repeats), "make_phantom": invention}}
    if data is not None:
        manifest = load_dataset(data)
        measured[manifest.name] = _timings(_real(manifest.records, slices), repeats)
    goals = []
    for source, timings in measured.items():
        goals += [
            Goal(f"{what}, {source}, ms", limit, True, timings[what].median)
            for what, limit in GOALS.items()
            if what in timings
        ]
    tables = [
        Table(
            f"Milliseconds per slice of {SIDE} x {SIDE} pixels, one core: {source}",
            ("what", "median", "min", "max", "slices"),
            [
                (what, timing.median, timing.least, timing.largest, str(timing.slices))
                for what, timing in timings.items()
            ],
        )
        for source, timings in measured.items()
    ]
    as_json = {
        source: {what: asdict(timing) for what, timing in timings.items()} for source, timings in measured.items()
    }
    report("crop", output or (None if quick else RESULTS), as_json, goals, tables)


def _stay_on_one_core() -> None:
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _phantoms(count: int) -> tuple[list[Grey], Timing]:
    """Healthy phantoms, and how long one takes; a phantom is different each time, so it is timed once."""
    pixels, milliseconds = [], []
    make_phantom(np.random.default_rng([0, count]), size=SIDE)
    for index in range(count):
        start = time.perf_counter()
        phantom = make_phantom(np.random.default_rng([0, index]), size=SIDE)
        milliseconds.append((time.perf_counter() - start) * 1e3)
        pixels.append(phantom.slice.pixels)
    return pixels, Timing.of(milliseconds)


def _real(records: Sequence[Record], count: int) -> list[Grey]:
    """Real slices, evenly drawn from the data set, resized to the phantoms' size."""
    chosen = np.unique(np.linspace(0, len(records) - 1, count).astype(int))
    slices = (read_pixels(records[index]) for index in chosen)
    return [np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)) for pixels in slices]


def _timings(slices: Sequence[Grey], repeats: int) -> dict[str, Timing]:
    preprocessing, segmenter = Preprocessing(), shipped()
    masks = [segmenter(pixels) for pixels in slices]
    cropped = [preprocessing.apply(pixels, lungs) for pixels, lungs in zip(slices, masks, strict=True)]
    rng = np.random.default_rng(0)

    def both(pixels: Grey) -> object:
        return preprocessing.normalise(preprocessing.apply(pixels, segmenter(pixels)).pixels)

    def painted(pixels: Grey, lungs: NDArray[np.bool_]) -> object:
        return paint_lesion(pixels, lungs, Kind.GROUND_GLASS, rng.uniform(*SEVERITIES), rng)

    calls: dict[str, list[Callable[[], object]]] = {
        "lungs, crop and normalise": [partial(both, pixels) for pixels in slices],
        "LungSegmenter": [partial(segmenter, pixels) for pixels in slices],
        "Preprocessing.apply": [
            partial(preprocessing.apply, pixels, lungs) for pixels, lungs in zip(slices, masks, strict=True)
        ],
        "Preprocessing.normalise": [partial(preprocessing.normalise, one.pixels) for one in cropped],
        "paint_ground_glass": [
            partial(painted, pixels, one.lungs) for pixels, one in zip(slices, cropped, strict=True) if one.found
        ],
    }
    return {what: Timing.of([_milliseconds(call, repeats) for call in each]) for what, each in calls.items() if each}


def _milliseconds(act: Callable[[], object], repeats: int) -> float:
    act()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    typer.run(main)
