"""How many planted copies of slices are found, what else is called a copy, and how long it takes.

Slices are recoded, cropped, annotated, turned or shown in another window, written as files and hidden among
other slices; ``copies_of`` has to find them. What it finds beyond them is a false alarm. The thresholds of
the search were chosen with such copies, made with another seed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from groundglass.audit.duplicates import Trace, copies_of, find_pairs, read_all, take_trace
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record, read_pixels, unknown_patient
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import Grey
from record import RESULTS, Goal, Table, report

Rng = np.random.Generator

GOALS = {"recoded": 0.99, "annotated": 0.99, "cropped": 0.98, "a part": 0.95}
"""Share of copies found, at least."""


def main(
    data: Annotated[Path | None, typer.Option(help="Slices to copy; phantoms unless given.")] = None,
    series: Annotated[Path | None, typer.Option(help="A CT series, whose neighbouring slices are no copies.")] = None,
    copies: Annotated[int, typer.Option(min=2, help="Copies of each kind.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the copies.")] = 1,
    quick: Annotated[bool, typer.Option(help="A smoke test: few copies, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Hide copies among other slices and look for them."""
    copies = 12 if quick else copies
    with tempfile.TemporaryDirectory() as folder:
        records = _phantoms(Path(folder), 60 if quick else 400) if data is None else load_dataset(data).records
        found = {kind: _find(records, kind, act, copies, seed, Path(folder)) for kind, act in KINDS.items()}
        alone = {"the slices above": _among_themselves(records)}
        if series is not None:
            slices = [read.pixels for read in read_slices(series)]
            alone[f"{series.name}, one person"] = _among_themselves(_save(Path(folder), "series", slices))
    goals = [
        Goal(f"copies found: {kind}", limit, False, found[kind]["found"] / found[kind]["copies"])
        for kind, limit in GOALS.items()
    ]
    false = sum(row["false"] for row in found.values()) + sum(row["copies"] for row in alone.values())
    goals.append(Goal("slices called copies that are none", 0, True, false))
    tables = [
        Table(
            f"Copies hidden among {len(records)} slices",
            ("kind", "copies", "found", "least correlation", "median", "called copies, but none"),
            [
                (kind, str(row["copies"]), str(row["found"]), row["least"], row["median"], str(row["false"]))
                for kind, row in found.items()
            ],
        ),
        Table(
            "Slices among themselves, none of which is a copy",
            ("slices", "pairs compared", "called copies", "called lookalikes", "ms per slice", "ms per pair"),
            [
                (name, *(str(row[key]) for key in ("compared", "copies", "lookalikes")), row["read"], row["compare"])
                for name, row in alone.items()
            ],
        ),
    ]
    measured = {"found": found, "among_themselves": alone}
    report("find_copies", output or (None if quick else RESULTS), measured, goals, tables)


def _find(
    records: Sequence[Record], kind: str, act: Callable[[Grey, Rng], Grey], copies: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Hold out half of the slices, hide copies of some of them among the other half, and look for them."""
    rng = np.random.default_rng([seed, *kind.encode()])
    order = rng.permutation(len(records))
    held_out = [records[index] for index in order[: len(order) // 2]]
    originals = held_out[:copies]
    hidden = []
    for number, original in enumerate(originals):
        pixels = act(read_pixels(original), rng)
        path = folder / f"{kind.replace(' ', '-')}-{number}.png"
        cv2.imwrite(str(path), pixels)
        hidden.append(replace(original, path=path, patient_id=unknown_patient(path.name)))
    candidates = [*(records[index] for index in order[len(order) // 2 :]), *hidden]
    pairs = copies_of(held_out, candidates)
    truth = {(id(original), id(copy)) for original, copy in zip(originals, hidden, strict=True)}
    correlations = [pair.correlation for pair in pairs if (id(pair.first), id(pair.second)) in truth]
    return {
        "copies": len(hidden),
        "found": len(correlations),
        "least": min(correlations, default=0.0),
        "median": float(np.median(correlations)) if correlations else 0.0,
        "false": len(pairs) - len(correlations),
    }


def _among_themselves(records: Sequence[Record]) -> dict[str, Any]:
    """Pairs called copies or lookalikes, and processor time for each slice read and each pair compared."""
    compared = 0

    def count(stage: str, steps: int, total: int | None) -> None:
        nonlocal compared
        compared += steps

    started = time.process_time()
    traces = [trace for trace in read_all(records, take_trace) if isinstance(trace, Trace)]
    read = time.process_time() - started
    pairs = find_pairs(traces, progress=count)
    seconds = time.process_time() - started - read
    copies = sum(pair.kind != "lookalike" for pair in pairs)
    return {
        "compared": compared,
        "copies": copies,
        "lookalikes": len(pairs) - copies,
        "read": read / len(records) * 1e3,
        "compare": seconds / max(compared, 1) * 1e3,
    }


def _phantoms(folder: Path, count: int) -> list[Record]:
    drawn = (make_phantom(np.random.default_rng([9, number]), size=384) for number in range(count))
    return _save(folder, "phantom", [phantom.slice.pixels for phantom in drawn])


def _save(folder: Path, name: str, slices: Sequence[Grey]) -> list[Record]:
    records = []
    for number, pixels in enumerate(slices):
        path = folder / f"{name}-{number:04d}.png"
        cv2.imwrite(str(path), pixels)
        records.append(Record(path, None, unknown_patient(path.name), name, None))
    return records


@dataclass(frozen=True)
class _Steps:
    """Alterations, one after the other."""

    steps: tuple[Callable[[Grey, Rng], Grey], ...]

    def __call__(self, pixels: Grey, rng: Rng) -> Grey:
        for step in self.steps:
            pixels = np.ascontiguousarray(step(pixels, rng))
        return pixels


def _trim(most: float) -> Callable[[Grey, Rng], Grey]:
    """Take up to ``most`` of the picture off each side."""

    def trim(pixels: Grey, rng: Rng) -> Grey:
        height, width = pixels.shape
        left, right, top, bottom = rng.uniform(0, most, 4)
        return pixels[int(top * height) : height - int(bottom * height), int(left * width) : width - int(right * width)]

    return trim


def _part(pixels: Grey, rng: Rng) -> Grey:
    """Keep 50 to 80 % of the width and the height, or of the width alone."""
    height, width = pixels.shape
    across, down = rng.uniform(0.5, 0.8, 2)
    down = 1.0 if rng.random() < 0.3 else down
    left, top = int(rng.uniform(0, 1 - across) * width), int(rng.uniform(0, 1 - down) * height)
    return pixels[top : top + int(down * height), left : left + int(across * width)]


def _annotate(pixels: Grey, rng: Rng) -> Grey:
    """Draw up to five arrows and sometimes a letter."""
    drawn, (height, width) = pixels.copy(), pixels.shape
    for _ in range(rng.integers(0, 6)):
        tip, angle = rng.uniform(0.15, 0.85, 2) * (width, height), rng.uniform(0, 2 * np.pi)
        tail = tip + 0.07 * width * np.array([np.cos(angle), np.sin(angle)])
        colour = int(rng.choice([0, 255]))
        cv2.arrowedLine(drawn, tail.astype(int), tip.astype(int), colour, max(1, width // 130), tipLength=0.4)
    if rng.random() < 0.5:
        place = (int(0.03 * width), int(0.12 * height))
        letter = str(rng.choice(list("ABCDEFG")))
        cv2.putText(drawn, letter, place, cv2.FONT_HERSHEY_SIMPLEX, width / 220, 255, max(1, width // 120))
    return drawn


def _margins(pixels: Grey, rng: Rng) -> Grey:
    """Put paper or black around the picture, three times in ten."""
    if rng.random() > 0.3:
        return pixels
    height, width = pixels.shape
    sides = (rng.uniform(0, 0.1, 4) * (height, height, width, width)).astype(int).tolist()
    return np.asarray(cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_CONSTANT, value=int(rng.choice([0, 255]))))


def _resize(pixels: Grey, rng: Rng) -> Grey:
    scale, stretch = np.exp(rng.uniform(np.log(0.45), np.log(1.8))), np.exp(rng.uniform(-0.12, 0.12))
    height, width = pixels.shape
    size = (max(48, int(width * scale * stretch)), max(48, int(height * scale / stretch)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def _curve(low: tuple[float, float], high: tuple[float, float]) -> Callable[[Grey, Rng], Grey]:
    """Another window and gamma; what lies outside the window is clipped."""

    def curve(pixels: Grey, rng: Rng) -> Grey:
        black, white = rng.uniform(*low), rng.uniform(*high)
        grey = np.clip((np.arange(256) / 255 - black) / (white - black), 0, 1) ** rng.uniform(0.65, 1.5)
        return np.rint(grey * 255).astype(np.uint8)[pixels]

    return curve


def _jpeg(pixels: Grey, rng: Rng) -> Grey:
    quality = int(rng.uniform(35, 95))
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))


def _turn(pixels: Grey, rng: Rng) -> Grey:
    """Turn by up to 4 degrees."""
    height, width = pixels.shape
    turned = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-4, 4), 1.0)
    return np.asarray(cv2.warpAffine(pixels, turned, (width, height), borderMode=cv2.BORDER_REPLICATE))


_GENTLE = _curve((-0.1, 0.15), (0.8, 1.15))
_HARSH = _curve((0.1, 0.35), (0.5, 0.8))
KINDS: dict[str, Callable[[Grey, Rng], Grey]] = {
    "recoded": _Steps((_resize, _GENTLE, _jpeg)),
    "annotated": _Steps((_trim(0.06), _annotate, _margins, _resize, _GENTLE, _jpeg)),
    "cropped": _Steps((_trim(0.2), _annotate, _margins, _resize, _GENTLE, _jpeg)),
    "a part": _Steps((_part, _annotate, _margins, _resize, _GENTLE, _jpeg)),
    "turned": _Steps((_turn, _trim(0.06), _resize, _GENTLE, _jpeg)),
    "another window": _Steps((_trim(0.06), _resize, _HARSH, _jpeg)),
}
"""Kinds of copies."""


if __name__ == "__main__":
    typer.run(main)
